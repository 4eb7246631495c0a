"""What an evaluation needs, and the rows of its tasks that are kept out of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.cleaning.contamination import EvaluationRows
from openbezoar.harness.tasks import find_local, task_file
from openbezoar.models.needs import IFEVAL, TASKS
from openbezoar.recipe.blocks import DataSpec
from openbezoar.recipe.measure_steps import Evaluate, TaskSpec
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.sources import resolve_path


def packages(step: Evaluate, recipe: Recipe) -> Iterator[str]:
    """What tasks import."""
    if step.tasks:
        yield from TASKS
        if "ifeval" in {_spec(task).task for task in step.tasks}:
            yield from IFEVAL


def texts(step: Evaluate) -> tuple[str, ...]:
    """What a judge of answers may be sent."""
    return ("judge_pair",) if step.wins else ()


def benchmarks(step: Evaluate, name: str, recipe: Recipe, folder: Path) -> list[EvaluationRows]:
    """The rows of the step's tasks. Raises RecipeError or DataError as the step would."""
    specs = [_spec(task) for task in step.tasks]
    return [EvaluationRows(f"{name}: {spec.name or spec.task}", _rows(spec, step, recipe, folder)) for spec in specs]


def _spec(task: str | TaskSpec) -> TaskSpec:
    return TaskSpec(task=task) if isinstance(task, str) else task


def _rows(spec: TaskSpec, step: Evaluate, recipe: Recipe, folder: Path) -> DataSpec | None:
    """The local rows of a task; None for one of the hub."""
    if spec.file is None and step.data is None:
        return None

    def on_disk(text: str) -> Path:
        return resolve_path(text, folder, recipe.data)

    data = None if step.data is None else on_disk(step.data)
    return DataSpec(data=str(task_file(spec, find_local(spec.task), data, resolve=on_disk).absolute()))
