"""What a field of a step refers to, and whether it is part of the step's key: said where the field is declared.

Inputs, checks of names, keys, licences, decontamination and the plan read it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from openbezoar.recipe.blocks import DataSpec, data_specs

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Ref:
    """A field holds a name, or several in a list or a mapping.

    kind: 'model', a model of the recipe or a step that made one; 'step', a step; 'data', rows of a
    step, a file or the hub; 'file' and 'folder', what lies on disk.
    to: what a step that is named must produce (``Verb.produces``); any step will do for 'step' without it.
    also: another product that will do, as a reward model does in a judge's place.
    role: what becomes of it. For 'teacher', 'judge', 'seeds' and 'rows' an open policy asks for a licence;
    'benchmark' is kept out of training rows by a filter that decontaminates; 'measured' is measured on as well, but no
    filter's key knows of it; 'base' is what the step's model is made from.
    most: the field beside it that says how many of the rows are taken, the first ones.
    every: the text that stands for all steps which do more than tell about others.
    """

    kind: Literal["model", "step", "data", "file", "folder"]
    to: str = ""
    also: str = ""
    role: str = ""
    every: str = ""
    most: str = ""

    @property
    def product(self) -> str:
        """What a step that is named must produce; '' for anything."""
        return self.to or {"model": "model", "data": "rows"}.get(self.kind, "")

    def takes(self, products: Collection[str]) -> bool:
        """Whether something that produces these will do."""
        return not self.product or not {self.product, self.also}.isdisjoint(products)


ALWAYS = object()


@dataclass(frozen=True)
class NotInKey:
    """A field changes no bit of the step's result, for this reason; with ``at`` only while it has that value."""

    reason: str
    at: Any = ALWAYS


@dataclass(frozen=True)
class InKeyAs:
    """While a field has ``value``, a step's key has ``as_`` in its place, for this reason."""

    value: Any
    as_: Any
    reason: str


class Reference(NamedTuple):
    """A name that a step holds. key: the field, with the name inside of a mapping; rows: of 'data' its long form;
    most: how many of them are taken, None for all.
    """

    key: str
    ref: Ref
    name: str
    rows: DataSpec | None = None
    most: int | None = None


def references(step: BaseModel) -> Iterator[Reference]:
    """Everything that a step names, in the order of its fields."""
    for name, field in type(step).model_fields.items():
        key, value, ref = field.alias or name, getattr(step, name), mark(field, Ref)
        if ref is not None:
            most = getattr(step, ref.most) if ref.most else None
            yield from (one._replace(most=most) for one in _names(key, ref, value))
        else:  # blocks inside of a step, such as the tasks that bring a file of their own, or what has a name
            for block in value if isinstance(value, list) else [value]:
                if isinstance(block, BaseModel):
                    yield from (inner._replace(key=key) for inner in references(block))
            for called, block in value.items() if isinstance(value, dict) else ():
                if isinstance(block, BaseModel):
                    yield from (inner._replace(key=f"{key}.{called}.{inner.key}") for inner in references(block))


def _names(key: str, ref: Ref, value: Any) -> Iterator[Reference]:
    if value is None:
        return
    if isinstance(value, dict):
        for inner, one in value.items():
            yield from _names(f"{key}.{inner}" if ref.kind == "data" else key, ref, one)
    elif ref.kind == "data":
        yield from (Reference(key, ref, spec.data, spec) for spec in data_specs(value))
    elif isinstance(value, list):
        yield from (Reference(key, ref, name) for name in value)
    else:
        yield Reference(key, ref, value)


def mark(field: FieldInfo, kind: Callable[..., Mark]) -> Mark | None:
    """The mark of a kind that a field's annotation carries."""
    return next((one for one in field.metadata if isinstance(one, kind)), None)  # type: ignore[arg-type]


def field_of(kind: type[BaseModel], role: str) -> str | None:
    """The first of ``fields_of``."""
    return next(iter(fields_of(kind, role)), None)


def fields_of(kind: type[BaseModel], role: str) -> list[str]:
    """What a recipe calls the fields of a step's class that have a role."""
    marks = ((field.alias or name, mark(field, Ref)) for name, field in kind.model_fields.items())
    return [name for name, one in marks if one is not None and one.role == role]


def not_in_key(step: BaseModel) -> set[str]:
    """The fields that a step's key leaves out."""
    marks = ((name, mark(field, NotInKey)) for name, field in type(step).model_fields.items())
    return {name for name, one in marks if one is not None and one.at in (ALWAYS, getattr(step, name))}


def in_key_as(step: BaseModel) -> dict[str, Any]:
    """The fields for which a step's key has another value than the recipe, with that value."""
    marks = ((name, mark(field, InKeyAs)) for name, field in type(step).model_fields.items())
    return {name: one.as_ for name, one in marks if one is not None and getattr(step, name) == one.value}
