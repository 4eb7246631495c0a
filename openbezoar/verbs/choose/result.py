"""What ``choose`` leaves for others to read: the numbers of its manifest."""

from __future__ import annotations

from pydantic import Field

from openbezoar.recipe.train_steps import Measure
from openbezoar.reporting.results import Number, PairedDifference, Record, Result


class Tried(Record):
    """One of the steps chosen among: its measure before and after training, with a 95 % interval over held-out rows
    where it is a mean of theirs.
    """

    before: Number | None = None
    after: Number | None = None
    low: Number | None = None
    high: Number | None = None
    n: int | None = None


class ChooseNumbers(Result):
    """Which step was chosen, by what, among which; and the paired differences of every two, b's less a's."""

    chosen: str | None = None
    by: Measure | None = None
    candidates: dict[str, Tried] = Field(default_factory=dict)
    differences: list[PairedDifference] = Field(default_factory=list)
    summary: str | None = None

    def outcome(self) -> str:
        return "" if self.chosen is None else self.chosen.removeprefix(f"{self.step.name}.")

    def against_chosen(self, name: str) -> PairedDifference | None:
        """The difference between a candidate and the chosen one; None where they have no row in common."""
        pair = {name, self.chosen}
        return next((one for one in self.differences if {one.a, one.b} == pair), None)
