"""What the loop minimises where answers were liked or not: KTO.

The loss compares an answer's log-ratio with one number of the whole batch, z0, an estimate of how far
the policy has gone from the reference: the mean log-ratio of answers that are set after other prompts
of the batch. As z0 carries no gradient, it is computed before the batch's passes, in passes of its own,
so the batch may take as many passes, and processes, as it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from openbezoar.forest import Scorer, TokenPath, Tree
from openbezoar.forest.layout import on_device, weight
from openbezoar.machine import distributed, shares
from openbezoar.training.loop import Metrics, Objective, PassLoss
from openbezoar.training.losses import UnpairedScores, answer_sums, kto, reference_point
from openbezoar.training.objectives import Reference, checked_first_loss, one, rounded
from openbezoar.training.trees import UnpairedTree


def mismatched(trees: Sequence[Tree], max_length: int) -> list[Tree]:
    """Each prompt with the answer of the tree before it, the first with that of the last; cut after ``max_length`` ids.

    An answer to the very same prompt is passed over for the one before it; where all answers are to
    one prompt, that prompt has none.
    """
    parts = [_parted(path) for (path,) in trees]
    others: list[Tree] = []
    for place, (prompt, _) in enumerate(parts):
        before = (parts[place - back] for back in range(1, len(parts)))
        answer = next((answer for asked, answer in before if asked != prompt), None)
        if answer is not None:
            others.append((TokenPath.of(prompt, answer[: max_length - len(prompt)]),))
    return others


def _parted(path: TokenPath) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and answer."""
    start = tuple(path.scored).index(True)
    return tuple(path.ids[:start]), tuple(path.ids[start:])


def unpaired_objective(
    constants: Mapping[str, float],
    *,
    scorer: Scorer,
    heldout: Sequence[Tree],
    reference: Reference,
    max_length: int,
) -> Objective:
    """The mean KTO loss of an optimiser step's answers, UnpairedTrees. constants: those of ``losses.kto``."""
    function: Callable[[UnpairedScores, float], Tensor] = partial(kto, **constants)  # type: ignore[arg-type]

    def scored(trees: Sequence[Tree]) -> UnpairedScores:
        (liked,) = on_device([[cast(UnpairedTree, tree).liked for tree in trees]], scorer.device)
        return UnpairedScores(answer_sums(scorer.score(trees))[:, 0], reference(trees)[:, 0], liked.bool())

    def begin(batch: Sequence[Tree]) -> PassLoss:
        others = mismatched(batch, max_length)
        mine = [others[i] for i in shares.share(others, weight, distributed.rank(), distributed.world())]

        def ratios() -> float:
            policy, before = _without_gradient(scorer, mine, reference)
            return float((policy - before).double().sum())

        point = max(0.0, sum(shares.agreed(ratios)) / max(1, len(others)))
        liked = sum(cast(UnpairedTree, tree).liked for tree in batch)
        return partial(_pass, scored, lambda scores: function(scores, point), point, constants["beta"], liked)

    def loss(trees: Sequence[Tree], whole: float) -> tuple[Tensor, Metrics]:
        assert len(trees) == whole, "a batch by itself was given a part of one"
        return begin(trees)(trees, whole)

    @torch.no_grad()
    def measure() -> dict[str, Any]:
        scorer.model.eval()
        together = partial(_without_gradient, scorer, reference=reference, deal=shares.shared)
        point = reference_point(*together(mismatched(heldout, max_length)))
        policy, before = together(heldout)
        liked = torch.tensor([cast(UnpairedTree, tree).liked for tree in heldout], device=policy.device)
        scores = UnpairedScores(policy, before, liked)
        rewards = constants["beta"] * scores.ratios()
        losses = function(scores, point)
        told, rows = _told_apart(rewards, liked), {"loss": rounded(losses.tolist())}
        return {"loss": float(losses.mean()), "kl": point, **told, "rows": rows}

    def check(metrics: dict[str, float]) -> None:
        share = metrics["liked"]
        weight = share * constants["desirable_weight"] + (1 - share) * constants["undesirable_weight"]
        checked_first_loss(weight / 2, 1e-3 * max(1.0, weight))(metrics)

    return Objective(one, loss, measure, check, begin)


@torch.no_grad()
def _without_gradient(
    scorer: Scorer, trees: Sequence[Tree], reference: Reference, deal: Callable[..., list[Tensor]] = shares.alone
) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of policy and reference, dropout off: float32 [trees] each, in their order.

    deal: of the passes, as ``shares.shared``.
    """

    def both(group: Sequence[int]) -> Tensor:
        part = [trees[i] for i in group]
        return torch.stack([answer_sums(scorer.score(part))[:, 0], reference(part)[:, 0]]).cpu()

    training = scorer.model.training
    scorer.model.eval()
    groups = scorer.batches(trees)
    sums = torch.zeros(2, len(trees))
    try:
        for group, part in zip(
            groups, deal(groups, both, lambda group: sum(weight(trees[i]) for i in group)), strict=True
        ):
            sums[:, group] = part
    finally:
        scorer.model.train(training)
    policy, before = sums.to(scorer.device)
    return policy, before


def _pass(
    scored: Callable[[Sequence[Tree]], UnpairedScores],
    function: Callable[[UnpairedScores], Tensor],
    point: float,
    beta: float,
    liked: int,
    trees: Sequence[Tree],
    whole: float,
) -> tuple[Tensor, Metrics]:
    """Loss and metrics of one pass; liked: how many answers of the whole batch were. TRL's names: chosen are
    the liked answers, rejected the others, and each mean is over its own.
    """
    scores = scored(trees)
    rewards = beta * scores.ratios().detach()
    metrics: Metrics = {"kl": point * len(trees) / whole, "liked": scores.liked.sum().double() / whole}
    for name, those, count in (("chosen", scores.liked, liked), ("rejected", ~scores.liked, int(whole) - liked)):
        if count:
            metrics[f"rewards/{name}"] = rewards.where(those, 0.0).sum().double() / count
            metrics[f"logps/{name}"] = scores.policy.detach().where(those, 0.0).sum().double() / count
    if 0 < liked < whole:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return function(scores).sum() / whole, metrics


def _told_apart(rewards: Tensor, liked: Tensor) -> dict[str, float]:
    """Mean rewards of liked and of other answers, and, where there are both, their difference and the
    area under the ROC curve: the chance that a liked answer's reward is above another's, ties counting half.
    """
    good, bad = rewards[liked].double(), rewards[~liked].double().sort().values
    numbers = {
        f"reward_{name}": float(those.mean()) for name, those in (("liked", good), ("disliked", bad)) if len(those)
    }
    if len(numbers) < 2:
        return numbers
    below = torch.searchsorted(bad, good) + torch.searchsorted(bad, good, right=True)
    area = float(below.double().mean()) / (2 * len(bad))
    return {**numbers, "margin": numbers["reward_liked"] - numbers["reward_disliked"], "auc": area}
