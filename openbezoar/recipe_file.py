"""A recipe's file → a ``Recipe``: YAML, defaults of a verb, ``--set`` overrides, and one-line errors that name the key."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from openbezoar.errors import RecipeError
from openbezoar.recipe import VERBS, DataSpec, Generate, LocalModel, Lora, PromptSpec, Recipe, Rules, ServerModel, TaskSpec, verb_of


class _Twice(ValueError):
    """A mapping has a key twice, of which YAML's own loader drops the first without a word."""


class _Loader(yaml.SafeLoader):
    """As ``yaml.safe_load``, but a key that is there twice is a mistake."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _Twice(f"line {line}: '{key.value}' is there already, in line {lines[key.value]}; rename one or take it out")
            lines[key.value] = line
        return node


def load(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in a file, with ``a.b=value`` overrides applied to its YAML.

    Raises RecipeError with one line naming the key and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; see recipes/ for examples") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; expected a recipe's file, such as recipes/demo.yaml") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not YAML: not UTF-8 text ({error})") from None
    try:
        tree = yaml.load(text, _Loader)
    except _Twice as error:
        raise RecipeError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply; expected a recipe") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with name, models and steps")
    for override in overrides:
        _apply(tree, override)
    return parse(tree, str(path))


def parse(tree: dict[str, Any], where: str) -> Recipe:
    """A recipe from plain data; ``where`` names it in errors."""
    steps = tree.get("steps")
    if not isinstance(steps, dict) or not steps:
        raise RecipeError(f"{where}: steps: expected a mapping from names to steps, at least one")
    defaults = tree.get("defaults") or {}
    _check_defaults(defaults, where)
    parsed = {str(name): _parse_step(str(name), step, defaults, where) for name, step in steps.items()}
    try:
        return Recipe.model_validate({**tree, "steps": parsed})
    except ValidationError as error:
        raise RecipeError(one_line(error, where, Recipe)) from None


def _parse_step(name: str, step: Any, defaults: Any, where: str) -> BaseModel:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise RecipeError(f"{where}: steps: '{name}' cannot be a folder's name; use letters, digits, '-', '_' and '.'")
    if name in ("reviews", "votes"):
        raise RecipeError(f"{where}: steps: a run keeps what people decide in its folder '{name}'; give the step another name")
    if not isinstance(step, dict):
        raise RecipeError(f"{where}: steps.{name}: expected a mapping that begins with a verb ({', '.join(VERBS)})")
    verb = verb_of(step)
    if not verb:
        found = [v for v in VERBS if v in step]
        hint = f"two verbs ({', '.join(found)}); a step has one" if found else f"no verb{_suggest(step, VERBS)}; expected one of {', '.join(VERBS)}"
        raise RecipeError(f"{where}: steps.{name}: {hint}")
    kind = VERBS[verb]
    common = defaults.get(verb, {}) if isinstance(defaults, dict) else {}
    if verb == "generate" and isinstance(common, dict):  # options of one scheme must not reach another
        common = {k: v for k, v in common.items() if k in Generate.model_fields}
    try:
        return kind.model_validate({**(common or {}), **step})
    except ValidationError as error:
        raise RecipeError(one_line(error, f"{where}: steps.{name}", kind)) from None


def _check_defaults(defaults: Any, where: str) -> None:
    if not isinstance(defaults, dict):
        raise RecipeError(f"{where}: defaults: expected a mapping from verbs to settings")
    for verb, settings in defaults.items():
        if verb not in VERBS:
            raise RecipeError(f"{where}: defaults.{verb}: not a verb{_suggest([verb], VERBS)}; expected one of {', '.join(VERBS)}")
        if not isinstance(settings, dict):
            raise RecipeError(f"{where}: defaults.{verb}: expected a mapping from keys to values (it is {settings!r})")
        for key in settings:
            if key not in VERBS[verb].model_fields:
                raise RecipeError(f"{where}: defaults.{verb}.{key}: unknown key{_suggest([key], VERBS[verb].model_fields)}")


def _suggest(given: Any, known: Any) -> str:
    for key in given:
        if close := difflib.get_close_matches(str(key), list(known), n=1):
            return f" (did you mean '{close[0]}' for '{key}'?)"
    return ""


BRANCHES = ("str", "int", "bool", "DataSpec", "ServerModel", "LocalModel", "TaskSpec")


def _is_branch(part: int | str) -> bool:
    """Whether a part of an error's place is no key of the recipe, but names one of the forms that a value may have."""
    return part in BRANCHES or str(part).startswith(("function-", "list["))


def _meant(errors: list[Any]) -> Any:
    """The first error; where a value may have several forms, and each says why it is none of it, that of the form that was meant."""
    first = errors[0]
    at = next((i for i, part in enumerate(first["loc"]) if _is_branch(part)), None)
    if at is None:
        return first
    rivals = [e for e in errors if e["loc"][:at] == first["loc"][:at] and len(e["loc"]) > at]
    if first["loc"][at] == "ServerModel":
        served = "server" in first["input"] if isinstance(first["input"], dict) else first["type"] != "missing"
        rivals = [e for e in rivals if e["loc"][at] == ("ServerModel" if served else "LocalModel")] or rivals
    return max(rivals, key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))


def one_line(error: ValidationError, where: str, kind: type[BaseModel]) -> str:
    """A validation error as one line: the place, what is wrong, the remedy."""
    first = _meant(error.errors())
    place = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        forms = {form.__name__: form for form in (DataSpec, TaskSpec, LocalModel, ServerModel)}
        branch = next((forms[part] for part in reversed(first["loc"]) if part in forms), None)
        fields: set[str] = set()
        for block in (branch,) if branch else (kind, Lora, Rules, DataSpec, TaskSpec, PromptSpec, LocalModel, ServerModel):
            fields |= {field for field in block.model_fields if field != key}
        return f"{where}: {place}: unknown key{_suggest([key], fields)}; see docs/recipe-reference.md or remove it"
    if first["type"] == "missing":
        return f"{where}: {place}: missing; add it"
    message = "expected a mapping" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first.get("input"), (dict, BaseModel)) else f" (it is {first.get('input')!r})"
    return f"{where}: {place}: {message}{given}" if place else f"{where}: {message}"


def _apply(tree: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise RecipeError(f"--set {override}: expected key.path=value, such as steps.dpo.beta=0.2")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    node: Any = tree
    *parents, last = path.split(".")
    for part in parents:
        if not isinstance(node, dict):
            raise RecipeError(f"--set {override}: '{part}' lies inside a value that has no keys")
        if part not in node and node is tree.get("steps"):
            raise RecipeError(f"--set {override}: no step '{part}'{_suggest([part], node)}")
        node = node.setdefault(part, {})
    if not isinstance(node, dict):
        raise RecipeError(f"--set {override}: '{parents[-1]}' is a plain value, it has no key '{last}'")
    node[last] = value
