"""``policy: open``: no teacher, judge, seed or training row without an open licence.

Reads the recipe, model folders that are on this machine and the READMEs beside data files;
writes nothing and downloads nothing. What no source states is unknown, and refused: the recipe
can state it. A base model is not asked for: its own terms are carried on by the release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from openbezoar.errors import RecipeError
from openbezoar.publishing.licences import UNKNOWN, is_open, non_commercial, normal
from openbezoar.publishing.licences_of import licence_of_data, licence_of_model
from openbezoar.recipe.blocks import data_specs
from openbezoar.recipe.data_steps import Filter, Generate
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.train_steps import Dpo, Sft

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
    ref = (
        step.filter
        if isinstance(step, Filter)
        else step.sft
        if isinstance(step, Sft)
        else step.dpo
        if isinstance(step, Dpo)
        else []
    )
    yield from (("rows", "data", spec.data) for spec in data_specs(ref))
