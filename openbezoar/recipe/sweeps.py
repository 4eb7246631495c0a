"""A step with a sweep → a step for each value, and one by its name that chooses the best of them.

All of it is done when a recipe is read, so that plans, keys, and going on after a kill know ordinary steps only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from itertools import product
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from openbezoar.errors import RecipeError, shown
from openbezoar.recipe.blocks import kinds_of
from openbezoar.recipe.comparable import OF_THE_ROWS, SCALED, UNITS
from openbezoar.recipe.refs import Ref, mark
from openbezoar.recipe.train_steps import Training
from openbezoar.recipe.verbs import VERBS, verb_of


def expanded(steps: Mapping[Any, Any], defaults: Any, where: str) -> dict[str, Any]:
    """Plain steps, each that has a sweep as several. Raises RecipeError for a sweep that cannot be made."""
    made: dict[str, Any] = {}
    for name, step in steps.items():
        swept = step.get("sweep") if isinstance(step, Mapping) else None
        fan = {name: step} if swept is None else _fan(str(name), step, defaults, f"{where}: steps.{name}")
        if twice := [one for one in fan if one in made or (one != name and one in steps)]:
            raise RecipeError(f"{where}: steps.{name}.sweep: there is a step '{twice[0]}' already; rename that one")
        made |= fan
    return made


def _fan(name: str, step: Mapping[str, Any], defaults: Any, where: str) -> dict[str, Any]:
    kind = _kind(step)
    if kind is None:
        return {name: step}  # refused where the step is read: its verb has no sweep
    verb, sweep = verb_of(step), step["sweep"]
    if not isinstance(sweep, Mapping):
        raise RecipeError(f"{where}.sweep: expected a mapping from keys to lists of values (it is {shown(sweep)})")
    by = sweep.get("by", "loss")
    keys = {str(key): values for key, values in sweep.items() if key != "by"}
    if by not in kind.measures:
        raise RecipeError(f"{where}.sweep.by: {verb} steps have {', '.join(kind.measures)} (it is {shown(by)})")
    if not keys:
        raise RecipeError(f"{where}.sweep: no key; expected one with its values, such as learning_rate: [1e-4, 3e-4]")
    common = defaults.get(verb) or {} if isinstance(defaults, Mapping) else {}
    for key, values in keys.items():
        _check(key, values, by, step, kind, f"{where}.sweep.{key}")
    fan: dict[str, Any] = {}
    told: dict[str, dict[str, Any]] = {}
    for chosen in product(*(list(enumerate(values)) for values in keys.values())):
        picked = dict(zip(keys, chosen, strict=True))
        own = ".".join([name, *(_called(key, number, value) for key, (number, value) in picked.items())])
        if own in fan:
            raise RecipeError(f"{where}.sweep: a value of {', '.join(keys)} is there twice; take one out")
        fan[own] = deepcopy({"draws_as": name, **common, **{k: v for k, v in step.items() if k != "sweep"}})
        for key, (_, value) in picked.items():
            _put(fan[own], key, value, f"{where}.sweep.{key}")
        told[own] = {key: value for key, (_, value) in picked.items()}
    _check_distinct(fan, kind, f"{where}.sweep")
    return {**fan, name: {"choose": list(fan), "by": by, "values": told, **_gated(fan, kind)}}


def _check_distinct(fan: Mapping[str, Any], kind: type[Training], where: str) -> None:
    """Raise RecipeError for values that are written in two ways, such as 1 and 1.0."""
    known: list[tuple[str, Training]] = []
    for own, step in fan.items():
        try:
            read = kind.model_validate(step)
        except ValidationError:
            continue  # told of where the steps are read
        if same := next((other for other, one in known if one == read), None):
            raise RecipeError(f"{where}: '{same}' and '{own}' are one value, written in two ways; take one out")
        known.append((own, read))


def _gated(fan: Mapping[str, Any], kind: type[Training]) -> dict[str, Any]:
    """What the choice is asked of the step that it takes; the steps chosen among are no longer asked it."""
    if "beats" not in kind.model_fields:
        return {}
    asked = [step.pop("beats") for step in fan.values() if "beats" in step]
    for step in fan.values():
        step["beats"] = "nothing"
    return {"beats": asked[0]} if asked else {}


def _kind(step: Mapping[str, Any]) -> type[Training] | None:
    """The class of a plain step's settings; None of one that does not train."""
    row = VERBS.get(verb_of(step))
    return row.settings if row is not None and issubclass(row.settings, Training) else None


def _check(key: str, values: Any, by: str, step: Mapping[str, Any], kind: type[Training], where: str) -> None:
    """Raise RecipeError for a key that no sweep can be about, or for values that are none."""
    first = key.partition(".")[0]
    if not isinstance(values, list) or len(values) < 2:
        raise RecipeError(f"{where}: expected a list of two values or more (it is {shown(values)})")
    if first not in kind.model_fields or first == "sweep":
        return  # told of where the steps are read
    if first == "beats":
        raise RecipeError(f"{where}: changes nothing of what is trained; give one value, which the chosen one is asked")
    if mark(kind.model_fields[first], Ref) is not None:
        raise RecipeError(f"{where}: names rows or a model, so that the steps could not be compared; write them out")
    if first in OF_THE_ROWS:
        raise RecipeError(f"{where}: decides on which rows is measured, so that the steps could not be compared")
    if (beside := _value(step, key)) is not None:
        raise RecipeError(f"{where}: '{key}' stands beside it with one value ({shown(beside)}); keep one of the two")
    others = [measure for measure in kind.measures if measure not in SCALED]
    if by in SCALED and first in UNITS:
        raise RecipeError(
            f"{where}: the held-out {by} is in other units for each value; set by: {' or '.join(others)} in the sweep"
        )


def _value(step: Any, key: str) -> Any:
    """What a plain step has under a key; None for nothing."""
    for part in key.split("."):
        step = step.get(part) if isinstance(step, Mapping) else None
    return step


def _called(key: str, number: int, value: Any) -> str:
    """A value in a step's name."""
    last = key.rpartition(".")[2]
    plain = str(value).lower() if isinstance(value, str | int | float) else str(number + 1)
    return f"{last}-{re.sub(r'[^A-Za-z0-9._-]', '_', plain)}"


def _put(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{where}: '{parent}' is a plain value in this step, it has no key '{last}'")
    tree[last] = value


def set_by_list(tree: Mapping[str, Any], path: list[str], value: Any) -> bool:
    """Take ``steps.NAME.KEY=[values]`` of a step that trains, whose key takes one value, as a sweep; whether it was
    one. A plain value ends a sweep of that key.
    """
    root, name, key = path[0], ".".join(path[1:2]), path[2:]
    steps = tree.get("steps") if root == "steps" else None
    step = steps.get(name) if isinstance(steps, Mapping) else None
    if not isinstance(step, dict) or not key or key[0] == "sweep" or (kind := _kind(step)) is None:
        return False
    dotted, sweep = ".".join(key), step.get("sweep")
    if not isinstance(value, list) or not _takes_one(kind, key):
        if isinstance(sweep, dict) and sweep.pop(dotted, None) is not None and not set(sweep) - {"by"}:
            del step["sweep"]
        return False
    step["sweep"] = {**(sweep if isinstance(sweep, Mapping) else {}), dotted: value}
    _remove(step, key)
    return True


def _remove(step: dict[str, Any], key: list[str]) -> None:
    """Take one value away for which several stand now."""
    for parent in key[:-1]:
        inner = step.get(parent)
        if not isinstance(inner, dict):
            return
        step = inner
    step.pop(key[-1], None)


def _takes_one(kind: type[BaseModel], key: list[str]) -> bool:
    """Whether a key of a class of settings takes a value that is no list."""
    field = kind.model_fields.get(key[0])
    if field is None:
        return False
    kinds = kinds_of(field.annotation)
    if len(key) == 1:
        return not any(get_origin(one) is list for one in kinds)
    inner = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
    return any(_takes_one(one, key[1:]) for one in inner)
