"""What training changed: each measure before and after, with the verdict on every step of the way.

Asks the steps' results; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.measured import OUTDONE, Difference
from openbezoar.reporting.scores import answer_differences, checkpoints, differences, published
from openbezoar.reporting.scores_table import Column, columns
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate

OF_CHANCE = {"better": "above chance", "worse": "below chance"}
NOTE = (
    "One row a measure; the last columns say what each step changed: better or worse if chance alone would show as"
    " large a difference in fewer than 5 of 100 cases, corrected (Holm) for how many comparisons its evaluation made,"
    f" else noise; {NOTHING} if its evaluation did not compare the two. In brackets: 95 % interval. A win rate is held"
    " against an even one. A reward accuracy is held against chance where the step began at the reference, else against"
    " the accuracy before, both on the same pairs."
)


def gains_table(facts: RunFacts) -> Table:
    """The recipe's own checkpoints in order; no rows where there are not two of them, or nothing was compared."""
    others = published(facts)
    names = [name for name in checkpoints(facts) if name not in others]
    listed = [column for column in columns(facts) if any(name in column.scores for name in names)]
    kinds = {column.kind for column in listed}
    listed = [column for column in listed if OUTDONE.get(column.kind) not in kinds]
    if len(names) < 2 or not listed:
        return Table((), ())
    found = [*differences(facts), *answer_differences(facts)]
    rows = tuple(_row(column, names, found) for column in listed)
    return Table(("measure", *names, *(f"{a} → {b}" for a, b in pairwise(names))), rows, NOTE)


def is_of(difference: Difference, column: Column) -> bool:
    """Whether a difference is of what a column tells."""
    return (difference.source, difference.kind, difference.name) == (column.source, column.kind, column.name)


def _row(column: Column, names: Sequence[str], found: Sequence[Difference]) -> tuple[str, ...]:
    own = [d for d in found if is_of(d, column)]
    steps = (_verdict(column, own, before, after) for before, after in pairwise(names))
    return column.header(), *(column.cell(name) for name in names), *steps


def _verdict(column: Column, own: Sequence[Difference], before: str, after: str) -> str:
    """What one step changed, in a word and a number."""
    for d in own:
        if (d.before, d.after) == (before, after):
            word = OF_CHANCE.get(d.verdict, d.verdict) if d.chance else d.verdict
            return f"{word} {estimate(d.value, d.low, d.high, column.digits, sign=True)}"
    return NOTHING
