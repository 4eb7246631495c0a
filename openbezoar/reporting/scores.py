"""The scores of a whole run: what steps measured of which checkpoints, and how these differ.

Asks the steps' results; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.measured import ORDER, Difference
from openbezoar.reporting.results import Scores, StepFacts


def scored(facts: RunFacts) -> list[Scores]:
    """The results whose scores the table tells, in the order of its columns."""
    results = [result for result in facts.results(Scores) if result.scores()]
    return sorted(results, key=lambda result: min(ORDER[m.kind] for m in result.scores()))


def checkpoints(facts: RunFacts) -> list[str]:
    """All scored checkpoints, each where it is met first."""
    return list(dict.fromkeys(name for result in scored(facts) for name in result.checkpoints()))


def published(facts: RunFacts) -> set[str]:
    """The models that are none of the recipe's: their answers were only set beside its own."""
    foreign = {name for result in facts.results(Scores) for name in result.foreign()}
    ours = [result for result in scored(facts) if not result.foreign()]
    own = {name for result in ours for name in result.checkpoints()}
    return foreign - own


def told_apart(facts: RunFacts, step: StepFacts) -> str:
    """The step's name where the run has several with its verb, else nothing."""
    return step.name if len(facts.of(step.verb)) > 1 else ""


def differences(facts: RunFacts) -> list[Difference]:
    """Paired differences in scores between every two checkpoints of each step."""
    return _told(facts, facts.results(Scores), lambda result: result.differences())


def answer_differences(facts: RunFacts, of: Iterable[Scores] | None = None) -> list[Difference]:
    """Paired differences in what answers are like, of these results; default: of all, those first
    whose scores the table has.
    """
    if of is None:
        of = sorted(facts.results(Scores), key=lambda result: not result.scores())
    return _told(facts, of, lambda result: result.answer_differences())


def _told(facts: RunFacts, results: Iterable[Scores], what: Callable[[Scores], list[Difference]]) -> list[Difference]:
    return [
        replace(d, step=told_apart(facts, result.step), source=result.step.name)
        for result in results
        for d in what(result)
    ]
