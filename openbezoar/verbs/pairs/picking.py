"""Which two of several answers make a pair. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal, NamedTuple

DEVIATIONS = 2.0  # below the mean, where the rejected answer is looked for: arXiv 2502.16825, mu - 2 sigma


class Picked(NamedTuple):
    """Places of the chosen and the rejected answer, and by how much their scores differ."""

    chosen: int
    rejected: int
    margin: float


def pick(scores: Sequence[float], how: Literal["best_2sigma", "best_worst"]) -> Picked:
    """Two of two answers or more; of equal scores the first one's.

    chosen: the highest score. rejected: the lowest ('best_worst'), or of the others the one nearest to
    mean - 2 sigma (sigma over n, not n - 1). For up to five answers that is the lowest as well, since none
    lies further below the mean than sqrt(n - 1) sigma (Samuelson 1968).
    """
    places = range(len(scores))
    chosen = max(places, key=lambda place: (scores[place], -place))
    aim = min(scores) if how == "best_worst" else fmean(scores) - DEVIATIONS * pstdev(scores)
    others = (place for place in places if place != chosen)
    rejected = min(others, key=lambda place: (abs(scores[place] - aim), place))
    return Picked(chosen, rejected, scores[chosen] - scores[rejected])
