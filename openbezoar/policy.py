"""``policy: open``: no teacher, judge, seed or training row without an open licence.

Reads the recipe, model folders that are on this machine and the READMEs beside data files;
writes nothing and downloads nothing. What no source states is unknown, and refused: the recipe
can state it. A base model is not asked for: its own terms are carried on by the release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from openbezoar.errors import RecipeError
from openbezoar.recipe import Dpo, Filter, Generate, LocalModel, Recipe, ServerModel, Sft, data_specs
from openbezoar.reporting.licences import UNKNOWN, cached_licence, is_open, non_commercial, normal, of_data_file, of_reference, strictest
from openbezoar.sources import resolve_path

Use = tuple[str, str, str]  # what it is to the step ("teacher", "judge", "seeds", ...), "model" or "data", its name


def check_open(recipe: Recipe, recipe_path: Path, options: dict[str, list[tuple[str, str]]]) -> None:
    """Raises RecipeError naming every model and every file of rows that 'policy: open' refuses.

    options: what the schemes' own options name, by step, as ("model" or "data", name).
    """
    refused: dict[str, None] = {}
    for step_name in recipe.steps:
        for role, kind, name in _uses(recipe, step_name, options.get(step_name, [])):
            if kind == "model" and name in recipe.models:
                licence = normal(licence_of_model(recipe, name, recipe_path.parent))
            elif kind == "data" and name not in recipe.steps:
                licence = normal(licence_of_data(recipe, name, recipe_path.parent))
            else:
                continue
            if not is_open(licence):
                refused[f"{role} '{name}' ({_why(licence)})"] = None
    if refused:
        remedy = "where a licence is open, state it as 'licence' of the model or beside the 'data'; else name another"
        raise RecipeError(f"{recipe_path}: policy: open refuses {', '.join(refused)}; {remedy}")


def _why(licence: str) -> str:
    if licence == UNKNOWN:
        return "no licence is stated"
    return f"{licence}, non-commercial" if non_commercial(licence) else f"{licence}, not a known open licence"


def _uses(recipe: Recipe, step_name: str, options: Iterable[tuple[str, str]]) -> Iterator[Use]:
    """What becomes part of a step's rows or model, and who judges."""
    step = recipe.steps[step_name]
    if isinstance(step, Generate):
        yield "teacher", "model", step.teacher
        yield from (("seeds", "data", spec.data) for spec in data_specs(step.seeds or []))
        yield from (("judge" if kind == "model" else "seeds", kind, name) for kind, name in options)
    if judge := getattr(step, "judge", None):
        yield "judge", "model", judge
    ref = step.filter if isinstance(step, Filter) else step.sft if isinstance(step, Sft) else step.dpo if isinstance(step, Dpo) else []
    yield from (("rows", "data", spec.data) for spec in data_specs(ref))


def licence_of_model(recipe: Recipe, name: str, folder: Path) -> str | None:
    """What a model's source and the recipe state, the strictest of it; None if neither does."""
    spec = recipe.models[name]
    if isinstance(spec, ServerModel):
        return strictest(of_reference(spec.model), spec.licence)
    assert isinstance(spec, LocalModel)
    on_disk = spec.model if spec.model.startswith("pypi:") else str(resolve_path(spec.model, folder, recipe.data))
    return strictest(cached_licence(on_disk), of_reference(spec.model), spec.licence)


def licence_of_data(recipe: Recipe, name: str, folder: Path) -> str | None:
    """What the recipe and the README beside a data file (or the list of known data sets) state, the strictest of it."""
    stated = [licence for data, licence in stated_for_data(recipe) if data == name]
    return strictest(*stated, of_reference(name) if name.startswith("hub:") else of_data_file(resolve_path(name, folder, recipe.data)))


def stated_for_data(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Each data reference for which the recipe states a licence, with it."""

    def walk(value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            if isinstance(value.get("data"), str) and isinstance(value.get("licence"), str):
                yield value["data"], value["licence"]
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)

    for step in recipe.steps.values():
        yield from walk(step.model_dump(mode="json"))
