"""What a generate step's scheme adds to the step: options of its own, and the texts that it sends."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from openbezoar.context import StepPlace
from openbezoar.errors import RecipeError
from openbezoar.judging.ratings import TEXTS
from openbezoar.recipe.data_steps import Generate
from openbezoar.recipe.file import one_line
from openbezoar.schemes import SCHEMES


def options(step: Generate, place: StepPlace) -> BaseModel:
    """The checked options of the step's scheme."""
    return scheme_options(step, place.where)


def scheme_options(step: Generate, where: str) -> BaseModel:
    """As ``options``. Raises RecipeError for an unknown scheme, missing seeds, or options of none."""
    if step.generate not in SCHEMES:
        raise RecipeError(f"{where}: generate: no scheme '{step.generate}'; there are {', '.join(SCHEMES)}")
    scheme = SCHEMES[step.generate]
    if step.seeds is None and (fields := scheme.seed_fields):
        raise RecipeError(
            f"{where}: seeds: missing; {step.generate} needs rows with {', '.join(fields)}: name a file or a step"
        )
    try:
        return scheme.Options.model_validate(step.options)
    except ValidationError as error:
        raise RecipeError(one_line(error, where, scheme.Options)) from None


def texts(step: Generate) -> tuple[str, ...]:
    """The texts that the step's scheme sends, and the judge that picks the best answer."""
    return (*SCHEMES[step.generate].prompts, *(TEXTS if step.by is not None else ()))
