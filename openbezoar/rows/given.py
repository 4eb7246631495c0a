"""Rows that a program has in memory, as data frames and data sets hold them. Takes mappings, gives plain rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from openbezoar.errors import DataError
from openbezoar.machine.textfiles import without_halves
from openbezoar.rows.fields import kind_of
from openbezoar.rows.known import OneKind
from openbezoar.rows.plain import plain
from openbezoar.rows.records import HALVES, Row


def plain_rows(
    rows: Iterable[Mapping[str, Any]], what: str, mended: Callable[[str], None]
) -> Iterator[tuple[str, Row]]:
    """The rows with where each stands (``what`` and its number), one at a time: arrays as lists,
    not-a-number as null, no half characters.

    mended: called with ``HALVES`` for each row of which a lone surrogate was taken out. Raises
    DataError for what is no mapping, and for a row of another kind than those before it.
    """
    kind = OneKind()
    for number, row in enumerate(rows, 1):
        where = f"{what} {number}"
        if not isinstance(row, Mapping):
            raise DataError(f"{where} is {kind_of(row)}; expected a mapping of fields to values")
        whole, was_mended = without_halves(plain(row))
        if was_mended:
            mended(HALVES)
        kind.check(whole, where)
        yield where, whole
