"""The rows of a released data set: what a step kept, each with where it came from and what was decided about it.

Reads steps' ``rows.jsonl`` and settings; writes nothing.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from openbezoar.publishing.licences import Licence
from openbezoar.reporting.facts import RunFacts, reference_of
from openbezoar.reporting.funnels import ROWS, makers
from openbezoar.reporting.results import StepFacts


def data_name(facts: RunFacts, step: StepFacts, taken: Container[str]) -> str:
    """The scheme's name where a step stands for one scheme, else the step's."""
    schemes = {str(result.scheme()) for result in makers(facts.part([step.name]))}
    name = schemes.pop() if len(schemes) == 1 else step.name
    return step.name if name in taken else name


def rows_of(facts: RunFacts, step: StepFacts, licence: Licence) -> list[dict[str, Any]]:
    """A step's rows with ``teacher``, ``judge``, ``language`` and ``licence``.

    Verdicts of earlier filters on the way are kept as STEP_status and so on. ``language`` is what
    a filter held the texts to be in, None if none did.
    """
    lineage = facts.lineage([step.name])
    sources = makers(facts.part([step.name]))
    teachers = {result.scheme(): _reference(facts, result.step, "teacher") for result in sources}
    constant = {
        "judge": _reference(facts, step, "judge"),
        "language": next(iter(languages([step, *lineage])), None),
        "licence": licence.name or licence.id,
    }
    rows = [{**row, "teacher": teachers.get(str(row.get("scheme"))), **constant} for row in step.rows(ROWS)]
    for earlier in (s for s in lineage if s.verb == "filter" and s.name != step.name):
        verdicts = {row.get("id"): row for row in earlier.rows(ROWS)}
        for row in rows:
            verdict = verdicts.get(row.get("id"), {})
            row |= {f"{earlier.name}_{k}": verdict[k] for k in ("status", "rating", "reason") if k in verdict}
    return rows


def _reference(facts: RunFacts, step: StepFacts, role: str) -> str | None:
    name = step.settings.get(role)
    return None if name is None else reference_of(facts.models().get(name, {"model": name}))


def languages(steps: list[StepFacts]) -> list[str]:
    """Codes of the languages that filters held rows to, in order, each once."""
    stated = [(s.settings.get("rules") or {}).get("language") for s in steps if s.verb == "filter"]
    return list(dict.fromkeys(str(language) for language in stated if language and language != "any"))
