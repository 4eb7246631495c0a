"""How often rewards put the preferred of two answers first, and whether the length would have done as well.

Takes rewards and lengths, writes nothing. A reward model's number is worth what it says of pairs
that people compared: its accuracy beside that of the longer answer, on pairs of like length, by
subset, and whether it is right as often as it says it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from openbezoar.stats.intervals import (
    DRAWS,
    Interval,
    grouped_intervals,
    paired_difference,
    ratio,
    share_of,
    widened,
)

LIKE = 0.1
"""Answers are of like length if the shorter one lacks at most this share of the longer one."""
BINS = 5


class PairShare(BaseModel):
    """A share of n pairs with its 95 % interval; the value is None of no pairs."""

    model_config = ConfigDict(extra="ignore")

    value: float | None = None
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, hits: Sequence[bool]) -> Self:
        return cls(**share_of(hits)._asdict())

    def text(self) -> str:
        return "no pairs" if self.value is None else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


class SureBin(BaseModel):
    """Pairs of which a model was about as sure. said: the mean of s(|r_1 - r_2|), its chance of being right by the
    Bradley-Terry model; right: how often it was.
    """

    said: float
    right: PairShare


class PairAccuracy(BaseModel):
    """What rewards are worth on pairs whose first answer is preferred.

    length: of the rule that takes the longer answer, or the shorter one where that is right more
    often. gain: accuracy less length's, [value, low, high], paired. matched: on pairs of like
    length. off: expected calibration error, the mean of |said - right| over all pairs.
    """

    accuracy: PairShare
    length: PairShare
    gain: tuple[float, float, float]
    matched: PairShare
    subsets: dict[str, PairShare]
    bins: list[SureBin]
    off: float

    def text(self) -> str:
        return f"{self.accuracy.text()} pairs, the length {self.length.value or 0:.3f}"


def pair_accuracy(
    rewards: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    seed: int,
    subsets: Sequence[str] = (),
    groups: Sequence[Hashable] = (),
    *,
    draws: int = DRAWS,
) -> PairAccuracy:
    """Of pairs, the preferred answer first: their rewards and lengths. Equal rewards are wrong, equal
    lengths count half for either rule. Raises ValueError without pairs.

    groups: what each pair belongs to, such as its prompt; pairs of one group are not independent of each other, so
    whole groups are drawn again for intervals, so many times. Without it every pair is by itself.
    """
    of = groups or range(len(rewards))
    right = [float(chosen > rejected) for chosen, rejected in rewards]
    longer = [0.5 if a == b else float(a > b) for a, b in lengths]
    if 2 * sum(longer) < len(longer):
        longer = [1 - value for value in longer]
    like = [min(a, b) >= (1 - LIKE) * max(a, b) for a, b in lengths]
    named = dict.fromkeys(name for name in subsets if name)
    bins = _bins([abs(a - b) for a, b in rewards], right, of, seed, draws)
    return PairAccuracy(
        accuracy=_share(right, of, seed, draws),
        length=_share(longer, of, seed, draws),
        gain=tuple(_gain(right, longer, of, seed, draws)),
        matched=_share([hit for hit, keep in zip(right, like, strict=True) if keep], _kept(of, like), seed, draws),
        subsets={
            name: _share(
                [hit for hit, own in zip(right, subsets, strict=True) if own == name],
                _kept(of, [own == name for own in subsets]),
                seed,
                draws,
            )
            for name in named
        },
        bins=bins,
        off=sum(abs(one.said - (one.right.value or 0.0)) * one.right.n for one in bins) / len(right),
    )


def _kept(of: Sequence[Hashable], keep: Sequence[bool]) -> list[Hashable]:
    return [group for group, kept in zip(of, keep, strict=True) if kept]


def _share(hits: Sequence[float], of: Sequence[Hashable], seed: int, draws: int) -> PairShare:
    """A share of pairs that are right, ties half: Wilson's interval of the nearest whole number where each is a
    group by itself, else the bootstrap's over groups.
    """
    if len(set(of)) == len(hits):
        part = PairShare.of([place < round(sum(hits)) for place in range(len(hits))])
        return part.model_copy(update={"value": sum(hits) / len(hits) if hits else None})
    value, low, high = widened(_mean_of_groups(hits, of, seed, draws), len(set(of)))
    return PairShare(value=value, low=low, high=high, n=len(hits))


def _gain(right: Sequence[float], longer: Sequence[float], of: Sequence[Hashable], seed: int, draws: int) -> Interval:
    if len(set(of)) == len(right):
        return paired_difference(right, longer, seed, draws=draws)
    return _mean_of_groups([a - b for a, b in zip(right, longer, strict=True)], of, seed, draws)


def _mean_of_groups(values: Sequence[float], of: Sequence[Hashable], seed: int, draws: int) -> Interval:
    """The mean over pairs, with an interval over whole groups."""
    tables: dict[Hashable, list[float]] = {}
    for value, group in zip(values, of, strict=True):
        table = tables.setdefault(group, [0.0, 0.0])
        table[0] += value
        table[1] += 1
    means = [lambda drawn: ratio(drawn[:, 0], drawn[:, 1])]
    (found,) = grouped_intervals(list(tables.values()), means, seed, draws=draws)
    assert found is not None, "no group is empty"
    return found


def _bins(
    margins: Sequence[float], right: Sequence[float], of: Sequence[Hashable], seed: int, draws: int
) -> list[SureBin]:
    """As many pairs in each as in any other, the least sure ones first."""
    order = sorted(range(len(margins)), key=lambda i: margins[i])
    ends = [round(len(order) * k / BINS) for k in range(BINS + 1)]
    bins = []
    for begin, end in itertools.pairwise(ends):
        if own := order[begin:end]:
            said = sum(1 / (1 + math.exp(-min(margins[i], 500.0))) for i in own) / len(own)
            bins.append(SureBin(said=said, right=_share([right[i] for i in own], [of[i] for i in own], seed, draws)))
    return bins
