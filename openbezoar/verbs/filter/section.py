"""The report's sections about data: what each scheme asked for, what was kept, what was dropped and why."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from openbezoar.cleaning.units import words
from openbezoar.reporting.document import Block, Fold, Gallery, Grid, Paragraph, Part, Picture, Section, Texts
from openbezoar.reporting.facts import RunFacts, StepFacts
from openbezoar.reporting.figures import bar_chart, funnel_chart
from openbezoar.reporting.scores import mapping
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, plural, shorten, slug, tally
from openbezoar.rows.records import Row

SHOWN = 1200  # characters of an example's text


@dataclass(frozen=True)
class Funnel:
    """One scheme's way from rows asked for to rows kept."""

    scheme: str
    steps: tuple[StepFacts, ...]  # the generate step if there is one, then the filters on it


def funnels(facts: RunFacts) -> list[Funnel]:
    """One funnel a generate step, and one a filter step that reads none or several of them."""
    found, placed = [], set()
    for made in facts.of("generate"):
        chain = [made]
        for step in facts.of("filter"):
            if chain[-1].name in step.inputs and len(_sources(facts, step)) == 1:
                chain.append(step)
                placed.add(step.name)
        found.append(Funnel(scheme_of(made), tuple(chain)))
    found += [Funnel(step.name, (step,)) for step in facts.of("filter") if step.name not in placed]
    return found


def scheme_of(step: StepFacts) -> str:
    return str(step.settings.get("generate") or step.name)


def _sources(facts: RunFacts, step: StepFacts) -> list[StepFacts]:
    return [s for s in facts.lineage([step.name]) if s.verb == "generate"]


def funnel_table(found: list[Funnel]) -> Table:
    """Rows in and out of every step, with what was dropped by reason."""
    rows = []
    for funnel in found:
        for step in funnel.steps:
            rows.append((funnel.scheme, f"{step.name} ({step.verb})", *in_out(step), tally(step.counts)))
    return Table(
        ("scheme", "step", "rows asked for or read", "rows kept", "rejected", "unscored", "counted by reason"),
        tuple(rows),
    )


def row_counts(step: StepFacts) -> dict[str, int | None]:
    """Rows asked of or read by a generate or filter step, kept, rejected and unscored; None where
    it has no such count.
    """
    kept = step.rows_in("rows.jsonl")
    if step.verb == "generate":
        return {"in": step.settings.get("rows"), "kept": kept, "rejected": None, "unscored": None}
    rejected, unscored = step.rows_in("rejected.jsonl"), step.rows_in("unscored.jsonl")
    return {
        "in": step.numbers.get("rows_in", kept + rejected + unscored),
        "kept": kept,
        "rejected": rejected,
        "unscored": unscored,
    }


def in_out(step: StepFacts) -> tuple[str, ...]:
    """The same as text."""
    return tuple(NOTHING if n is None else str(n) for n in row_counts(step).values())


def data_section(facts: RunFacts) -> Section | None:
    """Funnels, lengths, ratings, what was cleaned, and examples of dropped rows; None if no step
    made or filtered data.
    """
    found = funnels(facts)
    if not found:
        return None
    about = (
        "Every row that a step dropped, changed or could not score is counted under its reason. Unscored rows have no"
        " verdict; they are neither kept nor rejected."
    )
    blocks: list[Block] = [Paragraph(about), Grid(funnel_table(found), "Rows in and out of every step", stack=True)]
    for funnel in found:
        inside: list[Block] = [Gallery(pictures)] if (pictures := tuple(_pictures(funnel))) else []
        inside += [block for step in funnel.steps for block in (*_contamination(step), *_details(step))]
        if inside:
            blocks.append(Part(" → ".join(step.name for step in funnel.steps), tuple(inside)))
    return Section("Data", tuple(blocks))


def _details(step: StepFacts) -> Iterator[Block]:
    """What is long: rows after each rule, what was cleaned, examples by rule."""
    if way := list(_way(step)):
        yield Fold(f"{step.name}: rows left after each rule", tuple(way))
    if cleaned := list(_cleaned(step)):
        yield Fold(f"{step.name}: what was cleaned", tuple(cleaned))
    if examples := list(_dropped(step)):
        yield Fold(f"{step.name}: examples of dropped rows, by rule", tuple(examples))


# ------------------------------------------------------------------------------ pictures

EDGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # of the bins of lengths, in words; the last is open


def _pictures(funnel: Funnel) -> Iterator[Picture]:
    """Rows left after each rule of a funnel's filters and their judges' ratings; the length of what
    is left at its end.
    """
    for step in funnel.steps:
        stages = [(str(name), int(left)) for name, left in step.numbers.get("funnel") or ()]
        if svg := funnel_chart(stages, title := f"{step.name}: rows left after each rule"):
            yield Picture(svg, f"{slug(step.name)}-funnel", title)
        ratings = mapping(step.numbers.get("rating_histogram"))
        if svg := bar_chart(
            {"rows": [int(v) for v in ratings.values()]},
            list(map(str, ratings)),
            title := f"{step.name}: the judge's ratings",
            "rating",
            "rows",
        ):
            yield Picture(svg, f"{slug(step.name)}-ratings", title)
    last = funnel.steps[-1]
    bins = [f"{edge:g}" if edge < 1000 else f"{edge // 1000}k" for edge in EDGES]
    if svg := bar_chart(
        lengths(last), bins, title := f"{last.name}: length of the rows that are left", "words, at least", "rows"
    ):
        yield Picture(svg, f"{slug(last.name)}-lengths", title)


def lengths(step: StepFacts) -> dict[str, list[int]]:
    """How many instructions and answers of a step's rows have a length in words within each bin of ``EDGES``."""
    counts = {"instruction": [0] * len(EDGES), "answer": [0] * len(EDGES)}
    for row in step.rows("rows.jsonl"):
        for label, text in (
            ("instruction", row.get("instruction")),
            ("answer", row.get("response", row.get("output"))),
        ):
            if isinstance(text, str) and (n := words(text)):
                counts[label][bisect_right(EDGES, n) - 1] += 1
    return counts


# -------------------------------------------------------------------------------- tables


def _way(step: StepFacts) -> Iterator[Block]:
    """Rows left after each rule, the judge and the review by hand."""
    rows, before = [], None
    for name, left in step.numbers.get("funnel") or ():
        rows.append((str(name), NOTHING if before is None else f"{left - before:+d}", str(left)))
        before = left
    if rows:
        yield Grid(Table(("rule", "rows", "rows left"), tuple(rows)))
    if reviewed := step.numbers.get("reviewed"):
        yield Paragraph(f"Decided by hand: {tally(reviewed)}.")


def contamination_line(step: StepFacts) -> str | None:
    """What a filter's rows were compared with, and how many fell; None if with nothing."""
    compared = step.numbers.get("contamination")
    if not compared:
        return None
    words = (step.settings.get("rules") or {}).get("decontaminate_words")
    dropped = (step.numbers.get("rejected_by_rule") or {}).get("contaminated", 0)
    missing = (
        f" Not compared, because their rows were not local: {', '.join(compared['not_compared'])}."
        if compared.get("not_compared")
        else ""
    )
    return (
        f"{step.name}: compared with {tally(compared.get('benchmark_rows') or {})} rows by runs of {words} words;"
        f" {dropped} row{'s' * (dropped != 1)} dropped.{missing}"
    )


def _contamination(step: StepFacts) -> Iterator[Block]:
    """The rows that share a run of words with a benchmark, all of them."""
    if line := contamination_line(step):
        yield Paragraph(line)
        if hits := [
            (str(row.get("id")), str(row.get("why")))
            for row in step.rows("rejected.jsonl")
            if row.get("rule") == "contaminated"
        ]:
            yield Grid(Table(("row", "benchmark, its row and the words in common"), tuple(hits)))


def _cleaned(step: StepFacts) -> Iterator[Block]:
    rows = []
    for name, changed in (step.numbers.get("cleaned") or {}).items():
        for number, example in enumerate(changed["examples"]):
            before, after = (json.dumps(example[key], ensure_ascii=True) for key in ("before", "after"))
            rows.append(
                (
                    name if number == 0 else "",
                    str(changed["rows"]) if number == 0 else "",
                    f"{example['id']}: {example['field']}",
                    before,
                    after,
                )
            )
    if rows:
        yield Grid(Table(("cleaned", "rows", "example", "before", "after"), tuple(rows)))


def _dropped(step: StepFacts) -> Iterator[Block]:
    """The first rows that each reason took away, as the manifest has them, or by their ids in an older one."""
    found = mapping(step.numbers.get("examples"))
    by_id: dict[str, Row] = {}
    if any(isinstance(row, str) for rows in found.values() for row in rows):
        by_id = {str(row.get("id")): row for name in ("rejected.jsonl", "unscored.jsonl") for row in step.rows(name)}
    for reason, rows in found.items():
        blocks: list[Block] = []
        for example in rows:
            row = example if isinstance(example, Mapping) else by_id.get(str(example), {"id": example})
            why = {"why": row["reply"]} if row.get("reply") and "why" not in row else {}
            texts = {
                "instruction": row.get("instruction"),
                "response": row.get("response", row.get("output")),
                "why": row.get("why"),
                **why,
            }
            blocks.append(
                Texts(
                    tuple(
                        (f"Row {row.get('id', NOTHING)}: {label}", shorten(str(text), SHOWN))
                        for label, text in texts.items()
                        if text
                    )
                )
            )
        n = step.counts.get(reason)
        yield Part(
            f"{reason}: {plural(n, 'row')}, {len(rows)} shown" if isinstance(n, int) else str(reason), tuple(blocks)
        )
