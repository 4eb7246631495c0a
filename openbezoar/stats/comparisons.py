"""Paired comparisons of every two of several checkpoints. Takes values by item, writes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

from openbezoar.stats.intervals import holm, paired_difference, paired_p
from openbezoar.stats.seeds import step_seed


def every_pair(
    values: Mapping[str, Mapping[Any, float]],
    seed: int,
    what: Mapping[str, str],
    *,
    unit: Callable[[Any], Hashable] = lambda item: item,
) -> list[dict[str, Any]]:
    """{a, b, …what, n, difference, low, high, p} for every two names: b's values less a's over the
    items that both have.

    b stands later. unit: what is independent, where items are not: the question of a turn.
    Values of a unit are averaged over the items that both have, so that a turn which one
    model lacks counts for neither. n: units. low, high: 95 % bootstrap interval over units.
    p: of the paired test that fits, not corrected for the number of comparisons. Two names
    without an item in common are not compared; a value that is no finite number is none.
    """
    rows = []
    for a, b in combinations(values, 2):
        shared = [
            item
            for item in values[a]
            if item in values[b] and math.isfinite(values[a][item]) and math.isfinite(values[b][item])
        ]
        if not shared:
            continue
        later, earlier = (_means({item: values[name][item] for item in shared}, unit) for name in (b, a))
        own = step_seed(seed, "difference", a, b, *what.values())
        difference, low, high = paired_difference(later, earlier, own)
        rows.append(
            {
                "a": a,
                "b": b,
                **what,
                "n": len(later),
                "difference": difference,
                "low": low,
                "high": high,
                "p": paired_p(later, earlier, own),
            }
        )
    return rows


def _means(values: Mapping[Any, float], unit: Callable[[Any], Hashable]) -> list[float]:
    """The mean of each unit's values, in the order first met."""
    units: dict[Hashable, list[float]] = {}
    for item, value in values.items():
        units.setdefault(unit(item), []).append(value)
    return [sum(of) / len(of) for of in units.values()]


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Give each row ``p_holm``: its p corrected for all of these rows."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
