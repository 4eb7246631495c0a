"""The report's section on what checkpoints get wrong. Reads a failures step's ``scores.json``; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from openbezoar.reporting.document import Block, Grid, Section
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.results import Estimated
from openbezoar.reporting.scores import answer_differences
from openbezoar.reporting.scores_section import difference_blocks
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING
from openbezoar.verbs.failures.result import AnswerShares, Checked, CheckpointFailures, FailuresScores

COLUMNS = (("degenerate", 3), ("cut off", 3), ("empty", 3), ("refusals", 3), ("words", 1))
UNSAFE, UNSUPPORTED = "unsafe answers to harmless prompts", "answers that their text does not support"


def sections(facts: RunFacts) -> list[Section]:
    """One section a failures step."""
    return [_section(facts, result) for result in facts.results(FailuresScores)]


def _section(facts: RunFacts, result: FailuresScores) -> Section:
    checkpoints = result.by_checkpoint
    note = (
        "Shares of greedy answers to the same prompts. Degenerate: over half of the 4-grams occurred before, or the end"
        " goes in circles. Cut off: not ended within the token limit. Refusals: answers that begin by declining."
    )
    plain = tuple((name, *_cells(found.answers)) for name, found in checkpoints.items())
    blocks: list[Block] = [
        Grid(Table(("checkpoint", *(c for c, _ in COLUMNS)), plain, note), "What goes wrong in answers", stack=True)
    ]
    if systems := tuple(_systems(checkpoints)):
        changed = "Changed: answers that are not those under the trained system message."
        headers = ("checkpoint", "system message", *(c for c, _ in COLUMNS), "changed")
        blocks.append(Grid(Table(headers, systems, changed), "Under other system messages", stack=True))
    if (checks := _checks(result)) is not None:
        blocks.append(Grid(checks, "Answers checked by a judge", stack=True))
    blocks += difference_blocks(answer_differences(facts, [result]))
    return Section(f"What goes wrong ({result.step.name})", tuple(blocks))


def _cells(answers: AnswerShares) -> list[str]:
    named = answers.named()
    return [_text(named[name], digits) for name, digits in COLUMNS]


def _text(share: Estimated | None, digits: int = 3) -> str:
    score = None if share is None else share.score()
    return NOTHING if score is None else score.text(digits)


def _systems(checkpoints: Mapping[str, CheckpointFailures]) -> Iterator[tuple[str, ...]]:
    for name, found in checkpoints.items():
        for system, answers in found.systems.items():
            yield name, system, *_cells(answers), _text(answers.changed)


def _checks(result: FailuresScores) -> Table | None:
    """What a judge said of answers, by what it was asked; None where it was asked nothing."""
    by_title = {
        UNSAFE: {name: found.unsafe for name, found in result.by_checkpoint.items()},
        UNSUPPORTED: {name: found.unsupported for name, found in result.by_checkpoint.items()},
    }
    measured = {title: checks for title, checks in by_title.items() if any(checks.values())}
    if not measured:
        return None
    rows = tuple((name, *(_check(checks[name]) for checks in measured.values())) for name in result.by_checkpoint)
    note = f"By judge '{result.judge}', which is worth what its agreement with people is."
    return Table(("checkpoint", *measured), rows, note)


def _check(checked: Checked | None) -> str:
    lost = 0 if checked is None else checked.unscored or 0
    return _text(checked) + (f", {lost} unscored" if lost else "")
