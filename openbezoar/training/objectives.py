"""What the loop minimises: the answer's log-likelihood (sft), or a preference loss (dpo)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from openbezoar.errors import ModelError
from openbezoar.forest import Scorer, Tree
from openbezoar.forest.layout import weight
from openbezoar.machine.shares import shared
from openbezoar.recipe.losses import Loss
from openbezoar.training.loop import Metrics, Objective, numbers
from openbezoar.training.losses import PairScores, answer_sums, answer_tokens, margins, reward_metrics

Reference = Callable[[Sequence[Tree]], Tensor]
"""Pairs → summed reference log-probabilities [pairs, 2]."""


def sft_objective(scorer: Scorer, heldout: Sequence[Tree]) -> Objective:
    """Mean negative log-likelihood of the supervised tokens of an optimiser step."""

    def loss(trees: Sequence[Tree], whole: float) -> tuple[Tensor, Metrics]:
        total = torch.stack([path.sum() for tree in scorer.score(trees) for path in tree]).sum()
        return -total / whole, {}

    def measure() -> dict[str, Any]:
        scores = scorer.logprobs(heldout)
        tokens = sum(len(path) for tree in scores for path in tree)
        rows = [-float(sum(path.double().sum() for path in tree)) * len(scores) / tokens for tree in scores]
        loss = -float(sum(path.double().sum() for tree in scores for path in tree)) / tokens
        return {"loss": loss, "rows": {"loss": rounded(rows)}}

    def check(metrics: dict[str, float]) -> None:
        return None

    return Objective(supervised_tokens, loss, measure, check)


def rounded(values: Iterable[float]) -> list[float]:
    """Values of rows as a log keeps them."""
    return [round(value, 6) for value in values]


def supervised_tokens(tree: Tree) -> float:
    """Tokens of a tree that carry loss."""
    return float(sum(path.n_scored for path in tree))


def one(tree: Tree) -> float:
    """A pair's weight."""
    return 1.0


def checked_first_loss(expected: float, tolerance: float = 1e-3) -> Callable[[dict[str, float]], None]:
    """A check that the loss before the first update is what policy = reference gives."""

    def check(metrics: dict[str, float]) -> None:
        if abs(metrics["loss"] - expected) > tolerance:
            raise ModelError(
                f"the loss before the first update is {metrics['loss']:.6f}, where policy and reference are the same"
                f" model and it must be {expected:.6f}; the reference is not the model as given (please report this)"
            )

    return check


def same_pass_reference(scorer: Scorer) -> Reference:
    """Summed log-probabilities [pairs, 2] of the model as given: adapter off, dropout off, no gradients."""
    model: Any = scorer.model

    @torch.no_grad()
    def reference(trees: Sequence[Tree]) -> Tensor:
        training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                return answer_sums(scorer.score(trees))
        finally:
            model.train(training)

    return reference


def frozen_reference(scorer: Scorer) -> Reference:
    """The same of a model that has no adapter: as it is now, dropout off, no gradients."""

    @torch.no_grad()
    def reference(trees: Sequence[Tree]) -> Tensor:
        training = scorer.model.training
        scorer.model.eval()
        try:
            return answer_sums(scorer.score(trees))
        finally:
            scorer.model.train(training)

    return reference


def preference_objective(
    row: Loss,
    constants: Mapping[str, float],
    *,
    scorer: Scorer,
    heldout: Sequence[Tree],
    reference: Reference | None,
) -> Objective:
    """The mean loss of an optimiser step's pairs; ``reference`` is None for the losses without one."""
    function, scale = partial(row.load(), **constants), constants[row.scale]

    def scored(trees: Sequence[Tree]) -> PairScores:
        logps = None if reference is None else reference(trees)
        scores = scorer.score(trees)
        return PairScores.of(answer_sums(scores), answer_tokens(scores), logps)

    def loss(trees: Sequence[Tree], whole: float) -> tuple[Tensor, Metrics]:
        assert not row.whole_batch or len(trees) == whole, "a loss over the whole batch was given a part of it"
        scores = scored(trees)
        metrics = reward_metrics(scores, scale)
        return function(scores).sum() / whole, {name: value.double() / whole for name, value in metrics.items()}

    @torch.no_grad()
    def measure() -> dict[str, Any]:
        scorer.model.eval()
        groups = scorer.batches(heldout)
        parts = shared(
            groups,
            lambda group: scored([heldout[i] for i in group]).to("cpu"),
            lambda group: sum(weight(heldout[i]) for i in group),
        )
        scores = PairScores.joined(parts).to(scorer.device)
        metrics, losses = numbers(reward_metrics(scores, scale)), function(scores)
        sums = {
            "loss": float(losses.sum()),
            "margin": metrics["rewards/margins"],
            "accuracy": metrics["rewards/accuracies"],
        }
        place = torch.tensor([i for group in groups for i in group]).argsort()  # back into the rows' order
        rows = {"loss": losses, "margin": margins(scores, scale)}
        by_row = {name: rounded(values.cpu()[place].tolist()) for name, values in rows.items()}
        return {**{name: value / len(heldout) for name, value in sums.items()}, "rows": by_row}

    return Objective(one, loss, measure, _first_check(row, constants))


def _first_check(row: Loss, constants: Mapping[str, float]) -> Callable[[dict[str, float]], None]:
    if row.start is None:
        return lambda metrics: None
    expected = row.start.value(constants)
    return checked_first_loss(expected, 1e-3 * max(1.0, expected))
