"""Which two of several answers make a pair, and scores that pay nothing for length. Reads and writes nothing.

Reward models of people's comparisons pay for length. What they pay is measured within prompts, so that a prompt
whose answers are all long and all good says nothing: over all answers j to all prompts i

    s_ij = a_i + b (l_ij - mean_j l_ij) + e_ij        l = log of the characters        (1)
    b    = sum (s_ij - mean_j s_ij)(l_ij - mean_j l_ij) / sum (l_ij - mean_j l_ij)^2   (2)

and a score without it is a_i + e_ij, so that a prompt's mean stays. The idea of correcting a reward afterwards by a
regression on length: arXiv 2409.17407, which regresses locally and over all prompts at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal, NamedTuple

DEVIATIONS = 2.0  # below the mean, where the rejected answer is looked for: arXiv 2502.16825, mu - 2 sigma


class Picked(NamedTuple):
    """Places of the chosen and the rejected answer, and by how much their scores differ."""

    chosen: int
    rejected: int
    margin: float


def without_length(
    scores: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]
) -> tuple[list[list[float]], float]:
    """(each prompt's scores as (1) leaves them, b of (2)): b is 0 where no prompt has answers of two lengths.

    lengths: characters of the same answers, each at least 1. b: the score that an answer e times as long gains.
    """
    logs = [[math.log(length) for length in of] for of in lengths]
    apart = [[one - fmean(of) for one in of] for of in logs]
    squares = math.fsum(d * d for of in apart for d in of)
    if squares == 0:
        return [list(of) for of in scores], 0.0
    products = (d * (s - fmean(of)) for of, ds in zip(scores, apart, strict=True) for s, d in zip(of, ds, strict=True))
    slope = math.fsum(products) / squares
    paired = zip(scores, apart, strict=True)
    return [[s - slope * d for s, d in zip(of, ds, strict=True)] for of, ds in paired], slope


def pick(
    scores: Sequence[float],
    how: Literal["best_2sigma", "best_worst"],
    lengths: Sequence[int] = (),
    ratio: float = math.inf,
    ended: Sequence[bool] = (),
) -> Picked | None:
    """Two of two answers or more; of equal scores the first one's. None: no two can be a pair.

    chosen: the highest score. rejected: the lowest ('best_worst'), or of the others the one nearest to
    mean - 2 sigma (sigma over n, not n - 1). For up to five answers that is the lowest as well, since none
    lies further below the mean than sqrt(n - 1) sigma (Samuelson 1968).
    lengths, ratio: of the two answers the longer has at most so many times the length of the other; chosen is then
    the highest score that has such a partner of a lower one, if any score differs.
    ended: whether each answer may be the chosen one, with a partner that scores no higher; all may where it is empty.
    """
    places = range(len(scores))
    aim = min(scores) if how == "best_worst" else fmean(scores) - DEVIATIONS * pstdev(scores)

    def partners(chosen: int) -> list[int]:
        others = [place for place in places if place != chosen]
        if ratio == math.inf and not ended:
            return others
        lower = [n for n in others if scores[n] <= scores[chosen]]
        return lower if ratio == math.inf else [n for n in lower if alike(lengths[n], lengths[chosen])]

    def alike(one: int, other: int) -> bool:
        return max(one, other) <= ratio * min(one, other)

    able = [place for place in places if not ended or ended[place]]
    best_first = sorted(able, key=lambda place: (-scores[place], place))
    found = [(chosen, others) for chosen in best_first if (others := partners(chosen))]
    if not found:
        return None
    # a pair of equal scores is none, so it stands back behind one that is
    chosen, others = next((pair for pair in found if min(scores[n] for n in pair[1]) < scores[pair[0]]), found[0])
    rejected = min(others, key=lambda place: (abs(scores[place] - aim), place))
    return Picked(chosen, rejected, scores[chosen] - scores[rejected])
