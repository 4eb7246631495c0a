"""The report's section of scores: the table, its intervals as pictures, and which differences are more than noise.

Takes what ``scores_table`` and ``scores`` tell; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from openbezoar.reporting.document import Block, Fold, Gallery, Grid, Paragraph, Picture, Point, Points, Section
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.figures import IntervalRow, interval_chart
from openbezoar.reporting.measured import Difference
from openbezoar.reporting.scores import answer_differences, checkpoints, differences, scored
from openbezoar.reporting.scores_table import columns, scores_table
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate, plural

WORDS = {"better": "better", "worse": "worse", "changed": "different", "noise": "no clear difference"}


def scores_section(facts: RunFacts) -> Section | None:
    """Everything that was scored; None if nothing was."""
    table = scores_table(facts)
    if not table.rows:
        return None
    about = (
        "One row a checkpoint, in the order in which they were made. In the pictures the dot is the score, the line its"
        " 95 % interval, the dashed line the first checkpoint."
    )
    blocks: list[Block] = [
        Paragraph(about),
        Grid(table, "Scores of every checkpoint", stack=True),
        Gallery(tuple(_pictures(facts))),
    ]
    results = scored(facts)
    blocks += [block for result in results for block in result.blocks()]
    tested = [*differences(facts), *answer_differences(facts, results)]
    return Section("Scores", (*blocks, *difference_blocks(tested)))


def _pictures(facts: RunFacts) -> list[Picture]:
    lines = []
    for number, column in enumerate(columns(facts), 1):
        rows = [
            IntervalRow(name, s.value, s.low, s.high) for name in checkpoints(facts) if (s := column.scores.get(name))
        ]
        if svg := interval_chart(rows, column.header()):
            lines.append(Picture(svg, f"score-{number}", f"{column.header()} by checkpoint, with 95 % intervals"))
    return lines


def difference_blocks(found: Sequence[Difference]) -> list[Block]:
    """Which differences are outside noise, in words, and all of them as a table; nothing without any."""
    if not found:
        return []
    outside = [d for d in found if d.outside_noise]
    points = tuple(Point(f"{d}.", d.verdict) for d in outside)
    blocks: list[Block] = [Paragraph(noise_sentence(found)), *([Points(points)] if points else [])]
    return [
        *blocks,
        Fold(
            f"All paired differences ({len(found)})",
            (Grid(differences_table(found), "Paired differences", stack=True),),
        ),
    ]


def noise_sentence(found: Sequence[Difference]) -> str:
    """How many of the differences are more than noise, and by what test."""
    outside = sum(d.outside_noise for d in found)
    tested, untested = (
        "p below 0.05, corrected for the number of comparisons by Holm's method",
        "the 95 % interval excludes 0",
    )
    without = sum(d.p is None for d in found)
    how = (
        tested
        if not without
        else untested
        if without == len(found)
        else f"{tested}; {untested} where this run has no p"
    )
    count = (
        f"Of {plural(len(found), 'paired difference')} between two checkpoints on the same items, {outside}"
        f" {'is' if outside == 1 else 'are'} outside noise ({how})."
    )
    return f"{count} The 95 % intervals are each by itself, not corrected."


def differences_table(found: Sequence[Difference]) -> Table:
    """One row a difference, those outside noise first."""
    rows = tuple(
        (
            d.label,
            f"{d.before} → {d.after}",
            estimate(d.value, d.low, d.high, sign=True),
            NOTHING if d.n is None else str(d.n),
            NOTHING if d.p is None else f"{d.p:.2g}",
            WORDS[d.verdict],
        )
        for d in sorted(found, key=lambda d: not d.outside_noise)
    )
    return Table(
        ("measured", "from → to", "difference [95 % interval]", "n", "p, corrected", "verdict on the later one"), rows
    )
