"""Intervals and tests for means, paired differences, shares and agreement. Reads and writes nothing; numpy only.

Means, differences and agreement get a percentile bootstrap interval (Efron 1979): the items
are drawn again with replacement ``DRAWS`` times, and two quantiles of the draws' values are
its ends. For few items those are further out than 2.5 % and 97.5 % (Hesterberg 2015, "expanded
percentile"), since the plain ones cover 90 % instead of 95 % for ten items. Shares get
Wilson's score interval (Wilson 1927), which stays inside [0, 1] and is honest for small n.

Tests are two-sided and paired: McNemar's (1947) for shares, random signs (Fisher 1935) for
other means; ``holm`` (1979) corrects for how many were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
SIGNS = 10_000
LEVEL = 0.95
EXACT = 50  # discordant items up to which McNemar's test is exact
_CHUNK = 1 << 22  # resampled values held at a time
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(0.5 + LEVEL / 2)

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def mean_interval(values: Sequence[float], seed: int, draws: int = DRAWS, *, level: float = LEVEL) -> Interval:
    """Mean of independent items with its bootstrap interval: (mean, low, high).

    The same values and seed give the same interval. One value gives an interval of no
    width, which says nothing about its error: report n beside it. Raises ValueError
    without values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"mean_interval needs one value or more in one dimension, got shape {data.shape}")
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    step = max(1, _CHUNK // data.size)
    for first in range(0, draws, step):
        n = min(step, draws - first)
        means[first : first + n] = data[generator.integers(0, data.size, size=(n, data.size))].mean(axis=1)
    low, high = np.quantile(means, tails(data.size, level))
    return Interval(float(data.mean()), float(low), float(high))


def paired_difference(
    a: Sequence[float], b: Sequence[float], seed: int, *, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Mean of a[i] - b[i] over the same items with its interval: (difference, low, high).

    Raises ValueError if the two differ in length or are empty.
    """
    return mean_interval(_differences(a, b), seed, draws, level=level)


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    if len(a) != len(b):
        raise ValueError(f"paired values need the same items on both sides, got {len(a)} and {len(b)}")
    return [x - y for x, y in zip(a, b, strict=True)]


def grouped_intervals(
    groups: Any, statistics: Sequence[Callable[[Array], Array]], seed: int, *, draws: int = DRAWS
) -> list[Interval | None]:
    """Statistics of summed tables, with bootstrap intervals over whole groups.

    groups: [groups, …], each group's own table (questions, each with the counts of its
    votes): votes within a group are not independent, so the group is what is drawn again.
    A statistic takes summed tables [draws, …] to values [draws], NaN where it has none; the
    result is None where it has none for the data as they are, or there is no group.
    """
    tables = np.asarray(groups, dtype=np.float64)
    if tables.shape[0] == 0:
        return [None] * len(statistics)
    n, flat = tables.shape[0], tables.reshape(tables.shape[0], -1)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    resampled = (times @ flat).reshape(draws, *tables.shape[1:])
    intervals: list[Interval | None] = []
    for statistic in statistics:
        value, again = statistic(tables.sum(axis=0)[None])[0], statistic(resampled)
        again = again[np.isfinite(again)]
        if not np.isfinite(value) or again.size == 0:
            intervals.append(None)
            continue
        low, high = np.quantile(again, tails(n, LEVEL))
        intervals.append(Interval(float(value), float(low), float(high)))
    return intervals


def tails(n: int, level: float) -> list[float]:
    """Quantiles of the bootstrap's distribution that are an interval's ends for n items.

    Hesterberg (2015): the normal tail at -sqrt(n / (n - 1)) t, where t is Student's quantile
    with n - 1 degrees of freedom; here by the Cornish-Fisher expansion (Abramowitz & Stegun 26.7.5).
    """
    tail = (1 - level) / 2
    if n < 2:
        return [tail, 1 - tail]
    z, v = _NORMAL.inv_cdf(1 - tail), n - 1
    t = (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
    tail = _NORMAL.cdf(-math.sqrt(n / v) * t)
    return [tail, 1 - tail]


def proportion_interval(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for k successes in n trials: (low, high). No trial: (0, 1)."""
    if not 0 <= k <= n:
        raise ValueError(f"proportion_interval needs 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return 0.0, 1.0
    share, z2 = k / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the edges the formula gives exactly 0 or 1; rounding does not.
    return (0.0 if k == 0 else max(0.0, centre - half)), (1.0 if k == n else min(1.0, centre + half))


class Share(NamedTuple):
    """A share of n with its 95 % interval; None of nothing."""

    value: float | None
    low: float
    high: float
    n: int


def share_of(hits: Sequence[bool | int]) -> Share:
    """The share of ones among zeros and ones, with Wilson's interval."""
    return Share(sum(hits) / len(hits) if hits else None, *proportion_interval(sum(hits), len(hits)), len(hits))


def widened(interval: Interval, groups: int) -> Interval:
    """The interval of a mean of values from 0 to 1 over groups; where all groups have the same one,
    drawing again shows no spread.

    Then as large a share of groups may be otherwise as Wilson's interval allows for 0 of so
    many, and those may lie at either end; for a share of 0 or 1 that is Wilson's interval.
    """
    value, low, high = interval
    if high - low > 1e-9:
        return interval
    other = proportion_interval(0, groups)[1]
    return Interval(value, value - other * value, value + other * (1 - value))


def auc(
    scores: Sequence[float], good: Sequence[bool], groups: Sequence[Any], *, seed: int, draws: int = DRAWS
) -> Interval | None:
    """Chance that a good item scores higher than a bad one, ties counting half: the area under the
    ROC curve (Hanley & McNeil 1982).

    groups: what each item belongs to; whole groups are drawn again for the interval. None
    without a good or without a bad item.
    """
    values, order = np.asarray(scores, dtype=np.float64), np.argsort(scores, kind="stable")
    if values.size == 0:
        return None
    positive = np.asarray(good, dtype=np.float64)[order]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of = np.array([numbers[group] for group in groups])[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) > 0]))

    def areas(times: Array) -> Array:
        """From how often each group was drawn, [draws, groups]."""
        weights = times[:, of]
        above, below = (np.add.reduceat(weights * part, starts, axis=1) for part in (positive, 1 - positive))
        lower = below.cumsum(axis=1) - below
        return ratio((above * (lower + below / 2)).sum(axis=1), above.sum(axis=1) * below.sum(axis=1))

    value = float(areas(np.ones((1, len(numbers))))[0])
    if not math.isfinite(value):
        return None
    generator, n, step = np.random.default_rng(seed), len(numbers), max(1, _CHUNK // values.size)
    again = np.concatenate(
        [
            areas(generator.multinomial(n, np.full(n, 1 / n), size=min(step, draws - first)).astype(np.float64))
            for first in range(0, draws, step)
        ]
    )
    low, high = np.quantile(again[np.isfinite(again)], tails(n, LEVEL))
    return widened(Interval(value, float(low), float(high)), n)


# ------------------------------------------------------------------------------- agreement


def agreement_of(tables: Array) -> Array:
    """Share on the diagonal of tables of counts [draws, labels, labels]; NaN for an empty one."""
    total = tables.sum(axis=(1, 2))
    return ratio(np.trace(tables, axis1=1, axis2=2), total)


def kappa_of(tables: Array) -> Array:
    """Cohen's kappa (1960) of tables [draws, labels, labels]: (p_o - p_e) / (1 - p_e); NaN where
    both raters only ever gave one and the same label.
    """
    total = tables.sum(axis=(1, 2))
    chance = ratio((tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1), total**2)
    # Exactly 1 only if one label has all counts; rounding must not make a kappa of it.
    return ratio(agreement_of(tables) - chance, np.where(chance > 1 - 1e-12, 0.0, 1 - chance))


def ratio(above: Array, below: Array) -> Array:
    """Element by element, NaN where ``below`` is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan, dtype=np.float64), where=below != 0)


# ----------------------------------------------------------------------------------- tests


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of McNemar's test that two shares over the same items (0 or 1) are equal.

    Exact (binomial) up to ``EXACT`` items on which the two differ, then by the normal
    distribution without a correction for continuity. No such item: 1.
    """
    differences = _differences(a, b)
    up, down = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    n = up + down
    if n == 0:
        return 1.0
    if n <= EXACT:
        return min(1.0, sum(math.comb(n, k) for k in range(min(up, down) + 1)) * 0.5 ** (n - 1))
    return math.erfc(abs(up - down) / math.sqrt(2 * n))


def random_signs(a: Sequence[float], b: Sequence[float], seed: int, draws: int = SIGNS) -> float:
    """Two-sided p of a paired randomisation test that the mean of a[i] - b[i] is 0.

    Under that hypothesis (and differences as likely in one direction as in the other) each
    difference might as well have the other sign; p is the share of ``draws`` random signs,
    the observed ones among them, whose sum is at least as far from 0. Where that is finer
    than draws can tell, p is Hoeffding's (1963) bound on it, 2 exp(-S^2 / (2 sum d^2)), or else no
    difference could be seen among some hundred comparisons, however large.
    """
    differences = np.asarray(_differences(a, b), dtype=np.float64)
    differences = differences[differences != 0]
    if differences.size == 0:
        return 1.0
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()  # sums in another order round otherwise
    generator = np.random.default_rng(seed)
    step, extreme = max(1, _CHUNK // differences.size), 1
    for first in range(0, draws - 1, step):
        signs = (
            generator.integers(0, 2, size=(min(step, draws - 1 - first), differences.size), dtype=np.int8) * 2.0 - 1.0
        )
        extreme += int((np.abs(signs @ differences) >= observed).sum())
    bound = 2 * math.exp(-(float(differences.sum()) ** 2) / (2 * float((differences**2).sum())))
    return min(extreme / draws, bound)


def paired_p(a: Sequence[float], b: Sequence[float], seed: int) -> float:
    """Two-sided p of the paired test that fits the items: McNemar's where all are 0 or 1, else random signs."""
    if {*a, *b} <= {0, 1}:
        return mcnemar(a, b)
    return random_signs(a, b, seed)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the same order (Holm 1979): the smallest times n, the
    next times n - 1, never falling, at most 1.
    """
    corrected, least = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, ps[index] * (len(ps) - place)))
        corrected[index] = least
    return corrected
