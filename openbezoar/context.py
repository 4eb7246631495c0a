"""What a step is given: its place in the recipe, where to write, what to read from, where to report to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from openbezoar.errors import DataError, RowError
from openbezoar.models.references import Checkpoint, checkpoint_of_model, checkpoint_of_step, of_commit
from openbezoar.progress import Progress
from openbezoar.recipe.blocks import TEMPLATES, DataRef, LocalModel, ServerModel, data_specs
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.forms import to_example, to_pair
from openbezoar.rows.hub import Commits
from openbezoar.rows.records import Counts, Example, Pair, Row
from openbezoar.rows.sources import model_reference, read, resolve_path
from openbezoar.store.runs import RunFolder

T = TypeVar("T")


@dataclass(frozen=True)
class StepPlace:
    """Where a step stands, before anything runs: what its verb's part of the checks and of the key may look at."""

    recipe: Recipe
    recipe_path: Path
    run: RunFolder
    name: str

    @property
    def folder(self) -> Path:
        """The recipe's folder, which relative paths are of."""
        return self.recipe_path.parent

    @property
    def where(self) -> str:
        """The step in messages."""
        return f"{self.recipe_path}: steps.{self.name}"

    def path(self, text: str) -> Path:
        """A path of the recipe on disk."""
        return resolve_path(text, self.folder, self.recipe.data)


@dataclass
class StepContext:
    """One step's view of its run."""

    name: str
    recipe: Recipe
    recipe_folder: Path
    run: RunFolder
    out: Path  # the step's work folder; published when the stage returns
    seed: int  # of this step; derive others with stats.seeds.step_seed(seed, ...)
    progress: Progress
    steps: tuple[str, ...] = ()
    counts: Counts = field(default_factory=Counts)
    opener: Callable[[str, StepContext], Any] | None = None
    """Opens the LLM behind a name in place of ``llm.open_llm``, such as an ``llm.scripted.Scripted``."""
    tell: Callable[[str, Mapping[str, Any]], None] = lambda log, line: None
    """Is told each line of a training's logs, as ``training.loop.Tell`` has it."""

    @cached_property
    def commits(self) -> Commits:
        """What names on the hub stand for in this run."""
        return Commits(self.run.path)

    def folder(self, step: str) -> Path:
        """The finished folder of another step."""
        return self.run.step(step)

    def path(self, text: str) -> Path:
        """A path of the recipe on disk."""
        return resolve_path(text, self.recipe_folder, self.recipe.data)

    def rows(self, ref: DataRef) -> list[Row]:
        """Rows of a data reference. Raises DataError if there are none."""
        return [row for _, row in self.stream(ref)]

    def stream(self, ref: DataRef) -> Iterator[tuple[str, Row]]:
        """Rows of a data reference with where each came from, one held at a time. Raises DataError
        if there are none.
        """
        folders = {name: self.run.step(name) for name in self.steps}
        return read(
            ref,
            self.recipe_folder,
            self.recipe.data,
            folders,
            self.recipe.seed,
            self.out,
            self.counts.add,
            self.commits,
        )

    def examples(self, ref: DataRef, most: int | None = None, every: int = 1) -> list[Example]:
        """Training examples: each ``every``-th one, ``most`` at most.

        A row without its fields raises DataError; one whose dialogue is none is dropped and
        counted, whether or not it would have been among those asked for. DataError too if
        all are.
        """
        return self.converted(ref, to_example, most, every)

    def pairs(self, ref: DataRef, most: int | None = None, every: int = 1) -> list[Pair]:
        """Preference pairs; as ``examples``."""
        return self.converted(ref, to_pair, most, every)

    def converted(
        self,
        ref: DataRef,
        convert: Callable[[Row, str], T],
        most: int | None = None,
        every: int = 1,
        *,
        takes: Callable[[T], bool] | None = None,
    ) -> list[T]:
        """What ``convert`` makes of rows; as ``examples``. takes: says of each in turn whether it is
        asked for, in place of ``every``.
        """
        made: list[T] = []
        place = 0
        for where, row in self.stream(ref):
            try:
                item = convert(row, where)
            except RowError as error:
                self.counts.add(error.reason)
                continue
            place += 1
            asked_for = place % every == 0 if takes is None else takes(item)
            if asked_for and (most is None or len(made) < most):
                made.append(item)
        if not place:
            raise DataError(
                f"{', '.join(spec.data for spec in data_specs(ref))}: no row can be used ({self.counts}); bring other"
                " rows"
            )
        return made

    def model_spec(self, name: str) -> LocalModel | ServerModel | None:
        """The recipe's entry for a model, None if the name is a step's."""
        return self.recipe.models.get(name)

    def checkpoint(self, name: str) -> Checkpoint:
        """The whole model that a name stands for: base, adapters, prompt."""
        spec = self.recipe.models.get(name)
        if isinstance(spec, LocalModel):
            prompt = spec.prompt or self.recipe.prompt
            if prompt.template not in TEMPLATES:  # a file, which must be found wherever the checkpoint is opened
                prompt = prompt.model_copy(update={"template": str(self.path(prompt.template).resolve())})
            reference = model_reference(spec.model, self.recipe_folder, self.recipe.data)
            known = spec.model_copy(update={"model": reference, "prompt": prompt})
            made = checkpoint_of_model(name, known, prompt, recipe_folder=self.recipe_folder)
            return replace(made, base=of_commit(made.base, self.commits))
        return checkpoint_of_step(name, self.run.path)

    def batched(
        self,
        name: str,
        items: Sequence[T],
        size: int,
        make: Callable[[int, Sequence[T]], list[Row]],
        unit: str = "rows",
    ) -> list[Row]:
        """Rows made from ``items`` in batches fixed by position; ``make(first, batch)`` gets the
        index of the batch's first item.

        A killed run makes them all again, from the answers in the call cache.
        """
        rows: list[Row] = []
        with self.progress.bar(name, len(items), unit) as bar:
            for first in range(0, len(items), size):
                batch = items[first : first + size]
                rows += make(first, batch)
                bar.advance(len(batch))
        return rows
