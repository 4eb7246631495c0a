"""What a choice is made among, and what its model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from openbezoar.context import StepPlace
from openbezoar.errors import RecipeError
from openbezoar.recipe.blocks import Step
from openbezoar.recipe.comparable import SCALED, unlike
from openbezoar.recipe.order import lineage
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.train_steps import Choose, Training
from openbezoar.recipe.verbs import products_of, row_of


def check(step: Choose, place: StepPlace) -> None:
    """Refuse steps that do not have the measure, whose measures cannot be compared, or that make different things."""
    steps, first = place.recipe.steps, step.choose[0]
    for number, name in enumerate(step.choose):
        if name in step.choose[:number]:
            raise RecipeError(f"{place.where}.choose: '{name}' is there twice; take one out")
        other = steps[name]
        if not isinstance(other, Training) or step.by not in other.measures:
            raise RecipeError(
                f"{place.where}.choose: '{name}' has no held-out {step.by}; name steps that train, and with 'by' a"
                " measure that all of them have"
            )
        if why := unlike(place.recipe, first, name, step.by):
            others = [by for by in other.measures if by not in SCALED and not unlike(place.recipe, first, name, by)]
            remedy = f", or set by: {' or '.join(others)}" if others else ""
            raise RecipeError(
                f"{place.where}.choose: '{first}' and '{name}' cannot be compared: {why}; give both the same{remedy}"
            )
        if products_of(steps, name) != products_of(steps, first):
            raise RecipeError(
                f"{place.where}.choose: '{name}' and '{first}' make different things, an adapter and a whole model;"
                " name steps of one kind"
            )


def products(step: Choose, steps: Mapping[str, Step]) -> tuple[str, ...]:
    """What its candidates make."""
    made_by = (name for name in lineage(steps, step.choose[0]) if name in steps)  # which ends in a circle too
    first = next((name for name in made_by if not isinstance(steps[name], Choose)), None)
    return ("model",) if first is None else products_of(steps, first)


def opening(step: Choose, recipe: Recipe) -> Iterator[str]:
    """What it takes to open the model that is chosen."""
    for name in step.choose:
        if (packages := row_of(recipe.steps[name]).part("opening")) is not None:
            yield from packages(recipe.steps[name], recipe)
