"""The fields of a row: a text that must be there, one that may, and what would be left out. Takes
rows, writes nothing.

A form uses a field of ``known.BESIDE``, or ``check_beside`` refuses the row: nothing that was said
to a model is left out in silence. Other fields are notes, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openbezoar.errors import DataError, fields_of, shown
from openbezoar.rows.known import BESIDE, INSTRUCTION, RESPONSE, Fields, check_instructed

Names = tuple[str, ...]


def text_in(row: Fields, names: Names, where: str) -> str:
    """The text in the first field of ``names`` that holds one. Raises DataError saying what is there instead."""
    text = next((row[name] for name in names if isinstance(row.get(name), str)), None)
    if text is not None:
        return str(text)
    present = next(
        (name for name in names if row.get(name) is not None), next((name for name in names if name in row), None)
    )
    if present is None:
        if names in (INSTRUCTION, RESPONSE):
            check_instructed(row, where)
        raise absent(row, names, where)
    raise DataError(f"{where}: '{present}' is {kind_of(row[present])}; expected a text: fill it in, or drop the row")


def absent(row: Fields, names: Names, where: str) -> DataError:
    """The error for a row that has none of some fields."""
    others = f" (or {' or '.join(map(repr, names[1:]))})" if len(names) > 1 else ""
    return DataError(f"{where}: no field '{names[0]}'{others}; it has {fields_of(row)}")


def beside(row: Fields, name: str, where: str) -> str:
    """The text of a field that a row need not have, "" without one. Raises DataError if it holds something else."""
    value = row.get(name)
    if value is None:
        return ""
    return text_in(row, (name,), where)


def one_of(row: Fields, names: Names, where: str) -> str | None:
    """The text that a row has under one of several names of one thing; None without one. Raises
    DataError if two of them say different things.
    """
    given = {name: beside(row, name, where) for name in names if row.get(name) is not None}
    telling = {name: text for name, text in given.items() if text.strip()}
    if len({text.strip() for text in telling.values()}) > 1:
        first, second, *_ = telling
        raise ambiguous(where, first, second)
    return next(iter((telling or given).values()), None)


def ambiguous(where: str, first: str, second: str) -> DataError:
    """The error for two fields that say different things where one is read."""
    return DataError(
        f"{where}: '{first}' and '{second}' say different things, and only one can be read; leave the other out, as"
        f" with rename: {{{second}: unused}}"
    )


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list of messages" if holds_messages(value) else "a list"
    if isinstance(value, dict):
        return "an object"
    return str(value).lower() if isinstance(value, bool) else shown(value)


def holds_messages(value: Any) -> bool:
    """Whether a value is a list, not empty, of objects that say who speaks."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and {"role", "from"} & set(one) for one in value)
    )


def check_beside(row: Fields, where: str, uses: frozenset[str], *, prompt: str, answers: Sequence[str] = ()) -> None:
    """Raises DataError for a field of ``BESIDE`` outside of ``uses`` that says something that
    neither ``prompt`` nor, a list of messages, ``answers`` do.
    """
    for name, remedy in BESIDE.items():
        value = row.get(name)
        if name in uses or value is None or value in ([], {}):
            continue
        if isinstance(value, str) and value.strip() in prompt:  # an empty one, or one that stands in the prompt already
            continue
        if holds_messages(value) and all(_is_said(one, prompt, answers) for one in value):
            continue
        raise DataError(
            f"{where}: the field '{name}' belongs to the prompt and would be left out; {remedy.replace('%s', name)}"
        )


def _is_said(message: Fields, prompt: str, answers: Sequence[str]) -> bool:
    text = message.get("content", message.get("value"))
    return isinstance(text, str) and (text.strip() in prompt or any(text.strip() in answer for answer in answers))
