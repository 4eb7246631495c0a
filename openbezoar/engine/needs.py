"""Which optional packages steps will want, so that a run says what is missing before its first
step. Reads recipes; imports none of the packages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from openbezoar.machine import extras
from openbezoar.models.needs import IFEVAL, MODEL, NF4, TASKS, of_model
from openbezoar.recipe.data_steps import Filter, Generate
from openbezoar.recipe.measure_steps import Evaluate, TaskSpec
from openbezoar.recipe.schema import Recipe, Step
from openbezoar.recipe.tell_steps import Release, Report
from openbezoar.recipe.train_steps import Merge, Training

if TYPE_CHECKING:
    from openbezoar.engine.graph import Node
    from openbezoar.errors import UserError


def lacking(nodes: Iterable[Node], recipe: Recipe, folder: Path) -> UserError | None:
    """The error for what is not installed of all that these steps need, with the steps' names; None
    if nothing is. folder: the recipe's.
    """
    wanted = {node.name: dict.fromkeys(packages_of(node, recipe, folder)) for node in nodes}
    absent = {package: None for packages in wanted.values() for package in packages if not extras.installed(package)}
    if not absent:
        return None
    steps = [name for name, packages in wanted.items() if packages.keys() & absent.keys()]
    named = ", ".join(steps[:4]) + (f" and {len(steps) - 4} more" if len(steps) > 4 else "")
    error = extras.missing(absent)
    return type(error)(f"step{'s' * (len(steps) > 1)} {named}: {error}")


def packages_of(node: Node, recipe: Recipe, folder: Path) -> Iterator[str]:
    """The packages that a step imports on its way, by the names under which they are imported."""
    step = node.step
    if isinstance(step, Report):
        return
    for name in node.parts.get("models", ()):
        yield from of_model(recipe, name, folder)
    for name in node.inputs:
        yield from _of_trained(recipe.steps[name])
    if isinstance(step, (Training, Merge, Release)):
        yield from (*MODEL, *_of_trained(step))
    if isinstance(step, Training):
        yield "peft"
        if step.optimizer != "adamw":
            yield "bitsandbytes"
    if isinstance(step, Filter) and step.rules.near_duplicates is not None:
        yield "datasketch"
    if isinstance(step, Evaluate) and step.tasks:
        yield from TASKS
        if any((task.task if isinstance(task, TaskSpec) else task) == "ifeval" for task in step.tasks):
            yield from IFEVAL
    if isinstance(step, Release):
        yield from ["gguf"] if step.gguf else []
        yield from ["pyarrow"] if any(isinstance(other, (Generate, Filter)) for other in recipe.steps.values()) else []
    if '"hub:' in json.dumps(node.parts.get("settings", {})):  # in whatever key, a scheme's own options too
        yield "datasets"


def _of_trained(step: Step) -> Iterator[str]:
    """What it takes to open the model that a step made; nothing for steps that made none."""
    if isinstance(step, (Training, Merge)):
        yield from MODEL
    if isinstance(step, Training) and step.quantize == "nf4":
        yield from NF4
