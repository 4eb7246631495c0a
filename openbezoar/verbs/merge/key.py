"""What a merge needs."""

from __future__ import annotations

from collections.abc import Iterator

from openbezoar.models.needs import MODEL
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.train_steps import Merge


def packages(step: Merge, recipe: Recipe) -> Iterator[str]:
    """What it takes to merge, and to open what was merged."""
    yield from MODEL
