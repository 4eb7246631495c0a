"""Preference losses as pure functions of four vectors of summed log-probabilities, in one table.

Symbols: c chosen, r rejected, p the policy, f the reference; all float32 [pairs].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PreferenceLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]


def sigmoid(policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """DPO, [pairs] → [pairs]: -(1 - e) log s(b x) - e log s(-b x).

    x = (p_c - p_r) - (f_c - f_r); b = beta, e = smoothing. e = 0 is equation 7 of
    arXiv 2305.18290; e > 0 its conservative form. Equals ln 2 where policy = reference.
    """
    margin = beta * ((policy_chosen - policy_rejected) - (reference_chosen - reference_rejected))
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {"sigmoid": sigmoid}


def reward_metrics(policy: Tensor, reference: Tensor, beta: float) -> dict[str, float]:
    """TRL's standard metrics from [pairs, 2] log-probabilities (chosen, rejected), as sums over the pairs."""
    rewards = beta * (policy - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "rewards/chosen": float(rewards[:, 0].sum()),
        "rewards/rejected": float(rewards[:, 1].sum()),
        "rewards/margins": float(margin.sum()),
        "rewards/accuracies": float((margin > 0).sum()),
        "logps/chosen": float(policy[:, 0].sum()),
        "logps/rejected": float(policy[:, 1].sum()),
    }


def answer_sums(scores: list[list[Tensor]]) -> Tensor:
    """Per-token scores of trees of two paths → summed log-probabilities [pairs, 2]."""
    return torch.stack([torch.stack([path.sum() for path in tree]) for tree in scores])
