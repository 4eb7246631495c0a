"""What a choice is made among, and what its model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from openbezoar.context import StepPlace
from openbezoar.errors import RecipeError
from openbezoar.recipe.blocks import Step
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.train_steps import Choose, Training
from openbezoar.recipe.verbs import products_of, row_of


def check(step: Choose, place: StepPlace) -> None:
    """Refuse steps that do not have the measure, or that make different things."""
    steps = place.recipe.steps
    for name in step.choose:
        other = steps[name]
        if not isinstance(other, Training) or step.by not in other.measures:
            raise RecipeError(
                f"{place.where}.choose: '{name}' has no held-out {step.by}; name steps that train, and with 'by' a"
                " measure that all of them have"
            )
        if products_of(steps, name) != products_of(steps, step.choose[0]):
            raise RecipeError(
                f"{place.where}.choose: '{name}' and '{step.choose[0]}' make different things, an adapter and a whole"
                " model; name steps of one kind"
            )


def products(step: Choose, steps: Mapping[str, Step]) -> tuple[str, ...]:
    """What its candidates make."""
    return products_of(steps, step.choose[0]) if step.choose[0] in steps else ("model",)


def opening(step: Choose, recipe: Recipe) -> Iterator[str]:
    """What it takes to open the model that is chosen."""
    for name in step.choose:
        if (packages := row_of(recipe.steps[name]).part("opening")) is not None:
            yield from packages(recipe.steps[name], recipe)
