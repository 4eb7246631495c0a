"""The report's sections about data: what each scheme asked for, what was kept, what was dropped and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from openbezoar.reporting.document import Block, Fold, Grid, Paragraph, Section, Texts
from openbezoar.reporting.facts import RunFacts, StepFacts
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, tally


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
            rows.append((funnel.scheme, f"{step.name} ({step.verb})", *_in_out(step), tally(step.counts)))
    return Table(("scheme", "step", "rows asked for or read", "rows kept", "rejected", "unscored", "counted by reason"), tuple(rows))


def _in_out(step: StepFacts) -> tuple[str, str, str, str]:
    kept = step.rows_in("rows.jsonl")
    if step.verb == "generate":
        asked = step.settings.get("rows")
        return str(asked if asked is not None else NOTHING), str(kept), NOTHING, NOTHING
    rejected, unscored = step.rows_in("rejected.jsonl"), step.rows_in("unscored.jsonl")
    return str(step.numbers.get("rows_in", kept + rejected + unscored)), str(kept), str(rejected), str(unscored)


def data_section(facts: RunFacts) -> Section | None:
    """Funnels, what was cleaned, and examples of dropped rows; None if no step made or filtered data."""
    found = funnels(facts)
    if not found:
        return None
    blocks: list[Block] = [
        Paragraph(
            "Every row that a step dropped, changed or could not score is counted under its reason. Unscored rows have no verdict; they are neither kept nor rejected."
        ),
        Grid(funnel_table(found)),
    ]
    for funnel in found:
        for step in funnel.steps:
            if inside := [*_way(step), *_contamination(step), *_cleaned(step)]:
                blocks.append(Fold(f"{step.name}: rows left after each rule, and what was cleaned", tuple(inside)))
            if examples := list(_dropped(step)):
                blocks.append(Fold(f"{step.name}: examples of dropped rows", tuple(examples)))
    return Section("Data", tuple(blocks))


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
    missing = f" Not compared, because their rows were not local: {', '.join(compared['not_compared'])}." if compared.get("not_compared") else ""
    return f"{step.name}: compared with {tally(compared.get('benchmark_rows') or {})} rows by runs of {words} words; {dropped} row{'s' * (dropped != 1)} dropped.{missing}"


def _contamination(step: StepFacts) -> Iterator[Block]:
    """The rows that share a run of words with a benchmark, all of them."""
    if line := contamination_line(step):
        yield Paragraph(line)
        if hits := [(str(row.get("id")), str(row.get("why"))) for row in step.rows("rejected.jsonl") if row.get("rule") == "contaminated"]:
            yield Grid(Table(("row", "benchmark, its row and the words in common"), tuple(hits)))


def _cleaned(step: StepFacts) -> Iterator[Block]:
    rows = []
    for name, changed in (step.numbers.get("cleaned") or {}).items():
        for number, example in enumerate(changed["examples"]):
            before, after = (json.dumps(example[key], ensure_ascii=True) for key in ("before", "after"))
            rows.append((name if number == 0 else "", str(changed["rows"]) if number == 0 else "", f"{example['id']}: {example['field']}", before, after))
    if rows:
        yield Grid(Table(("cleaned", "rows", "example", "before", "after"), tuple(rows)))


def _dropped(step: StepFacts) -> Iterator[Block]:
    """The first rows that each reason took away, as the manifest has them."""
    for reason, rows in (step.numbers.get("examples") or {}).items():
        for row in rows:
            if isinstance(row, Mapping):
                yield Paragraph(f"Row {row.get('id', NOTHING)}: {reason}")
                yield Texts(tuple((label, str(row[label])) for label in ("instruction", "response", "why") if label in row))
