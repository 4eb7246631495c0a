"""Intervals for means, paired differences and shares. Reads and writes nothing; numpy only.

Means and differences get a percentile bootstrap interval (Efron 1979): the items are drawn
again with replacement ``DRAWS`` times and the 2.5th and 97.5th percentiles of the draws'
means are its ends. Shares get Wilson's score interval (Wilson 1927), which stays inside
[0, 1] and is honest for small n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 2000
LEVEL = 0.95
_Z = 1.959963984540054  # 97.5th percentile of the standard normal
_CHUNK = 1 << 22  # resampled values held at a time


def mean_interval(values: Sequence[float], seed: int, draws: int = DRAWS) -> tuple[float, float, float]:
    """Mean of independent items with a 95 % percentile bootstrap interval: (mean, low, high).

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
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(data.mean()), float(low), float(high)


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int, draws: int = DRAWS) -> tuple[float, float, float]:
    """Mean of a[i] - b[i] over the same items with its interval: (difference, low, high).

    Raises ValueError if the two differ in length or are empty.
    """
    if len(a) != len(b):
        raise ValueError(f"paired_difference needs the same items on both sides, got {len(a)} and {len(b)}")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], seed, draws)


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
