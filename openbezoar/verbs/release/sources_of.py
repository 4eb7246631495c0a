"""What a release was made from, with the licence each source states.

Reads manifests, fetched models' ``source.json`` and READMEs beside data files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openbezoar.publishing.licences import Source, of_model_folder, of_reference, strictest
from openbezoar.publishing.licences_of import licence_of_data, stated_for_data
from openbezoar.recipe.blocks import LocalModel, ServerModel
from openbezoar.reporting.facts import RunFacts, reference_of
from openbezoar.reporting.results import StepFacts
from openbezoar.verbs.release.cards import hub_datasets

if TYPE_CHECKING:
    from openbezoar.context import StepContext

READS = ("generate", "filter", "sft", "dpo")  # verbs whose files become part of a model or its data


def sources_of(facts: RunFacts, context: StepContext, names: Sequence[str]) -> list[Source]:
    """Base models, teachers, judges and data behind the named steps."""
    steps = facts.lineage(names)
    found: dict[tuple[str, str], Source] = {}
    for source in (*_models(facts, context, steps), *_data(context, steps)):
        found.setdefault((source.what, source.name), source)
    return list(found.values())


def _models(facts: RunFacts, context: StepContext, steps: Sequence[StepFacts]) -> Iterator[Source]:
    identities = facts.models()
    for step in steps:
        roles = (
            [("base model", "model")] if step.verb in ("sft", "dpo") else [("teacher", "teacher"), ("judge", "judge")]
        )
        for what, key in roles:
            name = step.settings.get(key)
            if name in context.recipe.models:
                yield Source(what, reference_of(identities.get(name, {"model": name})), _model_licence(context, name))


def _model_licence(context: StepContext, name: str) -> str | None:
    """What the source and the recipe state, the strictest of it."""
    spec = context.recipe.models[name]
    if isinstance(spec, ServerModel):
        return strictest(of_reference(spec.model), spec.licence)
    assert isinstance(spec, LocalModel)
    return strictest(of_model_folder(context.checkpoint(name).folder()), of_reference(spec.model), spec.licence)


def _data(context: StepContext, steps: Sequence[StepFacts]) -> Iterator[Source]:
    for step in steps:
        if step.verb not in READS:
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
