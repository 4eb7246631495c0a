"""The report's section of choices: what was tried, and what was taken. Writes nothing."""

from __future__ import annotations

from typing import Any

from openbezoar.reporting.document import Grid, Paragraph, Section
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.results import PairedDifference
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate, number
from openbezoar.verbs.choose.result import ChooseNumbers

ABOUT = (
    "Each value was a training of its own, and the one with the best number on the held-out rows was taken. The number"
    " of the one that was taken is too good for having been taken by it: what it is worth, the tables of checkpoints"
    " say, on other rows."
)


def sections(facts: RunFacts) -> list[Section]:
    """A table a choice; nothing without one."""
    choices = facts.results(ChooseNumbers)
    if not choices:
        return []
    tables = [Grid(_table(n), f"What {n.step.name} was chosen from", stack=True) for n in choices]
    return [Section("Values that were tried", (Paragraph(ABOUT), *tables))]


def _table(n: ChooseNumbers) -> Table:
    values: dict[str, dict[str, Any]] = n.step.settings.get("values") or {}
    keys = list(dict.fromkeys(key for of in values.values() for key in of))
    rows = []
    for name, one in n.candidates.items():
        difference = None if name == n.chosen else n.against_chosen(name)
        away, p = NOTHING, NOTHING
        if difference is not None:
            away, p = _less(difference, name), number(difference.p_holm)
        after = NOTHING if one.after is None else estimate(one.after, one.low, one.high)
        told = [NOTHING if (value := values.get(name, {}).get(key)) is None else str(value) for key in keys]
        rows.append((name, *told, number(one.before), f"{after} n={number(one.n)}", away, p, _mark(name, n)))
    headers = ("step", *keys, f"held-out {n.by} before", "after", "less the chosen one's", "p (Holm)", "chosen")
    better = "lower" if n.by == "loss" else "higher"
    note = (
        f"A {better} {n.by} is better. In brackets: 95 % interval over the held-out rows. p is of the paired test,"
        f" corrected (Holm) for all {len(n.differences)} pairs of steps; a value whose p is above 0.05 may be as good"
        " as the chosen one."
    )
    return Table(headers, tuple(rows), note)


def _less(difference: PairedDifference, name: str) -> str:
    """What a step has more than the other one of a pair."""
    value, low, high = difference.difference, difference.low, difference.high
    if value is None or low is None or high is None:
        return NOTHING
    return estimate(value, low, high, sign=True) if difference.b == name else estimate(-value, -high, -low, sign=True)


def _mark(name: str, n: ChooseNumbers) -> str:
    return "chosen" if name == n.chosen else ""
