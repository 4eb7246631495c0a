"""A recipe's file → a ``Recipe``: YAML, defaults of a verb, ``--set`` overrides, and one-line
errors that name the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from openbezoar.errors import RecipeError, closest, named, shown
from openbezoar.machine.textfiles import read_text
from openbezoar.recipe import shipped
from openbezoar.recipe.blocks import DataSpec, LocalModel, PromptSpec, RewardModel, ServerModel
from openbezoar.recipe.data_steps import Rules
from openbezoar.recipe.measure_steps import TaskSpec
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.sweeps import expanded, set_by_list
from openbezoar.recipe.train_steps import Lora
from openbezoar.recipe.verbs import VERBS, verb_of, verbs_in

# values of a recipe, each alias counted as all that it stands for; the largest one here has some
# hundreds
MOST = 100_000
LONGEST = 600  # characters of what YAML or the schema says about a mistake


OWN_FOLDERS = {"reviews": "what people decide", "votes": "what people decide", "track": "trackers' files"}
LARGEST = 2**1000  # a whole number that every float can still hold


class _Unfit(ValueError):
    """YAML that cannot be a recipe, though YAML's own loader takes it."""


class _Loader(yaml.SafeLoader):
    """As ``yaml.safe_load``, but a key that is there twice, of which that drops the first without a word, is a mistake.

    So are halves of characters, which no tokenizer takes.
    """

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        try:  # JSON writes a character as a pair of surrogates, which YAML's loader leaves apart
            node.value = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            raise _Unfit(
                f"line {node.start_mark.line + 1}: half a character (a lone surrogate) in a text; write the whole"
                " character"
            ) from None
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = int(super().construct_yaml_int(node))
        if abs(value) >= LARGEST:
            raise _Unfit(
                f"line {node.start_mark.line + 1}: a whole number of hundreds of digits; expected one that a setting"
                " can have"
            )
        return value

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _Unfit(
                    f"line {line}: '{named(key.value)}' is there already, in line {lines[key.value]}; rename one or"
                    " take it out"
                )
            lines[key.value] = line
        return node


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _tree(text: str) -> Any:
    """YAML as plain values. Raises _Unfit before anything is built that is larger than a recipe or holds itself."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _checked(loader, node)
    finally:
        loader.dispose()


def _checked(loader: _Loader, root: yaml.Node) -> Any:
    sizes: dict[int, int] = {}  # of finished nodes; 0 while their inner ones are counted
    stack = [root]
    while stack:
        node = stack[-1]
        children = (
            [inner for pair in node.value for inner in pair] if isinstance(node, yaml.MappingNode) else node.value
        )
        inner = children if isinstance(node, yaml.CollectionNode) else []
        if id(node) not in sizes:
            sizes[id(node)] = 0
            if any(sizes.get(id(child)) == 0 for child in inner):
                raise _Unfit(
                    f"line {node.start_mark.line + 1}: an alias stands inside of what it stands for; write the"
                    " value out"
                )
            stack += [child for child in inner if id(child) not in sizes]
            continue
        stack.pop()
        sizes[id(node)] = 1 + sum(sizes[id(child)] for child in inner)
        if sizes[id(node)] > MOST:
            raise _Unfit(
                f"line {node.start_mark.line + 1}: aliases (*NAME) make over {MOST:,} values of it; write out what is"
                " meant"
            )
    return loader.construct_document(root)


def _clipped(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def load(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in a file, with ``a.b=value`` overrides applied to its YAML.

    Raises RecipeError with one line naming the key and what to do.
    """
    try:
        text = read_text(path, RecipeError)
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: no such recipe; give a recipe's file, or the name of a shipped one ({', '.join(shipped.names())})"
        ) from None
    except OSError as error:
        raise RecipeError(
            f"{path}: {error.strerror}; expected a recipe's file, or the name of a shipped one, such as demo"
        ) from None
    try:
        tree = _tree(text)
    except _Unfit as error:
        raise RecipeError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise RecipeError(f"{path}: not YAML: {_clipped(error)}") from None
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
    if "steps" not in tree and (hint := _suggest(tree, ["steps"])):
        raise RecipeError(f"{where}: no steps{hint}; expected a mapping from names to steps")
    if not isinstance(steps, dict) or not steps:
        raise RecipeError(f"{where}: steps: expected a mapping from names to steps, at least one")
    defaults = tree.get("defaults") or {}
    _check_defaults(defaults, where)
    steps = expanded(steps, defaults, where)
    parsed = {str(name): _parse_step(str(name), step, defaults, where) for name, step in steps.items()}
    try:
        return Recipe.model_validate({**tree, "steps": parsed})
    except ValidationError as error:
        raise RecipeError(one_line(error, where, Recipe)) from None


def _parse_step(name: str, step: Any, defaults: Any, where: str) -> BaseModel:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise RecipeError(f"{where}: steps: '{name}' cannot be a folder's name; use letters, digits, '-', '_' and '.'")
    if name in OWN_FOLDERS:
        raise RecipeError(
            f"{where}: steps: a run keeps {OWN_FOLDERS[name]} in its folder '{name}'; give the step another name"
        )
    if not isinstance(step, dict):
        raise RecipeError(f"{where}: steps.{name}: expected a mapping that begins with a verb ({', '.join(VERBS)})")
    verb = verb_of(step)
    if not verb:
        verbs = verbs_in(step)
        hint = (
            f"two verbs ({', '.join(verbs)}); a step has one"
            if verbs
            else f"no verb{_suggest(step, VERBS)}; expected one of {', '.join(VERBS)}"
        )
        raise RecipeError(f"{where}: steps.{name}: {hint}")
    kind = VERBS[verb].settings
    common = defaults.get(verb, {}) if isinstance(defaults, dict) else {}
    if isinstance(common, dict):  # options that the class leaves open, as those of one scheme, must not reach another
        common = {k: v for k, v in common.items() if k in kind.model_fields or kind.model_config["extra"] == "forbid"}
    try:
        return kind.model_validate({**(common or {}), **step})
    except ValidationError as error:
        raise RecipeError(one_line(error, f"{where}: steps.{name}", kind)) from None


def _check_defaults(defaults: Any, where: str) -> None:
    if not isinstance(defaults, dict):
        raise RecipeError(f"{where}: defaults: expected a mapping from verbs to settings")
    for verb, settings in defaults.items():
        if verb not in VERBS:
            raise RecipeError(
                f"{where}: defaults.{verb}: not a verb{_suggest([verb], VERBS)}; expected one of {', '.join(VERBS)}"
            )
        if not isinstance(settings, dict):
            raise RecipeError(
                f"{where}: defaults.{verb}: expected a mapping from keys to values (it is {shown(settings)})"
            )
        for key in settings:
            if key not in VERBS[verb].keys:
                raise RecipeError(f"{where}: defaults.{verb}.{key}: unknown key{_suggest([key], VERBS[verb].keys)}")
            if key == "sweep":
                raise RecipeError(f"{where}: defaults.{verb}.sweep: a sweep is of one step; write it there")


def _suggest(keys: Any, known: Any) -> str:
    for key in keys:
        if close := closest(str(key), known):
            return f" (did you mean '{close}' for '{key}'?)"
    return ""


def _meant(errors: list[Any]) -> Any:
    """The first error; where a key is missing, that of an unknown one beside it which was meant for it."""
    first = errors[0]
    if first["type"] != "missing":
        return first
    beside = [e for e in errors if e["type"] == "extra_forbidden" and e["loc"][:-1] == first["loc"][:-1]]
    unknown = {str(e["loc"][-1]): e for e in beside}
    close = closest(str(first["loc"][-1]), unknown)
    if close:
        return unknown[close]
    return beside[0] if beside and len(first["loc"]) > 1 else first


def one_line(error: ValidationError, where: str, kind: type[BaseModel]) -> str:
    """A validation error as one line: the place, what is wrong, the remedy."""
    errors = error.errors()
    first = _meant(errors)
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("("))  # a form's tag
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        forms = {f"({form.__name__})": form for form in (DataSpec, TaskSpec, LocalModel, RewardModel, ServerModel)}
        branch = next((forms[part] for part in reversed(first["loc"]) if part in forms), None)
        fields = {str(e["loc"][-1]) for e in errors if e["type"] == "missing" and e["loc"][:-1] == first["loc"][:-1]}
        for block in (
            (branch,)
            if branch
            else (kind, Lora, Rules, DataSpec, TaskSpec, PromptSpec, LocalModel, RewardModel, ServerModel)
        ):
            fields |= {field for field in block.model_fields if field != key}
        hint = _suggest([key], fields)
        return f"{where}: {place}: unknown key{hint}; see 'openbezoar docs recipe-reference' or remove it"
    if first["type"] == "missing":
        return f"{where}: {place}: missing; add it"
    message = "expected a mapping" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
    secret = {"server", "key"} & set(first["loc"])  # where passwords are put by mistake
    value = (
        "" if secret or isinstance(first.get("input"), (dict, BaseModel)) else f" (it is {shown(first.get('input'))})"
    )
    return f"{where}: {place}: {message}{value}" if place else f"{where}: {message}"


def _apply(tree: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise RecipeError(f"--set {override}: expected key.path=value, such as steps.dpo.beta=0.2")
    try:
        value = _tree(text)
    except _Unfit as error:
        raise RecipeError(f"--set {named(override)}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    if set_by_list(tree, path.split("."), value):
        return
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
