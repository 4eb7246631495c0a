"""``dpo``: preference training of a new adapter; the reference is the model as given.

The model as given is held with its older adapters merged in, so that "adapter off" is the
reference exactly. Reads preference pairs. Writes ``adapter/`` (PEFT), ``model.json``,
``metrics.jsonl`` and ``heldout.jsonl``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openbezoar.context import StepContext
from openbezoar.forest import Tree
from openbezoar.recipe import Dpo
from openbezoar.records import to_pair
from openbezoar.training.data import training_trees
from openbezoar.training.fit import Bench, checked_first_loss, fit, one, renderer_of, set_up
from openbezoar.training.loop import Objective
from openbezoar.training.losses import PREFERENCE_LOSSES, answer_sums, reward_metrics


def run(step: Dpo, context: StepContext) -> dict[str, Any]:
    """Train a new adapter on the step's pairs."""
    renderer = renderer_of(step, context)
    trees, heldout = training_trees(step, step.dpo, to_pair, context, renderer, "pair")
    bench = set_up(step, context, continues=False, renderer=renderer)
    numbers = fit(step, context, bench, trees, _objective(step, bench, heldout))
    return {
        **numbers,
        "heldout_rows": len(heldout),
        "beta": step.beta,
        "answers_end_scored": bool(bench.formatter.end_ids),
        "summary": f"{numbers['steps']} steps on {len(trees)} pairs; held-out loss {numbers['heldout_loss_before']:.3f} → {numbers['heldout_loss_after']:.3f}, "
        f"accuracy → {numbers['heldout_accuracy_after']:.3f} (n={len(heldout)})",
    }


def _objective(step: Dpo, bench: Bench, heldout: Sequence[Tree]) -> Objective:
    preference = PREFERENCE_LOSSES[step.loss]
    scorer, model = bench.scorer, bench.model

    @torch.no_grad()
    def reference(trees: Sequence[Tree]) -> Tensor:
        """Summed log-probabilities [pairs, 2] of the model as given: same pass, adapter off."""
        with model.disable_adapter():
            return answer_sums(scorer.score(trees))

    def loss(trees: Sequence[Tree], whole: float) -> tuple[Tensor, dict[str, float]]:
        given = reference(trees)
        policy = answer_sums(scorer.score(trees))
        losses = preference(policy[:, 0], policy[:, 1], given[:, 0], given[:, 1], step.beta, step.label_smoothing)
        metrics = reward_metrics(policy.detach(), given, step.beta)
        return losses.sum() / whole, {name: value / whole for name, value in metrics.items()}

    @torch.no_grad()
    def measure() -> dict[str, float]:
        totals = {"loss": 0.0, "margin": 0.0, "accuracy": 0.0}
        model.eval()
        for group in scorer.batches(heldout):
            trees = [heldout[i] for i in group]
            given, policy = reference(trees), answer_sums(scorer.score(trees))
            losses = preference(policy[:, 0], policy[:, 1], given[:, 0], given[:, 1], step.beta, step.label_smoothing)
            metrics = reward_metrics(policy, given, step.beta)
            for name, value in (("loss", float(losses.sum())), ("margin", metrics["rewards/margins"]), ("accuracy", metrics["rewards/accuracies"])):
                totals[name] += value / len(heldout)
        return totals

    return Objective(one, loss, measure, checked_first_loss(math.log(2)))
