"""A data set as Parquet, with every row's origin and verdict in columns of one type each.

Writes ``train.parquet``. The first columns are there in every data set, empty where a scheme
has no such thing, so that data sets of several schemes can be read as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def write_parquet(rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[str, ...]:
    """Write rows to ``train.parquet``; returns the columns. A value that is no text or number is kept as JSON.

    A column of ``COLUMNS`` has its type there, unless rows bring one of that name that holds something else.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    names = tuple(dict.fromkeys((*COLUMNS, *(name for row in rows for name in row))))
    types = {name: _type([row.get(name) for row in rows], COLUMNS.get(name)) for name in names}
    columns = {
        name: arrow.array([_value(row.get(name), types[name]) for row in rows], type=arrow.type_for_alias(types[name]))
        for name in names
    }
    parquet.write_table(arrow.table(columns), folder / FILE)
    return names


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
