"""What a training step needs, and what its adapter must agree with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from openbezoar.context import StepPlace
from openbezoar.errors import RecipeError
from openbezoar.models.needs import MODEL, NF4
from openbezoar.recipe.blocks import Step
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.train_steps import Lora, Sft, Training


def check(step: Sft, place: StepPlace) -> None:
    """Refuse stated settings of an adapter where one that has others is continued: they would have no effect."""
    held = _adapter_of(place.recipe.steps, step.model) if step.adapter == "continue" else None
    if held is None or "lora" not in step.model_fields_set or step.whole:
        return
    for field in Lora.model_fields:
        has, asked = getattr(held, field), getattr(step.lora, field)
        if has != asked and not (field == "targets" and sorted(has) == sorted(asked)):
            raise RecipeError(
                f"{place.where}.lora.{field}: {asked}, but the adapter of '{step.model}', which is continued,"
                f" has {has}; give both the same, leave lora out, or set adapter: new"
            )


def _adapter_of(steps: Mapping[str, Step], name: str) -> Lora | None:
    """The settings that the last adapter of a step's model has; None if it has no adapter."""
    step = steps.get(name)
    if isinstance(step, Sft) and step.adapter == "continue" and (before := _adapter_of(steps, step.model)) is not None:
        return before
    return step.lora if isinstance(step, Training) and isinstance(step.lora, Lora) else None


def products(step: Training, steps: Mapping[str, Step]) -> tuple[str, ...]:
    """A whole model, or an adapter on one."""
    return ("model", "merged model") if step.whole else ("model", "adapter")


def packages(step: Training, recipe: Recipe) -> Iterator[str]:
    """What training imports."""
    yield from opening(step, recipe)
    yield "peft"
    if step.optimizer != "adamw":
        yield "bitsandbytes"


def opening(step: Training, recipe: Recipe) -> Iterator[str]:
    """What it takes to open the model that a training step made."""
    yield from MODEL
    if step.quantize != "none":  # 'auto' may come to it
        yield from NF4
