"""The report's sections about data: what each scheme asked for, what was kept, what was dropped and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from openbezoar.records import Row
from openbezoar.reporting.document import Block, Fold, Grid, Paragraph, Section, Texts
from openbezoar.reporting.facts import RunFacts, StepFacts
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, shorten, tally

EXAMPLES = 6  # rejected rows shown a filter step, one a reason
LIMIT = 1500  # characters of a text shown


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
    """Funnels and examples of rejected rows; None if no step made or filtered data."""
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
            if examples := list(_rejected(step)):
                blocks.append(Fold(f"{step.name}: examples of rejected rows", tuple(examples)))
    return Section("Data", tuple(blocks))


def _rejected(step: StepFacts) -> Iterator[Block]:
    """The first row of each reason."""
    first: dict[str, Row] = {}
    for name in ("rejected.jsonl", "unscored.jsonl"):
        for row in step.rows(name):
            first.setdefault(_short_reason(row, name), row)
    for reason, row in islice(first.items(), EXAMPLES):
        yield Paragraph(f"Row {row.get('id', NOTHING)}: {reason}")
        texts = [("instruction", str(row.get("instruction", ""))), ("response", str(row.get("response", "")))]
        if verdict := _verdict(row):
            texts.append(("verdict", verdict))
        yield Texts(tuple((label, shorten(text, LIMIT)) for label, text in texts))


def _short_reason(row: Mapping[str, Any], file: str) -> str:
    """The reason under which filter counts the row."""
    if file == "unscored.jsonl":
        return f"unscored_{row.get('unscored', 'no reason given')}"
    if row.get("rule"):
        return str(row["rule"])
    return "rejected_by_judge" if row.get("status") == "reject" else "below_min_rating"


def _verdict(row: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}: {row[key]}" for key in ("status", "rating", "reason", "reply") if row.get(key) is not None)
