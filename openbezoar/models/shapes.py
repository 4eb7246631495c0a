"""Which of the recipe's models a name stands for, and how large that is: as the recipe says, or
from a config.json that is here.

Fetches nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from openbezoar.models.files.towers import text_config
from openbezoar.models.memory import shape_of
from openbezoar.models.references import local_folder
from openbezoar.recipe.blocks import LocalModel, ServerModel, Shape
from openbezoar.recipe.order import lineage
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.sources import model_reference


def model_of(recipe: Recipe, name: str) -> LocalModel | ServerModel | None:
    """The recipe's entry at the bottom of a model's chain of steps."""
    *_, base = lineage(recipe.steps, name)
    return recipe.models.get(base)


def shape_of_model(recipe: Recipe, folder: Path, name: str) -> Shape | None:
    """The size of a model or a step's model; None for a server's, and for one that is neither here nor described.

    folder: the recipe's.
    """
    spec = model_of(recipe, name)
    if not isinstance(spec, LocalModel):
        return None
    return spec.shape or _shape_on_disk(model_reference(spec.model, folder, recipe.data), folder)


def _shape_on_disk(model: str, folder: Path) -> Shape | None:
    """The shape in a config.json that is already here, nothing fetched."""
    try:
        config = json.loads((local_folder(model, folder) / "config.json").read_text(encoding="utf-8"))
        return shape_of(text_config(config))
    except (OSError, KeyError, ValueError):
        return None
