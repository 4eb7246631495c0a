"""What a training step needs, and what its adapter must agree with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from openbezoar.context import StepPlace
from openbezoar.errors import RecipeError
from openbezoar.models.needs import MODEL, NF4
from openbezoar.recipe.blocks import Step
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.train_steps import Choose, Lora, Reward, Sft, Training


def check(step: Sft, place: StepPlace) -> None:
    """Refuse stated settings of an adapter where one that has others is continued: they would have no effect."""
    if step.adapter != "continue" or "lora" not in step.model_fields_set or step.whole:
        return
    for name, held in _adapters_of(place.recipe.steps, step.model):
        _check_same(step, name, held, place)


def _check_same(step: Sft, name: str, held: Lora, place: StepPlace) -> None:
    for field in Lora.model_fields:
        has, asked = getattr(held, field), getattr(step.lora, field)
        if has != asked and not (field == "targets" and sorted(has) == sorted(asked)):
            raise RecipeError(
                f"{place.where}.lora.{field}: {asked}, but the adapter of '{name}', which is continued,"
                f" has {has}; give both the same, leave lora out, or set adapter: new"
            )


def _adapters_of(steps: Mapping[str, Step], name: str) -> list[tuple[str, Lora]]:
    """The settings that the last adapter of a step's model has, with the step that they are known by: none if it has no
    adapter, several where it is yet to be chosen.
    """
    step = steps.get(name)
    if isinstance(step, Choose):
        return [held for one in step.choose for held in _adapters_of(steps, one)]
    if isinstance(step, Sft) and step.adapter == "continue" and (before := _adapters_of(steps, step.model)):
        return [(name, held) for _, held in before]
    return [(name, step.lora)] if isinstance(step, Training) and isinstance(step.lora, Lora) else []


def products(step: Training, steps: Mapping[str, Step]) -> tuple[str, ...]:
    """A whole model, or an adapter on one."""
    return ("model", "merged model") if step.whole else ("model", "adapter")


def packages(step: Training, recipe: Recipe) -> Iterator[str]:
    """What training imports."""
    yield from MODEL
    if step.quantize != "none":  # 'auto' may come to it
        yield from NF4
    yield "peft"
    if step.optimizer != "adamw":
        yield "bitsandbytes"


def opening(step: Training, recipe: Recipe) -> Iterator[str]:
    """What it takes to open the model that a training step made: one with an adapter on the base as it was held, or one
    that is whole.
    """
    yield from MODEL
    if step.quantize != "none" and not step.whole and not isinstance(step, Reward):
        yield from NF4
