"""Whether steps that trained can be compared by what they measured on held-out rows: one rule for sweeps, which cannot
be about what it forbids, and for choices, whose steps it is asked about.
"""

from __future__ import annotations

from typing import Any

from openbezoar.recipe.blocks import DataRef, LocalModel, PromptSpec, data_specs
from openbezoar.recipe.losses import constants
from openbezoar.recipe.order import lineage
from openbezoar.recipe.refs import field_of
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.train_steps import Dpo, Kto, Measure, Training
from openbezoar.recipe.verbs import verb_of

# What decides which rows are held out, or what of them is scored: another value is measured on other rows.
OF_THE_ROWS = ("heldout_every", "heldout_rows", "max_length", "too_long", "loss_on")
SCALED: tuple[Measure, ...] = ("loss", "margin")
"""Measures in units that the loss, its constants, the reference and the tokenizer set."""
UNITS = frozenset(
    {"loss", "desirable_weight", "undesirable_weight", "margin", "center"} | {one.name for one in constants()}
)


def unlike(recipe: Recipe, a: str, b: str, by: Measure) -> str:
    """Why two steps that train cannot be compared by a measure, in a few words; '' where they can."""
    one, other = recipe.steps[a], recipe.steps[b]
    assert isinstance(one, Training) and isinstance(other, Training), "only trainings have measures"
    if type(one) is not type(other):
        return f"one is a step of {verb_of(one)}, the other of {verb_of(other)}"
    if _held_out(one) != _held_out(other):
        return "they hold out other rows"
    for name in OF_THE_ROWS:
        if _value(one, name) != _value(other, name):
            return f"{name} is {_value(one, name)} in one, {_value(other, name)} in the other"
    (root, prompt), (other_root, other_prompt) = (_root(recipe, step.model) for step in (one, other))
    if prompt != other_prompt:
        return f"their prompts differ ('{root}' and '{other_root}')"
    if by not in SCALED:
        return ""
    for name in sorted(UNITS & set(type(one).model_fields)):
        if getattr(one, name) != getattr(other, name):
            return f"their {by} is in other units ({name} is {getattr(one, name)} and {getattr(other, name)})"
    if isinstance(one, (Dpo, Kto)) and one.model != other.model:
        return f"their {by} is seen from other references ('{one.model}' and '{other.model}')"
    return "" if root == other_root else f"their {by} is in other tokens (of '{root}' and of '{other_root}')"


def _held_out(step: Training) -> list[Any]:
    """The rows that are held out: those named, or each n-th of what is trained on."""
    every = step.heldout_every if step.heldout is None else 1
    ref: DataRef = getattr(step, str(field_of(type(step), "rows"))) if step.heldout is None else step.heldout
    return [every, *(spec.model_dump(exclude={"licence"}) for spec in data_specs(ref))]


def _value(step: Training, name: str) -> Any:
    """A setting; None where its verb has none, or where it decides nothing."""
    return None if name == "heldout_every" and step.heldout is not None else getattr(step, name, None)


def _root(recipe: Recipe, name: str) -> tuple[str, PromptSpec]:
    """The recipe's model that a step's model was made from, and its prompt."""
    *_, root = lineage(recipe.steps, name)
    spec = recipe.models.get(root)
    own = spec.prompt if isinstance(spec, LocalModel) else None
    return root, own or recipe.prompt
