"""READ FIRST. A recipe's steps in order, their keys, and what re-runs.

A step's key is a hash of its settings, its inputs' keys, the bytes of the data files it
reads, the models it uses and the version of its verb's work. Same key, nothing runs;
another key, it and what depends on it run again. Resume after a crash, "what would
change", and re-judging are all this one rule. Beyond it, a step counts as done only while
the files that it wrote, and those that it used, are still the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openbezoar.context import StepPlace
from openbezoar.engine.keys import difference, parts_of
from openbezoar.engine.names import inputs_of
from openbezoar.engine.policy import check_open
from openbezoar.errors import ModelError, RecipeError
from openbezoar.models.files.checks import check
from openbezoar.models.files.reward_files import check_reward_folder
from openbezoar.models.references import folder_here
from openbezoar.recipe.blocks import LocalModel, RewardModel, Step
from openbezoar.recipe.order import Circle, in_order, needed_by
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import VERBS, Verb, verb_of
from openbezoar.rows.sources import model_reference
from openbezoar.store.digests import differences, digest, marks_in, result_digest
from openbezoar.store.runs import RunFolder

State = Literal["done", "stale", "missing"]


@dataclass(frozen=True)
class Node:
    """One step of the graph."""

    name: str
    verb: str
    step: Step
    inputs: tuple[str, ...]
    parts: dict[str, Any]  # what the key is made of, kept in the manifest so that 'why' can be said
    key: str
    state: State
    why: str

    @property
    def row(self) -> Verb:
        """The row of the step's verb in the table."""
        return VERBS[self.verb]


@dataclass(frozen=True)
class Graph:
    """All steps of a recipe, inputs before what needs them."""

    recipe: Recipe
    recipe_path: Path
    run: RunFolder
    nodes: dict[str, Node]

    def upto(self, name: str | None) -> list[Node]:
        """The steps that ``name`` needs, itself last; all steps for None."""
        if name is None:
            return list(self.nodes.values())
        if name not in self.nodes:
            raise RecipeError(f"{self.recipe_path}: no step '{name}'; it has {', '.join(self.nodes)}")
        needed = needed_by({node.name: node.inputs for node in self.nodes.values()}, name)
        return [node for node in self.nodes.values() if node.name in needed]

    def place(self, name: str) -> StepPlace:
        """Where a step stands."""
        return StepPlace(self.recipe, self.recipe_path, self.run, name)


def build(recipe: Recipe, recipe_path: Path, runs: Path) -> Graph:
    """Check all references, order the steps and say of each whether it is done.

    Raises RecipeError for an unknown name or a cycle, DataError for a missing file.
    """
    run = RunFolder(runs / recipe.name)
    places = {name: StepPlace(recipe, recipe_path, run, name) for name in recipe.steps}
    inputs = {name: inputs_of(place) for name, place in places.items()}
    if recipe.policy == "open":
        check_open(recipe, recipe_path, places.values())
    try:
        ordered = in_order(inputs)
    except Circle as circle:
        raise RecipeError(f"{recipe_path}: steps go in a circle: {circle}; take one of these inputs away") from None
    nodes: dict[str, Node] = {}
    for name in ordered:
        step, verb = recipe.steps[name], verb_of(recipe.steps[name])
        if checked := VERBS[verb].part("check"):
            checked(step, places[name])
        parts = parts_of(places[name], {i: nodes[i].key for i in inputs[name]})
        key = digest(parts)
        state, why = state_of(run, name, key, parts)
        nodes[name] = Node(name, verb, step, inputs[name], parts, key, state, why)
    to_run = [node for node in nodes.values() if node.state != "done"]
    for name in dict.fromkeys(model for node in to_run for model in node.parts["models"]):
        _check_model(recipe, recipe_path, name)
    return Graph(recipe, recipe_path, run, nodes)


def _check_model(recipe: Recipe, path: Path, name: str) -> None:
    """Hold a local model's parts against each other, where its files are here."""
    spec = recipe.models[name]
    if not isinstance(spec, LocalModel):
        return
    folder = folder_here(model_reference(spec.model, path.parent, recipe.data), path.parent)
    if folder is not None:
        try:
            (check_reward_folder if isinstance(spec, RewardModel) else check)(folder)
        except ModelError as error:
            raise ModelError(f"{path}: models.{name}: {error}") from None


def state_of(run: RunFolder, name: str, key: str, parts: dict[str, Any]) -> tuple[State, str]:
    """Whether a step's result is there for this key, and if not, why not."""
    manifest = run.manifest(name)
    if manifest is None:
        return "missing", "not run yet"
    if manifest.get("key") != key:
        return "stale", difference(manifest.get("parts", {}), parts)
    if changed := next(differences(run.step(name), marks_in(manifest)), None):
        return "stale", changed
    # A step made again under the same key may have another result: arithmetic on a GPU is not always
    # the same to the bit.
    for used, then in (manifest.get("used") or manifest.get("used_weights") or {}).items():
        if then != result_digest(run.manifest(used) or {}):
            return "stale", f"the files of {used} are not those it used"
    return "done", ""
