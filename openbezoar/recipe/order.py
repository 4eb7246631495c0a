"""Steps in order, what they need, and what a model was made from: three walks over names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pydantic import BaseModel

from openbezoar.recipe.refs import references


class Circle(ValueError):
    """Names that need one another; ``names`` begins and ends with the same one."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(" → ".join(names))
        self.names = names


def in_order(inputs: Mapping[str, Iterable[str]]) -> list[str]:
    """Names with their inputs first, otherwise as given; an input that is no key is passed over. Raises Circle."""
    ordered: dict[str, None] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in ordered or name not in inputs:
            return
        if name in trail:
            raise Circle((*trail[trail.index(name) :], name))
        for needed in inputs[name]:
            visit(needed, (*trail, name))
        ordered[name] = None

    for name in inputs:
        visit(name, ())
    return list(ordered)


def needed_by(inputs: Mapping[str, Iterable[str]], name: str) -> set[str]:
    """A name with everything that it needs, directly or through others."""
    needed, todo = {name}, [name]
    while todo:
        new = [other for other in inputs[todo.pop()] if other not in needed]
        needed.update(new)
        todo += new
    return needed


def base_of(step: BaseModel) -> str | None:
    """The model or step that a step's model is made from; None of one that makes no model."""
    return next((reference.name for reference in references(step) if reference.ref.role == "base"), None)


def lineage(steps: Mapping[str, BaseModel], name: str) -> Iterator[str]:
    """A model's name, what it was made from, and so on; the last one is a model as it came, or none."""
    names: str | None = name
    passed: set[str] = set()
    while names is not None and names not in passed:  # a circle is told of where the steps are ordered
        yield names
        passed.add(names)
        names = base_of(steps[names]) if names in steps else None
