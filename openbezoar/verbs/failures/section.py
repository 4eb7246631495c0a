"""The report's section on what checkpoints get wrong. Reads a failures step's ``scores.json``; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from openbezoar.reporting.document import Block, Grid, Section
from openbezoar.reporting.facts import RunFacts, StepFacts
from openbezoar.reporting.scores import SCORES, failure_differences, mapping, score_of
from openbezoar.reporting.scores_section import difference_blocks
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING

COLUMNS = (("degenerate", 3), ("cut off", 3), ("empty", 3), ("refusals", 3), ("words", 1))
CHECKS = (("unsafe", "unsafe answers to harmless prompts"), ("unsupported", "answers that their text does not support"))


def failure_sections(facts: RunFacts) -> list[Section]:
    """One section a failures step."""
    return [_section(facts, step) for step in facts.of("failures")]


def _section(facts: RunFacts, step: StepFacts) -> Section:
    scores = step.read_json(SCORES)
    checkpoints = mapping(scores.get("checkpoints"))
    note = (
        "Shares of greedy answers to the same prompts. Degenerate: over half of the 4-grams occurred before, or the end"
        " goes in circles. Cut off: not ended within the token limit. Refusals: answers that begin by declining."
    )
    plain = tuple((name, *_cells(found.get("answers"))) for name, found in checkpoints.items())
    blocks: list[Block] = [
        Grid(Table(("checkpoint", *(c for c, _ in COLUMNS)), plain, note), "What goes wrong in answers", stack=True)
    ]
    if systems := list(_systems(checkpoints)):
        changed = "Changed: answers that are not those under the trained system message."
        blocks.append(
            Grid(
                Table(("checkpoint", "system message", *(c for c, _ in COLUMNS), "changed"), tuple(systems), changed),
                "Under other system messages",
                stack=True,
            )
        )
    checks = [(key, title) for key, title in CHECKS if any(found.get(key) for found in checkpoints.values())]
    if checks:
        rows = tuple((name, *(_check(found.get(key)) for key, _ in checks)) for name, found in checkpoints.items())
        blocks.append(
            Grid(
                Table(
                    ("checkpoint", *(title for _, title in checks)),
                    rows,
                    f"By judge '{scores.get('judge')}', which is worth what its agreement with people is.",
                ),
                "Answers checked by a judge",
                stack=True,
            )
        )
    blocks += difference_blocks([d for d in failure_differences(facts) if d.step in ("", step.name)])
    return Section(f"What goes wrong ({step.name})", tuple(blocks))


def _cells(answers: Any) -> list[str]:
    found = [(score_of(mapping(answers).get(name)), digits) for name, digits in COLUMNS]
    return [NOTHING if score is None else score.text(digits) for score, digits in found]


def _systems(checkpoints: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, found in checkpoints.items():
        for system, numbers in mapping(found.get("systems")).items():
            changed = score_of(mapping(numbers).get("changed"))
            yield name, system, *_cells(numbers), NOTHING if changed is None else changed.text()


def _check(value: Any) -> str:
    score = score_of(value)
    lost = mapping(value).get("unscored") or 0
    return (NOTHING if score is None else score.text()) + (f", {lost} unscored" if lost else "")
