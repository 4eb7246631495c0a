"""Paired comparisons of every two of several checkpoints. Takes values by item, writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from openbezoar.judging.statistics import holm, paired_difference, paired_p
from openbezoar.records import Row
from openbezoar.runs import step_seed


def every_pair(values: Mapping[str, Mapping[Any, float]], seed: int, what: Mapping[str, str]) -> list[Row]:
    """{a, b, …what, n, difference, low, high, p} for every two names: b's values less a's over the items that both have.

    b stands later. n: items. low, high: 95 % bootstrap interval over items. p: of the paired
    test that fits, not corrected for the number of comparisons. Two names without an item in
    common are not compared.
    """
    rows = []
    for a, b in combinations(values, 2):
        shared = [item for item in values[a] if item in values[b]]
        if not shared:
            continue
        later, earlier = [values[b][i] for i in shared], [values[a][i] for i in shared]
        own = step_seed(seed, "difference", a, b, *what.values())
        difference, low, high = paired_difference(later, earlier, own)
        rows.append({"a": a, "b": b, **what, "n": len(shared), "difference": difference, "low": low, "high": high, "p": paired_p(later, earlier, own)})
    return rows


def correct(rows: Sequence[Row]) -> None:
    """Give each row ``p_holm``: its p corrected for all of these rows."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
