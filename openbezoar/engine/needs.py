"""Which optional packages steps will want, so that a run says what is missing before its first
step. Reads recipes; imports none of the packages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from openbezoar.engine.graph import Node
from openbezoar.errors import UserError
from openbezoar.machine import extras
from openbezoar.models.needs import of_model
from openbezoar.recipe.blocks import Step
from openbezoar.recipe.refs import references
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import row_of


def lacking(nodes: Iterable[Node], recipe: Recipe, folder: Path) -> UserError | None:
    """The error for what is not installed of all that these steps need, with the steps' names; None
    if nothing is. folder: the recipe's.
    """
    packages_by_step = {node.name: dict.fromkeys(packages_of(node, recipe, folder)) for node in nodes}
    packages = dict.fromkeys(package for of_step in packages_by_step.values() for package in of_step)
    absent = {package: None for package in packages if not extras.installed(package)}
    if not absent:
        trackers = [package for package in recipe.track if not extras.installed(package)] if packages_by_step else []
        return None if not trackers else UserError(f"track: {extras.missing(trackers)}")
    steps = [name for name, of_step in packages_by_step.items() if of_step.keys() & absent.keys()]
    named = ", ".join(steps[:4]) + (f" and {len(steps) - 4} more" if len(steps) > 4 else "")
    error = extras.missing(absent)
    return type(error)(f"step{'s' * (len(steps) > 1)} {named}: {error}")


def packages_of(node: Node, recipe: Recipe, folder: Path) -> Iterator[str]:
    """The packages that a step imports on its way, by the names under which they are imported."""
    for name in node.parts.get("models", ()):
        yield from of_model(recipe, name, folder)
    # the models of other steps that it opens
    for reference in references(node.step):
        other = recipe.steps.get(reference.name)
        if other is not None and reference.ref.product in ("model", "adapter", "merged model", "reward model"):
            yield from _named(row_of(other).part("opening"), other, recipe)
    yield from _named(node.row.part("packages"), node.step, recipe)
    if '"hub:' in json.dumps(node.parts.get("settings", {})):  # in whatever key, a scheme's own options too
        yield "datasets"
    yield from _of_files(node)


def _of_files(node: Node) -> Iterator[str]:
    """What reads the step's files of rows."""
    names = [name.lower() for name in node.parts.get("files", ())]
    if any(name.endswith((".parquet", ".arrow", ".zst")) for name in names):
        yield "pyarrow"


def _named(packages: Callable[..., Iterator[str]] | None, step: Step, recipe: Recipe) -> Iterator[str]:
    yield from packages(step, recipe) if packages is not None else ()
