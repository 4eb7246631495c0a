"""What a release was made from, with the licence each source states.

Reads manifests, fetched models' ``source.json`` and READMEs beside data files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from openbezoar.context import StepContext
from openbezoar.publishing.licences import Source, of_reference, strictest
from openbezoar.publishing.licences_of import licence_of_data, licence_of_model, stated_for_data
from openbezoar.recipe.refs import fields_of
from openbezoar.recipe.verbs import VERBS
from openbezoar.reporting.facts import RunFacts, reference_of
from openbezoar.reporting.results import StepFacts
from openbezoar.verbs.release.cards import hub_datasets

MODELS = {"base": "base model", "teacher": "teacher", "judge": "judge"}
"""Roles of the models that a release comes from, and what they are called."""
DATA = ("seeds", "rows")
"""Roles of what becomes part of a model or its data: the files of a step that reads some are sources."""


def sources_of(facts: RunFacts, context: StepContext, names: Sequence[str]) -> list[Source]:
    """Base models, teachers, judges and data behind the named steps."""
    steps = facts.lineage(names)
    sources: dict[tuple[str, str], Source] = {}
    for source in (*_models(facts, context, steps), *_data(context, steps)):
        sources.setdefault((source.what, source.name), source)
    return list(sources.values())


def _models(facts: RunFacts, context: StepContext, steps: Sequence[StepFacts]) -> Iterator[Source]:
    identities = facts.models()
    for step in steps:
        for role, what in MODELS.items():
            for name in (name for name in _named(step, role) if name in context.recipe.models):
                licence = licence_of_model(context.recipe, name, context.recipe_folder, _opened(context))
                yield Source(what, reference_of(identities.get(name, {"model": name})), licence)


def _named(step: StepFacts, role: str) -> Iterator[str]:
    """Whom a step names in a role."""
    for field in _fields(step, role):
        value = step.settings.get(field) or ()
        yield from (value,) if isinstance(value, str) else map(str, value)


def _fields(step: StepFacts, role: str) -> list[str]:
    return fields_of(VERBS[step.verb].settings, role) if step.verb in VERBS else []


def _opened(context: StepContext) -> Callable[[str], Path]:
    return lambda name: context.checkpoint(name).folder()


def _data(context: StepContext, steps: Sequence[StepFacts]) -> Iterator[Source]:
    for step in steps:
        if not any(_fields(step, role) for role in DATA):
            continue
        prompts = set((step.settings.get("prompts") or {}).values())
        for text in step.parts.get("files") or {}:
            if text not in prompts:
                path = context.path(text)
                yield Source("data", _shown(text, path), licence_of_data(context.recipe, text, context.recipe_folder))
        for name in hub_datasets([step]):
            yield Source("data", name, _hub_licence(context, name))


def _hub_licence(context: StepContext, name: str) -> str | None:
    """What is known of a hub data set, and what the recipe states of any part of it."""
    stated = [licence for data, licence in stated_for_data(context.recipe) if data.startswith(f"hub:{name}")]
    return strictest(of_reference(name), *stated)


def _shown(text: str, path: Path) -> str:
    """A data file's name as the recipe has it, without the way to it."""
    return path.name if Path(text).is_absolute() else re.sub(r"^(\$data|\.\.?)/", "", text)
