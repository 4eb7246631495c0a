"""The report's section of preference pairs: what each step made of which answers, and some of the pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openbezoar.reporting.document import Block, Fold, Grid, Paragraph, Section, Texts
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.funnels import ROWS
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate, number, shorten, tally
from openbezoar.rows.held import transcript
from openbezoar.rows.messages import texts_in
from openbezoar.rows.records import Row
from openbezoar.verbs.pairs.result import PairsNumbers

SHOWN, LONGEST = 3, 1200  # pairs of a step; characters of a text

HEADERS = (
    "step",
    "prompts",
    "answers",
    "pairs",
    "picked",
    "mean margin",
    "words, chosen",
    "words, rejected",
    "longer answer chosen",
    "twice the length paid",
    "chosen, by",
    "rejected, by",
    "dropped",
)


def sections(facts: RunFacts) -> list[Section]:
    """A line a step, and its first pairs; nothing without one."""
    results = facts.results(PairsNumbers)
    if not results:
        return []
    about = (
        "Answers were paired as the step says. A share of pairs whose longer answer is the chosen one that is far from"
        " one half teaches length, whatever the margin; 'length_bias: remove' takes off what scores pay for it."
    )
    note = "In brackets: 95 % interval (Wilson), of the pairs whose answers differ in length."
    table = Table(HEADERS, tuple(_line(result) for result in results), note)
    blocks: list[Block] = [Paragraph(about), Grid(table, "Preference pairs", stack=True)]
    for result in results:
        if shown := list(_examples(result)):
            blocks.append(Fold(f"{result.step.name}: {len(shown)} of its pairs", tuple(shown)))
    return [Section("Preference pairs", tuple(blocks))]


def _line(result: PairsNumbers) -> tuple[str, ...]:
    longer, settings = result.longer_chosen, result.step.settings
    known = None if longer is None or longer.value is None else estimate(longer.value, longer.low, longer.high, 2)
    by = f" by {settings['by']}" if settings.get("by") else ""
    return (
        result.step.name,
        number(result.rows),
        number(result.answers),
        number(result.pairs),
        f"{settings.get('pick', NOTHING)}{by}",
        number(result.margin),
        number(result.chosen_words, 1),
        number(result.rejected_words, 1),
        known or NOTHING,
        number(result.length_pays),
        tally(result.chosen_by),
        tally(result.rejected_by),
        tally(result.dropped()),
    )


def _examples(result: PairsNumbers) -> Iterator[Texts]:
    """Pairs from the beginning, the middle and the end of a step's rows, so that nobody chose them."""
    rows: Sequence[Row] = list(result.step.rows(ROWS))
    for place in dict.fromkeys(len(rows) * part // SHOWN for part in range(SHOWN) if rows):
        row = rows[place]
        texts = {
            "prompt": transcript(row["prompt"]),
            **{
                f"{name}, by {row[f'{name}_by']}{_score(row, name)}": "\n\n".join(texts_in(row[name]))
                for name in ("chosen", "rejected")
            },
        }
        yield Texts(tuple((f"{row['id']}: {label}", shorten(text, LONGEST)) for label, text in texts.items()))


def _score(row: Row, name: str) -> str:
    score = row.get(f"{name}_score")
    return "" if score is None else f", {score:.3f}"
