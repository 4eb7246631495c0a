"""What the loop minimises where a reward model learns from pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openbezoar.forest import RewardScorer, Tree
from openbezoar.training.loop import Metrics, Objective, numbers
from openbezoar.training.losses import bradley_terry
from openbezoar.training.objectives import one, rounded


def reward_objective(scorer: RewardScorer, heldout: Sequence[Tree], *, margin: float, center: float) -> Objective:
    """The mean Bradley-Terry loss of an optimiser step's pairs. margin, center: of ``losses.bradley_terry``."""

    def loss(trees: Sequence[Tree], whole: float) -> tuple[Tensor, Metrics]:
        rewards = torch.stack(scorer.rewards(trees))
        values = bradley_terry(rewards, margin=margin, center=center)
        return values.sum() / whole, {name: value.double() / whole for name, value in _sums(rewards.detach()).items()}

    @torch.no_grad()
    def measure() -> dict[str, Any]:
        rewards = torch.tensor(scorer.scores(heldout))
        sums, losses = numbers(_sums(rewards)), bradley_terry(rewards, margin=margin, center=center)
        by_row = {"loss": losses, "margin": rewards[:, 0] - rewards[:, 1]}
        return {
            "loss": float(losses.mean()),
            "margin": sums["rewards/margins"] / len(heldout),
            "accuracy": sums["rewards/accuracies"] / len(heldout),
            "rows": {name: rounded(values.tolist()) for name, values in by_row.items()},
        }

    return Objective(one, loss, measure, lambda metrics: None)


def _sums(rewards: Tensor) -> dict[str, Tensor]:
    """TRL's names, summed over pairs; rewards [pairs, 2]."""
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "rewards/chosen": rewards[:, 0].sum(),
        "rewards/rejected": rewards[:, 1].sum(),
        "rewards/margins": margins.sum(),
        "rewards/accuracies": (margins > 0).sum(),
    }
