"""``policy: open``: no teacher, judge, seed or training row without an open licence.

Reads the recipe, model folders that are on this machine and the READMEs beside data files;
writes nothing and downloads nothing. What no source states is unknown, and refused: the recipe
can state it. A base model is not asked for: its own terms are carried on by the release.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from openbezoar.context import StepPlace
from openbezoar.engine.names import named_by
from openbezoar.errors import RecipeError
from openbezoar.publishing.licences import UNKNOWN, is_open, non_commercial, normal
from openbezoar.publishing.licences_of import licence_of_data, licence_of_model
from openbezoar.recipe.schema import Recipe

ASKED = ("teacher", "judge", "seeds", "rows")
"""Roles of what becomes part of a step's rows or model, and of who judges."""


def check_open(recipe: Recipe, recipe_path: Path, places: Iterable[StepPlace]) -> None:
    """Raises RecipeError naming every model and every file of rows that 'policy: open' refuses."""
    refused: dict[str, None] = {}
    for place in places:
        for reference in named_by(place):
            role, name = reference.ref.role, reference.name
            if role not in ASKED or name in recipe.steps:
                continue
            if reference.ref.kind == "model":
                licence = normal(licence_of_model(recipe, name, recipe_path.parent))
            else:
                licence = normal(licence_of_data(recipe, name, recipe_path.parent))
            if not is_open(licence):
                refused[f"{role} '{name}' ({_why(licence)})"] = None
    if refused:
        remedy = "where a licence is open, state it as 'licence' of the model or beside the 'data'; else name another"
        raise RecipeError(f"{recipe_path}: policy: open refuses {', '.join(refused)}; {remedy}")


def _why(licence: str) -> str:
    if licence == UNKNOWN:
        return "no licence is stated"
    return f"{licence}, non-commercial" if non_commercial(licence) else f"{licence}, not a known open licence"
