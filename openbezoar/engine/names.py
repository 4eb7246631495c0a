"""What a step names, held against the recipe and the disk: models, steps, rows, files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.context import StepPlace
from openbezoar.errors import DataError, RecipeError, did_you_mean
from openbezoar.recipe.refs import Reference, references
from openbezoar.recipe.verbs import VERBS, products_of, row_of, verb_of
from openbezoar.rows.hub import DataSetRef
from openbezoar.rows.sources import row_files


def named_by(place: StepPlace) -> Iterator[Reference]:
    """Everything that a step names, in its own fields and in those that its class leaves open.

    Raises RecipeError for open fields that are none.
    """
    step = place.recipe.steps[place.name]
    yield from references(step)
    if options := row_of(step).part("options"):
        yield from references(options(step, place))


def inputs_of(place: StepPlace) -> tuple[str, ...]:
    """Names of the steps that a step reads. Raises RecipeError for a name that stands for nothing
    here, DataError for a missing file.
    """
    recipe, step = place.recipe, place.recipe.steps[place.name]
    inputs: dict[str, None] = {}
    for reference in named_by(place):
        if reference.ref.every and reference.name == reference.ref.every:
            inputs.update({name: None for name, other in recipe.steps.items() if not row_of(other).tells})
        elif reference.name in recipe.steps and reference.ref.kind in ("model", "step", "data"):
            _check_product(place, reference)
            inputs[reference.name] = None
        elif reference.ref.kind == "step" or (reference.ref.kind == "model" and reference.name not in recipe.models):
            raise _unknown(place, reference)
        elif reference.ref.kind == "model":
            _check_model(place, reference)
        elif reference.ref.kind == "data":
            data_files(place, reference)
    if further := row_of(step).part("inputs"):
        inputs.update(dict.fromkeys(further(step, recipe)))
    return tuple(inputs)


def _check_product(place: StepPlace, reference: Reference) -> None:
    """Raise RecipeError if the step that is named does not make what it is named for."""
    product, verb = reference.ref.product, verb_of(place.recipe.steps[reference.name])
    made = products_of(place.recipe.steps, reference.name) if product else ()
    if product == "adapter" and "merged model" in made:
        raise RecipeError(
            f"{place.where}.{reference.key}: '{reference.name}' is a whole model, with nothing to merge; take this step"
            f" away, and name '{reference.name}' where it is named"
        )
    if not reference.ref.takes(made):
        makers = ", ".join(name for name, row in VERBS.items() if reference.ref.takes(row.produces))
        kind = "model" if product in ("adapter", "merged model") else product
        raise RecipeError(
            f"{place.where}.{reference.key}: '{reference.name}' is a {verb} step and has no {kind}; name one of the"
            f" verbs {makers}"
        )


def _check_model(place: StepPlace, reference: Reference) -> None:
    """Raise RecipeError if a model of the recipe is not of the kind that it is named for."""
    product = place.recipe.models[reference.name].product
    if not reference.ref.takes({product}):
        remedy = "name an entry of models with 'reward'" if product == "model" else "it gives numbers and no text"
        raise RecipeError(
            f"{place.where}.{reference.key}: '{reference.name}' is a {product}, expected a {reference.ref.product};"
            f" {remedy}"
        )


def _unknown(place: StepPlace, reference: Reference) -> RecipeError:
    recipe, name = place.recipe, reference.name
    where = f"{place.where}.{reference.key}"
    if name in recipe.models:
        return RecipeError(f"{where}: '{name}' is a model as it came; name a step that trained one")
    names = f"models: {', '.join(recipe.models)}; steps: {', '.join(recipe.steps)}"
    hint = did_you_mean(name, [*recipe.steps, *recipe.models]) or names
    return RecipeError(f"{where}: no step or model '{name}'; {hint}")


def data_files(place: StepPlace, reference: Reference) -> dict[str, Path]:
    """The files of rows that a step names, by what the key calls them; none for rows of the hub.

    Raises DataError if there are none.
    """
    where, text = f"{place.where}.{reference.key}", reference.name
    try:
        if text.startswith("hub:"):
            DataSetRef.of(text)
            return {}
        files = row_files(text, place.folder, place.recipe.data)
    except DataError as error:
        hint = "" if any(mark in text for mark in "/.*?[") or text.startswith("hub:") else f", and no step '{text}'"
        paths = "" if text.startswith("hub:") else "; paths are relative to the recipe's own file"
        raise DataError(f"{where}: {error}{hint}{paths}") from None
    for file in files.files:
        if file.stat().st_size == 0:
            raise DataError(f"{where}: {file} is empty; expected rows")
    if files.files == (files.root,):
        return {text: files.root}
    return {f"{text}/{file.relative_to(files.folder).as_posix()}": file for file in files.files}


def other_files(place: StepPlace, reference: Reference) -> dict[str, Path]:
    """The files behind a name of kind 'file' or 'folder', by what the key calls them. Raises DataError for none."""
    path, where = place.path(reference.name), f"{place.where}.{reference.key}"
    if reference.ref.kind == "folder":
        if not path.is_dir():
            raise DataError(f"{where}: no folder {path}; expected one with TASK.jsonl.gz files")
        return {file.name: file for file in sorted(path.glob("*.jsonl*"))}
    if not path.is_file():
        raise DataError(f"{where}: no file {path}; paths are relative to the recipe's own file")
    return {reference.name: path}
