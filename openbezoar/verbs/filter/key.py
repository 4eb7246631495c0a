"""What a filter depends on besides its inputs, and the texts that its judge is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openbezoar import prompts
from openbezoar.cleaning.reviews import Reviews
from openbezoar.context import StepPlace
from openbezoar.errors import RecipeError
from openbezoar.recipe.blocks import ServerModel
from openbezoar.recipe.data_steps import Filter
from openbezoar.recipe.schema import Recipe
from openbezoar.verbs.filter.benchmarks import benchmark_digests


def parts(step: Filter, place: StepPlace) -> dict[str, Any]:
    """A person's reviews, and the benchmarks that it keeps out of the data."""
    groups = {
        "reviews": Reviews(place.run.path, place.name).digest,
        "benchmarks": benchmark_digests(place.recipe, place.folder) if step.rules.decontaminate else {},
    }
    return {group: value for group, value in groups.items() if value}


def check(step: Filter, place: StepPlace) -> None:
    """Refuse a server's model for ``likelihood``: servers do not tell the probability of a given answer."""
    if step.likelihood is None:
        return
    name = step.likelihood.model
    if isinstance(place.recipe.models.get(name), ServerModel):
        raise RecipeError(
            f"{place.where}.likelihood.model: '{name}' is a server's model, which does not tell how likely it finds a"
            " given answer; name a local model or a step that made one"
        )


def texts(step: Filter) -> tuple[str, ...]:
    """The texts that a filter's judge may be sent."""
    return tuple(name for name in prompts.names() if name.startswith("judge_filter"))


def packages(step: Filter, recipe: Recipe) -> Iterator[str]:
    """What a filter imports beside its judge's model."""
    if step.rules.near_duplicates is not None:
        yield "datasketch"
