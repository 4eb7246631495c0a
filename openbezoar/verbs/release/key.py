"""What a release reads and depends on besides the models that it names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openbezoar.context import StepPlace
from openbezoar.models.needs import MODEL
from openbezoar.publishing.licences_of import stated_for_data
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.tell_steps import Release
from openbezoar.recipe.verbs import row_of
from openbezoar.store.digests import digest


def inputs(step: Release, recipe: Recipe) -> list[str]:
    """Every step that scored checkpoints: the cards quote it."""
    return [name for name, other in recipe.steps.items() if row_of(other).scores]


def parts(step: Release, place: StepPlace) -> dict[str, Any]:
    """The licences that the recipe states."""
    models = [(name, spec.licence) for name, spec in place.recipe.models.items() if spec.licence]
    stated = [*stated_for_data(place.recipe), *models]
    return {"licences": digest(stated)} if stated else {}


def packages(step: Release, recipe: Recipe) -> Iterator[str]:
    """What writing models, GGUF and data sets takes."""
    yield from MODEL
    if step.gguf:
        yield "gguf"
    if any("rows" in row_of(other).produces for other in recipe.steps.values()):
        yield "pyarrow"
