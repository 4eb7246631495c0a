"""A plan as the library gives it: the steps of a recipe with what each will cost. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openbezoar.engine.graph import Graph, build
from openbezoar.errors import RecipeError, shown
from openbezoar.machine.devices import device_named, this_device
from openbezoar.plan.table import plan_of
from openbezoar.recipe.file import load
from openbezoar.recipe.shipped import recipe_file

Changes = Mapping[str, Any] | Sequence[str]
"""Changes of a recipe: ``{"steps.dpo.beta": 0.2}``, or texts as the option ``--set`` takes them."""


@dataclass(frozen=True)
class PlannedStep:
    """A step and what it will cost; None where that cannot be known yet.

    state: done, or stale or missing, and then it would run; why: the reason. money: in the currency
    of the recipe's prices. assumed: whether the time is from no measurement on this machine.
    """

    name: str
    verb: str
    state: Literal["done", "stale", "missing"]
    why: str
    inputs: tuple[str, ...]
    rows: int | None
    tokens_in: int | None
    tokens_out: int | None
    money: float | None
    memory_bytes: int | None
    seconds: float | None
    assumed: bool


@dataclass(frozen=True)
class RunPlan:
    """What a run would do. folder: where; warnings: what will not do, such as memory, one line each."""

    folder: Path
    steps: tuple[PlannedStep, ...]
    warnings: tuple[str, ...]

    @property
    def todo(self) -> tuple[PlannedStep, ...]:
        """The steps that would run."""
        return tuple(step for step in self.steps if step.state != "done")

    @property
    def tokens(self) -> int:
        """Read and written by the steps that would run."""
        return sum((step.tokens_in or 0) + (step.tokens_out or 0) for step in self.todo)

    @property
    def seconds(self) -> float:
        """Of the steps that would run, as far as they are known."""
        return sum(step.seconds or 0.0 for step in self.todo)

    @property
    def memory_bytes(self) -> int | None:
        """The most that a step which would run takes; None where no step's is known."""
        return max((step.memory_bytes for step in self.todo if step.memory_bytes), default=None)


def overrides_of(changes: Changes) -> list[str]:
    """Changes of a recipe as the texts ``key=value`` that its file's reader takes."""
    if isinstance(changes, str):
        raise RecipeError(f"set: expected a mapping such as {{'steps.dpo.beta': 0.2}} (it is {shown(changes)})")
    if isinstance(changes, Mapping):
        return [f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in changes.items()]
    return list(changes)


def graph_of(recipe: str | Path, changes: Changes, runs: str | Path) -> Graph:
    """The graph of a recipe's file, or of a shipped recipe by its name."""
    file = recipe_file(Path(recipe))
    return build(load(file, overrides_of(changes)), file, Path(runs))


def plan(recipe: str | Path, set: Changes = (), *, runs: str | Path = "runs", device: str | None = None) -> RunPlan:
    """What would run of a recipe and why, and what it will cost. Nothing is run or downloaded.

    recipe: its file, or the name of a shipped one, such as ``demo``. set: changes, such as
    ``{"steps.dpo.beta": 0.2}``. runs: the folder of runs. device: another machine, such as
    ``t4`` or ``cuda:24GB``. Raises RecipeError, DataError and ModelError for what cannot run.
    """
    planned = plan_of(graph_of(recipe, set, runs), this_device() if device is None else device_named(device))
    steps = []
    for node in planned.graph.nodes.values():
        cost = planned.estimates[node.name]
        steps.append(
            PlannedStep(
                node.name,
                node.verb,
                node.state,
                node.why,
                node.inputs,
                rows=cost.rows,
                tokens_in=cost.tokens_in,
                tokens_out=cost.tokens_out,
                money=cost.money,
                memory_bytes=cost.memory_bytes,
                seconds=cost.seconds,
                assumed=cost.assumed,
            )
        )
    return RunPlan(planned.graph.run.path, tuple(steps), tuple(str(concern) for concern in planned.concerns))
