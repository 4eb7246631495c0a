"""Runs: a recipe carried out, and finished ones opened. No torch at import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbezoar.errors import RunError
from openbezoar.plan.listed import Changes, graph_of, overrides_of
from openbezoar.progress import for_terminal
from openbezoar.reporting.facts import RunFacts, read_facts
from openbezoar.reporting.results import Scores
from openbezoar.store import runs as folders

if TYPE_CHECKING:
    from openbezoar.face.chat_model import ChatModel


@dataclass(frozen=True)
class ScoreRow:
    """One number of one checkpoint, as a row of a table.

    step: that measured it. kind: task, loss, rewards, pairs, rating, ended or failures; name: the task's or
    the set's. low, high: the 95 % interval, None where there is none. n: questions, rows or pairs.
    lower_is_better: as of a loss.
    """

    step: str
    checkpoint: str
    kind: str
    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    lower_is_better: bool


@dataclass(frozen=True)
class Run:
    """A run's folder, finished or in part."""

    folder: Path

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the finished steps, inputs before what read them; reports and releases are none."""
        return tuple(self._facts().steps)

    def scores(self) -> list[ScoreRow]:
        """All scores of the run; ``pandas.DataFrame(run.scores())`` makes a table of them.

        Raises RunError for a file that is not what its step made.
        """
        return [
            ScoreRow(
                result.step.name,
                one.checkpoint,
                one.kind,
                one.name,
                one.score.value,
                one.score.low,
                one.score.high,
                one.score.n,
                one.lower,
            )
            for result in self._facts().results(Scores)
            for one in result.scores()
        ]

    def manifest(self, step: str) -> Mapping[str, Any]:
        """What a finished step says of itself: numbers, counts, files. Raises RunError if there is no such step."""
        manifest = folders.RunFolder(self.folder).manifest(step)
        if manifest is None:
            raise RunError(f"{self.folder}: no finished step '{step}'; it has {', '.join(self.steps)}")
        return manifest

    def load(self, step: str) -> ChatModel:
        """The model that a step made, as ``openbezoar.load`` gives it."""
        from openbezoar.face.chat_model import load

        self.manifest(step)
        return load(self.folder / step)

    def _facts(self) -> RunFacts:
        return read_facts(folders.RunFolder(self.folder))


def run(
    recipe: str | Path,
    set: Changes = (),
    *,
    runs: str | Path = "runs",
    to: str | None = None,
    quiet: bool = False,
) -> Run:
    """Run what is not done of a recipe. Safe to interrupt, to kill and to call again.

    recipe, set, runs: as in ``plan``. to: stop when this step is done. Progress goes to stderr;
    quiet: one line a step, and warnings. Raises a UserError for what the user can mend; finished steps stay.
    """
    from openbezoar.plan.carry_out import carry_out

    done = carry_out(lambda: graph_of(recipe, set, runs), for_terminal(quiet), to=to, overrides=overrides_of(set))
    return Run(done.run.path)


def open_run(folder: str | Path) -> Run:
    """A run that is there. Raises RunError if the folder holds no finished step."""
    return Run(folders.open_run(Path(folder)).path)
