"""What preference training did to a model, seen from its reference: implicit rewards on pairs, and
how far it moved. Reads and writes nothing.

DPO's implicit reward of an answer y to x (arXiv 2305.18290, section 4) is
beta log(pi(y|x) / ref(y|x)); here beta is 1, which changes no order and leaves margins in nats.
The KL divergence of the policy from the reference is estimated by the policy's own answers:
the mean of log pi(y|x) - log ref(y|x) for y drawn from pi(.|x), which is unbiased for answers
cut at the same length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from openbezoar.stats.intervals import mean_interval, share_of
from openbezoar.stats.seeds import step_seed

T = TypeVar("T")
Sums = Sequence[Sequence[float] | None]
"""Log-probabilities [chosen, rejected] of each pair, None for one left out."""


def share_numbers(hits: Sequence[int]) -> dict[str, Any]:
    """{value, low, high} of a share, as the scores write it beside an n of their own."""
    share = share_of(hits)
    return {"value": share.value, "low": share.low, "high": share.high}


def mean_of(values: Sequence[float], seed: int) -> dict[str, float]:
    """Mean over items, with a 95 % bootstrap interval."""
    value, low, high = mean_interval(values, seed)
    return {"value": value, "low": low, "high": high}


def implicit_rewards(policy: Sums, reference: Sums, subsets: Sequence[str], seed: int) -> dict[str, Any]:
    """{n, accuracy, margin, subsets: {name: {n, accuracy, margin}}, items} of a policy seen from its reference.

    accuracy: share of pairs whose chosen answer has the higher implicit reward; equal ones
    count as wrong. margin: mean of the difference, in nats. items: the margin of each pair,
    None for one that either model left out.
    """
    items = [
        None if p is None or r is None else (p[0] - r[0]) - (p[1] - r[1])
        for p, r in zip(policy, reference, strict=True)
    ]
    by_name = {name: _of(own, step_seed(seed, name)) for name, own in by_subset(items, subsets).items()}
    return {**_of(items, seed), "subsets": by_name, "items": items}


def _of(items: Sequence[float | None], seed: int) -> dict[str, Any]:
    margins = [item for item in items if item is not None]
    if not margins:
        return {"n": 0, "accuracy": None, "margin": None}
    return {
        "n": len(margins),
        "accuracy": share_numbers([int(m > 0) for m in margins]),
        "margin": mean_of(margins, seed),
    }


def by_subset(items: Sequence[T], subsets: Sequence[str]) -> dict[str, list[T]]:
    """The items of each named subset, in the order first met; empty where rows name none."""
    by_name: dict[str, list[T]] = {name: [] for name in subsets if name}
    for item, name in zip(items, subsets, strict=True):
        if name:
            by_name[name].append(item)
    return by_name


def share(items: Sequence[int | None]) -> dict[str, Any]:
    """{n, accuracy} of items that are 1, 0, or None for one left out."""
    used = [item for item in items if item is not None]
    return {"n": len(used), "accuracy": share_numbers(used) if used else None}


def divergence(samples: Sequence[Mapping[str, Any]], reference: Sequence[float], seed: int) -> dict[str, Any]:
    """KL(policy ‖ reference) of whole answers, in nats, and a token: {n, tokens, value, low, high, per_token}.

    samples: answers drawn from the policy at temperature 1, each with its ``logprob`` under it
    and its number of ``tokens``; reference: the same answers' log-probabilities there.
    """
    ratios = [float(s["logprob"]) - r for s, r in zip(samples, reference, strict=True)]
    tokens = sum(int(s["tokens"]) for s in samples)
    return {"n": len(ratios), "tokens": tokens, **mean_of(ratios, seed), "per_token": sum(ratios) / tokens}
