"""Choices among steps that trained, in numbers: which was taken, among which, and by what. Asks manifests."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from openbezoar.recipe.train_steps import Measure
from openbezoar.reporting.results import Number, PairedDifference, Record, Result, StepFacts
from openbezoar.store.digests import MANIFEST
from openbezoar.store.manifests import read_object


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

    def taken(self, folder: Path) -> StepFacts | None:
        """The chosen step, which lies beside this one's folder; None where it is not there."""
        if self.chosen is None or not (file := folder.parent / self.chosen / MANIFEST).is_file():
            return None
        manifest = read_object(file, "a step's results", "delete the folder and run again")
        return StepFacts(self.chosen, str(manifest.get("verb", "")), file.parent, manifest)

    def stands_for(self) -> list[str]:
        return list(self.candidates)

    def trust(self) -> list[str]:
        taken = self.taken(self.step.folder)
        said = [] if taken is None else taken.result.trust()
        if not said:
            return []
        among = f"{self.step.name} is this one of {len(self.candidates)}, taken by its {self.by} on the same rows"
        return [*said[:-1], f"{said[-1]} {among}: the figure is too good by that."]
