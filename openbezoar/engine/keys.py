"""What a step's key is made of: everything that its result depends on, as plain values.

The parts stand in the step's manifest, so that what differs can be said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openbezoar import prompts
from openbezoar.context import StepPlace
from openbezoar.engine.names import data_files, named_by, other_files
from openbezoar.errors import ModelError, RecipeError
from openbezoar.models.references import digests
from openbezoar.models.shapes import model_of
from openbezoar.recipe.blocks import TEMPLATES, LocalModel, PromptSpec, RewardModel
from openbezoar.recipe.refs import in_key_as, not_in_key
from openbezoar.recipe.verbs import row_of
from openbezoar.store.digests import digest, file_digest


def parts_of(place: StepPlace, input_keys: dict[str, str]) -> dict[str, Any]:
    """Everything a step's result depends on. input_keys: of the steps that it reads."""
    recipe, step = place.recipe, place.recipe.steps[place.name]
    row = row_of(step)
    files: dict[str, str] = {}
    models: dict[str, Any] = {}
    for reference in named_by(place):
        kind, name = reference.ref.kind, reference.name
        if name in input_keys and kind not in ("file", "folder"):
            continue
        if kind == "model":
            models[name] = _model_identity(place, name)
        elif kind == "data":
            files |= {key: file_digest(file) for key, file in data_files(place, reference).items()}
        elif kind in ("file", "folder"):
            files |= {key: file_digest(file) for key, file in other_files(place, reference).items()}
    prompt = recipe.prompt.model_dump(mode="json")
    if template := _template_file(place, recipe.prompt, "prompt"):
        files[recipe.prompt.template] = file_digest(template)
    own = row.part("parts")
    engines = _engines(place)
    return {
        "name": place.name,
        "settings": _without_licences({**step.model_dump(mode="json", exclude=not_in_key(step)), **in_key_as(step)}),
        "inputs": input_keys,
        "files": files,
        "models": models,
        "prompt": prompt,
        "seed": recipe.seed,
        "version": row.version,
        "texts": _texts(place),
        **({"engines": engines} if engines else {}),
        **(own(step, place) if own else {}),
    }


def _engines(place: StepPlace) -> dict[str, Any]:
    """The engines that the recipe names for the models that a step may ask, by the models' names.

    A model that it only makes another one from is none of them.
    """
    found = {}
    for reference in named_by(place):
        if reference.ref.kind == "model" and reference.ref.role != "base":
            spec = model_of(place.recipe, reference.name)
            if isinstance(spec, LocalModel) and (by := spec.answers_by()):
                found[reference.name] = by
    return found


def _texts(place: StepPlace) -> dict[str, str]:
    """Digests of the project's own texts that a step sends to a model. Raises RecipeError for an
    override of no such text.
    """
    step = place.recipe.steps[place.name]
    names = row_of(step).part("texts")
    texts = tuple(names(step)) if names else ()
    for name in getattr(step, "prompts", None) or {} if names else ():
        if name not in texts:
            raise RecipeError(f"{place.where}.prompts: no text '{name}'; this step sends {', '.join(texts)}")
    return {name: digest(prompts.load(name, {})) for name in texts}


def _template_file(place: StepPlace, prompt: PromptSpec, key: str) -> Path | None:
    """The file of a prompt's chat template; None for one that has a name."""
    if prompt.template in TEMPLATES:
        return None
    file = place.path(prompt.template)
    if not file.is_file():
        raise RecipeError(
            f"{place.recipe_path}: {key}.template: '{prompt.template}' is none of {', '.join(TEMPLATES)}, and there is"
            f" no file {file}"
        )
    return file


def _without_licences(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {key: _without_licences(value) for key, value in settings.items() if key != "licence"}
    return [_without_licences(value) for value in settings] if isinstance(settings, list) else settings


def _model_identity(place: StepPlace, name: str) -> Any:
    """What makes a model the same one: its reference, and for local files their bytes."""
    spec = place.recipe.models[name]
    kept = {} if spec.thoughts == "drop" else {"thoughts": spec.thoughts}
    if not isinstance(spec, LocalModel):
        return {**spec.identity(), **kept}
    identity: dict[str, Any] = {
        "model": spec.model,
        "dtype": spec.dtype,
        "prompt": spec.prompt.model_dump(mode="json") if spec.prompt else None,
        **({"product": spec.product} if isinstance(spec, RewardModel) else {}),
        **kept,
    }
    if spec.prompt and (template := _template_file(place, spec.prompt, f"models.{name}.prompt")):
        identity["template"] = file_digest(template)
    if spec.model.startswith("pypi:"):
        return identity
    folder = place.path(spec.model)
    if folder.is_file():
        identity["file"] = file_digest(folder)
    elif folder.is_dir():
        identity["files"] = digests(folder)
    elif spec.model.startswith(("/", ".", "~", "$data")) or spec.model.endswith(".gguf"):  # what is no name on the hub
        raise ModelError(
            f"{place.recipe_path}: models.{name}: no folder or file {folder}; expected a folder, org/name on the hub,"
            " pypi:NAME or a .gguf file"
        )
    return identity


GROUPS = {"settings": "{}: {} → {}", "prompt": "prompt.{}: {} → {}"}
MEMBERS = {"files": "file {} changed", "texts": "text {} changed", "models": "model {} changed"}
KNOWN = {"name", "inputs", "seed", "version", *GROUPS, *MEMBERS}


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In a few words, the first things in which two keys' parts differ."""
    words = []
    for group, said in GROUPS.items():
        before, after = old.get(group, {}), new[group]
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        words += [said.format(key, _short(before.get(key)), _short(after.get(key))) for key in changed]
    for group, said in MEMBERS.items():
        words += [said.format(one) for one in new[group] if old.get(group, {}).get(one) != new[group][one]]
    words += _further(old, new)
    if old.get("seed") != new["seed"]:
        words.append("seed changed")
    if old.get("version") != new["version"]:
        words.append("the stage's code changed")
    if not words:
        changed = [name for name in new["inputs"] if old.get("inputs", {}).get(name) != new["inputs"][name]]
        more = f" and {len(changed) - 2} more" if len(changed) > 3 else ""
        listed = ", ".join(changed[: 2 if more else 3])
        words = [f"its input{'s' * (len(changed) > 1)} {listed}{more} changed"] if changed else []
    return "; ".join(words[:3]) or "its inputs changed"


def _further(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Of the groups that a verb adds: which has changed, or which member of it."""
    words = []
    for group in dict.fromkeys((*old, *new)):
        before, after = old.get(group), new.get(group)
        if group in KNOWN or before == after:
            continue
        if isinstance(before or after, dict):
            members = {**(before or {}), **(after or {})}
            changed = [one for one in members if (before or {}).get(one) != (after or {}).get(one)]
            words += [f"{group.removesuffix('s')} {one} changed" for one in changed]
        else:
            words.append(f"{group} changed")
    return words


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
