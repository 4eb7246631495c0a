"""A data set as Parquet, with every row's origin and verdict in columns of one type each.

Writes ``train.parquet``, and beside it, for other trainers, files in which a column is a list of messages.
The first columns are there in every data set, empty where a scheme has no such thing, so that data
sets of several schemes can be read as one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "train.parquet"
TEXT, WHOLE, REAL = "string", "int64", "float64"
COLUMNS: Mapping[str, str] = {
    "id": TEXT,
    "instruction": TEXT,
    "response": TEXT,
    "system": TEXT,
    "finish": TEXT,
    "scheme": TEXT,
    "source": TEXT,
    "operation": TEXT,
    "round": WHOLE,
    "depth": WHOLE,
    "parent": TEXT,
    "seed_id": TEXT,
    "teacher": TEXT,
    "judge": TEXT,
    "status": TEXT,
    "rating": REAL,
    "reason": TEXT,
    "language": TEXT,
    "licence": TEXT,
    "hash": TEXT,
}


def write_parquet(
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    file: str = FILE,
    messages: Collection[str] = (),
    columns: Mapping[str, str] = COLUMNS,
) -> tuple[str, ...]:
    """Write rows to a file of a folder; returns the columns. A value that is no text or number is kept as JSON.

    messages: the columns that hold lists of messages; they come first. A column of ``columns`` is always
    there and has its type, unless rows bring one of that name that holds something else.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    names = tuple(dict.fromkeys((*messages, *columns, *(name for row in rows for name in row))))
    made = {}
    for name in names:
        values: list[Any] = [row.get(name) for row in rows]
        if name in messages:
            made[name] = arrow.array([_messages(value) for value in values], type=_messages_type(values))
        else:
            type_ = _type(values, columns.get(name))
            made[name] = arrow.array([_value(value, type_) for value in values], type=arrow.type_for_alias(type_))
    parquet.write_table(arrow.table(made), folder / file)
    return names


def _messages_type(values: Sequence[Sequence[Mapping[str, Any]]]) -> Any:
    """A list of role and content, and of weight where a message has one."""
    import pyarrow as arrow

    weights = [("weight", arrow.int64())] if any("weight" in one for value in values for one in value) else []
    return arrow.list_(arrow.struct([("role", arrow.string()), ("content", arrow.string()), *weights]))


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "content": _value(one["content"], TEXT)} for one in messages]


def _type(values: Sequence[Any], declared: str | None) -> str:
    """The type ``declared`` if it holds all values of a column, else the narrowest one that does."""
    kinds = {type(value) for value in values if value is not None}
    if declared == TEXT or not kinds:
        return declared or TEXT
    if kinds == {bool}:
        return "bool"
    if kinds <= {int, float} and all(abs(value) < 2**63 for value in values if type(value) is int):
        return WHOLE if kinds == {int} and declared != REAL else REAL
    return TEXT


def _value(value: Any, type_: str) -> Any:
    if value is None or type_ in ("bool", WHOLE):
        return value
    if type_ == REAL:
        return float(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate is no UTF-8
