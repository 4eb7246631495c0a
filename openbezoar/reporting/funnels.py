"""Rows on their way through a run: asked for, made, kept, dropped. Asks the steps' results; writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.results import Result, StepFacts
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, tally

ROWS = "rows.jsonl"


class RowCounts(NamedTuple):
    """Rows asked for or read by a step, kept, rejected and unscored; None where it has no such count."""

    read: int | None
    kept: int
    rejected: int | None = None
    unscored: int | None = None

    def by_name(self) -> dict[str, int | None]:
        return {"in": self.read, "kept": self.kept, "rejected": self.rejected, "unscored": self.unscored}

    def texts(self) -> tuple[str, ...]:
        return tuple(NOTHING if n is None else str(n) for n in self)


class RowNumbers(Result):
    """Of a step that makes rows, or keeps some of those that it reads."""

    def scheme(self) -> str | None:
        """What the rows were made by; None for a step that makes none."""
        return None

    def row_counts(self) -> RowCounts:
        raise NotImplementedError

    def by_hand(self) -> int:
        """Rows on which a person decided."""
        return 0

    def told(self, facts: RunFacts) -> list[str]:
        """What was done to the rows and by which settings, a sentence each."""
        return []


@dataclass(frozen=True)
class Funnel:
    """One scheme's way from rows asked for to rows kept."""

    scheme: str
    results: tuple[RowNumbers, ...]  # of the step that made the rows if there is one, then of the filters on it

    @property
    def steps(self) -> tuple[StepFacts, ...]:
        return tuple(result.step for result in self.results)


def makers(facts: RunFacts) -> list[RowNumbers]:
    """The results of steps that made rows."""
    return [result for result in facts.results(RowNumbers) if result.scheme() is not None]


def keepers(facts: RunFacts) -> list[RowNumbers]:
    """The results of steps that kept some of the rows that they read."""
    return [result for result in facts.results(RowNumbers) if result.scheme() is None]


def funnels(facts: RunFacts) -> list[Funnel]:
    """One funnel a step that makes rows, and one a filter that reads none or several of them."""
    funnels_of, placed = [], set()
    for maker in makers(facts):
        chain = [maker]
        for keeper in keepers(facts):
            step = keeper.step
            if chain[-1].step.name in step.inputs and len(makers(facts.part([step.name]))) == 1:
                chain.append(keeper)
                placed.add(step.name)
        funnels_of.append(Funnel(str(maker.scheme()), tuple(chain)))
    funnels_of += [Funnel(keeper.step.name, (keeper,)) for keeper in keepers(facts) if keeper.step.name not in placed]
    return funnels_of


def funnel_table(found: list[Funnel]) -> Table:
    """Rows in and out of every step, with what was dropped by reason."""
    rows = []
    for funnel in found:
        for result in funnel.results:
            step = result.step
            name = f"{step.name} ({step.verb})"
            rows.append((funnel.scheme, name, *result.row_counts().texts(), tally(step.counts)))
    return Table(
        ("scheme", "step", "rows asked for or read", "rows kept", "rejected", "unscored", "counted by reason"),
        tuple(rows),
    )
