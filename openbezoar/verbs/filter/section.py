"""The report's sections about data: what each scheme asked for, what was kept, what was dropped and why."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator

from openbezoar.cleaning.units import words
from openbezoar.reporting.document import Block, Fold, Gallery, Grid, Paragraph, Part, Picture, Section, Texts
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.figures import bar_chart, funnel_chart
from openbezoar.reporting.funnels import ROWS, Funnel, funnel_table, funnels
from openbezoar.reporting.results import StepFacts
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, plural, shorten, slug, tally
from openbezoar.rows.held import exchange_in, is_talk, shown_in
from openbezoar.rows.records import Row
from openbezoar.verbs.filter.result import REJECTED, UNSCORED, FilterNumbers

SHOWN = 1200  # characters of an example's text


def sections(facts: RunFacts) -> list[Section]:
    """Funnels, lengths, ratings, what was cleaned, and examples of dropped rows; nothing if no step
    made or filtered data.
    """
    all_funnels = funnels(facts)
    if not all_funnels:
        return []
    about = (
        "Every row that a step dropped, changed or could not score is counted under its reason. Unscored rows have no"
        " verdict; they are neither kept nor rejected."
    )
    blocks: list[Block] = [
        Paragraph(about),
        Grid(funnel_table(all_funnels), "Rows in and out of every step", stack=True),
    ]
    for funnel in all_funnels:
        inside: list[Block] = [Gallery(pictures)] if (pictures := tuple(_pictures(funnel))) else []
        for result in _filters(funnel):
            inside += [*_contamination(result), *_likelihood(result), *_details(result)]
        if inside:
            blocks.append(Part(" → ".join(step.name for step in funnel.steps), tuple(inside)))
    return [Section("Data", tuple(blocks))]


def _filters(funnel: Funnel) -> list[FilterNumbers]:
    return [result for result in funnel.results if isinstance(result, FilterNumbers)]


def _details(result: FilterNumbers) -> Iterator[Block]:
    """What is long: rows after each rule, what was cleaned, examples by rule."""
    name = result.step.name
    if way := list(_way(result)):
        yield Fold(f"{name}: rows left after each rule", tuple(way))
    if cleaned := list(_cleaned(result)):
        yield Fold(f"{name}: what was cleaned", tuple(cleaned))
    if examples := list(_dropped(result)):
        yield Fold(f"{name}: examples of dropped rows, by rule", tuple(examples))


# ------------------------------------------------------------------------------ pictures

EDGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # of the bins of lengths, in words; the last is open


def _pictures(funnel: Funnel) -> Iterator[Picture]:
    """Rows left after each rule of a funnel's filters and their judges' ratings; the length of what
    is left at its end.
    """
    for result in _filters(funnel):
        name = result.step.name
        if svg := funnel_chart(result.rows_left(), title := f"{name}: rows left after each rule"):
            yield Picture(svg, f"{slug(name)}-funnel", title)
        ratios = result.likelihood.ifd_histogram if result.likelihood else {}
        title = f"{name}: instruction-following difficulty"
        if svg := bar_chart({"rows": list(ratios.values())}, list(ratios), title, "IFD, at least", "rows"):
            yield Picture(svg, f"{slug(name)}-ifd", title)
        ratings, title = result.rating_histogram, f"{name}: the judge's ratings"
        if svg := bar_chart({"rows": list(ratings.values())}, list(ratings), title, "rating", "rows"):
            yield Picture(svg, f"{slug(name)}-ratings", title)
    last = funnel.steps[-1]
    bins = [f"{edge:g}" if edge < 1000 else f"{edge // 1000}k" for edge in EDGES]
    if svg := bar_chart(
        lengths(last), bins, title := f"{last.name}: length of the rows that are left", "words, at least", "rows"
    ):
        yield Picture(svg, f"{slug(last.name)}-lengths", title)


def lengths(step: StepFacts) -> dict[str, list[int]]:
    """How many instructions and answers of a step's rows have a length in words within each bin of ``EDGES``."""
    counts = {"instruction": [0] * len(EDGES), "answer": [0] * len(EDGES)}
    for row in step.rows(ROWS):
        asked, answered = exchange_in(row) if is_talk(row) else shown_in(row).values()
        for label, text in (("instruction", asked), ("answer", answered)):
            if isinstance(text, str) and (n := words(text)):
                counts[label][bisect_right(EDGES, n) - 1] += 1
    return counts


# -------------------------------------------------------------------------------- tables


def _way(result: FilterNumbers) -> Iterator[Block]:
    """Rows left after each rule, the judge and the review by hand."""
    rows, before = [], None
    for name, left in result.rows_left():
        rows.append((name, NOTHING if before is None else f"{left - before:+d}", str(left)))
        before = left
    if rows:
        yield Grid(Table(("rule", "rows", "rows left"), tuple(rows)))
    if result.reviewed:
        yield Paragraph(f"Decided by hand: {tally(result.reviewed)}.")


def _contamination(result: FilterNumbers) -> Iterator[Block]:
    """The rows that share a run of words with a benchmark, all of them."""
    if line := result.compared_with():
        yield Paragraph(line)
        rejected = result.step.rows(REJECTED)
        hits = [(str(row.get("id")), str(row.get("why"))) for row in rejected if row.get("rule") == "contaminated"]
        if hits:
            yield Grid(Table(("row", "benchmark, its row and the words in common"), tuple(hits)))


def _likelihood(result: FilterNumbers) -> Iterator[Block]:
    """Which rows a model's likelihood dropped, and how its numbers are distributed over all that it was asked about."""
    asked = result.likelihood
    if asked is None or not (line := result.by_likelihood()):
        return
    yield Paragraph(line)
    rows = [
        (name, *(f"{value:.4g}" for value in quantiles.values()))
        for name, quantiles in (("perplexity", asked.perplexity), ("IFD", asked.ifd))
        if quantiles
    ]
    if rows:
        shares = next(q for q in (asked.perplexity, asked.ifd) if q)
        yield Grid(Table(("quantile", *shares), tuple(rows)))


def _cleaned(result: FilterNumbers) -> Iterator[Block]:
    rows = []
    for name, changed in result.cleaned.items():
        for number, example in enumerate(changed.examples):
            before, after = (json.dumps(example[key], ensure_ascii=True) for key in ("before", "after"))
            first = (name, str(changed.rows)) if number == 0 else ("", "")
            rows.append((*first, f"{example['id']}: {example['field']}", before, after))
    if rows:
        yield Grid(Table(("cleaned", "rows", "example", "before", "after"), tuple(rows)))


def _dropped(result: FilterNumbers) -> Iterator[Block]:
    """The first rows that each reason took away, as the manifest has them, or by their ids in an older one."""
    step, found = result.step, result.examples
    by_id: dict[str, Row] = {}
    if any(isinstance(row, str) for rows in found.values() for row in rows):
        by_id = {str(row.get("id")): row for name in (REJECTED, UNSCORED) for row in step.rows(name)}
    for reason, rows in found.items():
        blocks = [_texts(by_id.get(row, {"id": row}) if isinstance(row, str) else row) for row in rows]
        n = step.counts.get(reason)
        title = f"{reason}: {plural(n, 'row')}, {len(rows)} shown" if isinstance(n, int) else reason
        yield Part(title, tuple(blocks))


def _texts(row: Row) -> Texts:
    """A dropped row: what was asked, what was answered, why it was dropped."""
    texts = {**shown_in(row), "why": row.get("why", row.get("reply"))}
    name = f"Row {row.get('id', NOTHING)}"
    return Texts(tuple((f"{name}: {label}", shorten(str(text), SHOWN)) for label, text in texts.items() if text))
