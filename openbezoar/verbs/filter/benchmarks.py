"""The local rows that a recipe evaluates on, as ``decontaminate`` looks for them in training rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openbezoar.cleaning.contamination import Overlap
from openbezoar.errors import DataError
from openbezoar.harness.tasks import find_local, task_file
from openbezoar.recipe.blocks import DataSpec, data_specs
from openbezoar.recipe.measure_steps import Evaluate, MtBench, TaskSpec
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.sources import read, resolve_path
from openbezoar.store.digests import digest, file_digest


@dataclass(frozen=True)
class EvaluationRows:
    """Rows that a recipe evaluates on. ``name``: the step and what it calls them; ``spec``: None if
    they are not on this machine.
    """

    name: str
    spec: DataSpec | None


def benchmarks(recipe: Recipe, folder: Path) -> list[EvaluationRows]:
    """What the recipe's evaluate and mt_bench steps ask, in its order.

    folder: the recipe's. Raises RecipeError or DataError as those steps would.
    """
    found = []
    for step_name, step in recipe.steps.items():
        if isinstance(step, Evaluate):
            found += [
                EvaluationRows(f"{step_name}: {_task_name(task)}", _task_rows(task, step, recipe, folder))
                for task in step.tasks
            ]
        if isinstance(step, (Evaluate, MtBench)):
            refs = {**step.losses, **step.pairs} if isinstance(step, Evaluate) else {"questions": step.questions}
            found += [
                EvaluationRows(
                    f"{step_name}: {name}", None if spec.data.startswith("hub:") or spec.data in recipe.steps else spec
                )
                for name, ref in refs.items()
                for spec in data_specs(ref)
            ]
    return found


def _task_name(task: str | TaskSpec) -> str:
    return task if isinstance(task, str) else task.name or task.task


def _task_rows(task: str | TaskSpec, step: Evaluate, recipe: Recipe, folder: Path) -> DataSpec | None:
    spec = TaskSpec(task=task) if isinstance(task, str) else task
    if spec.file is None and step.data is None:
        return None
    data = None if step.data is None else resolve_path(step.data, folder, recipe.data)
    return DataSpec(
        data=str(
            task_file(
                spec, find_local(spec.task), data, lambda text: resolve_path(text, folder, recipe.data)
            ).absolute()
        )
    )


def benchmark_digests(recipe: Recipe, folder: Path) -> dict[str, str]:
    """What makes each benchmark's rows the same ones: the bytes of its file and which of them are
    taken. Raises DataError for a missing file.
    """
    found = {}
    for benchmark in benchmarks(recipe, folder):
        if benchmark.spec is None:
            found[benchmark.name] = "elsewhere"
            continue
        file = resolve_path(benchmark.spec.data, folder, recipe.data)
        if not file.is_file():
            raise DataError(
                f"{benchmark.name}: no file {file}, which 'decontaminate' needs; paths are relative to the recipe's own"
                " file"
            )
        found[benchmark.name] = digest([file_digest(file), benchmark.spec.model_dump(mode="json", exclude={"data"})])
    return found


def read_benchmarks(recipe: Recipe, folder: Path, words: int, seed: int) -> tuple[Overlap, list[str]]:
    """The overlap index of all local benchmark rows, and the names of the benchmarks whose rows are
    not on this machine.
    """
    overlap, elsewhere = Overlap(words), []
    for benchmark in benchmarks(recipe, folder):
        if benchmark.spec is None:
            elsewhere.append(benchmark.name)
        else:
            overlap.add(benchmark.name, (row for _, row in read(benchmark.spec, folder, recipe.data, {}, seed)))
    return overlap, elsewhere
