"""Which licence a recipe's models and data state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from openbezoar.publishing.licences import cached_licence, of_data_file, of_model_folder, of_reference, strictest
from openbezoar.recipe.blocks import LocalModel, ServerModel
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.files import divided
from openbezoar.rows.sources import resolve_path


def licence_of_model(
    recipe: Recipe, name: str, folder: Path, opened: Callable[[str], Path] | None = None
) -> str | None:
    """What a model's source and the recipe state, the strictest of it; None if neither does.

    opened: gives the folder of a local model's files, fetched if need be; without it nothing is fetched.
    """
    spec = recipe.models[name]
    if isinstance(spec, ServerModel):
        return strictest(of_reference(spec.model), spec.licence)
    assert isinstance(spec, LocalModel)
    if opened is not None:
        return strictest(of_model_folder(opened(name)), of_reference(spec.model), spec.licence)
    on_disk = spec.model if spec.model.startswith("pypi:") else str(resolve_path(spec.model, folder, recipe.data))
    return strictest(cached_licence(on_disk), of_reference(spec.model), spec.licence)


def licence_of_data(recipe: Recipe, name: str, folder: Path) -> str | None:
    """What the recipe and the README beside a data file (or the list of known data sets) state, the strictest of it."""
    stated = [licence for data, licence in stated_for_data(recipe) if data == name]
    return strictest(
        *stated,
        of_reference(name) if name.startswith("hub:") else of_data_file(_beside(name, folder, recipe.data)),
    )


def _beside(name: str, folder: Path, data_folder: str | None) -> Path:
    """A file beside which the README of a reference to files may lie."""
    path = resolve_path(divided(name)[0], folder, data_folder)
    return path / "rows" if path.is_dir() else path


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
