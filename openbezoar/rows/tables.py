"""Rows that can be gone through again and again, in their order or shuffled, at flat memory."""

from __future__ import annotations

import json
import random
import tempfile
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from openbezoar.rows.files import RowFiles
from openbezoar.rows.hub import Commits, load_rows
from openbezoar.rows.plain import plain
from openbezoar.rows.readers import kind_by_content, rows_of
from openbezoar.rows.records import JsonLines, Row


class RowTable(Protocol):
    """Rows that can be gone through again and again."""

    def __iter__(self) -> Iterator[Row]: ...

    def shuffled(self, seed: int) -> Iterator[Row]:
        """The rows in the order that ``random.Random(seed).shuffle`` gives a list of them."""


class FileRows:
    """The rows of files, one file after another, or a slice of them.

    at: where the row came from that was given last: the file and the row's number in it. scratch,
    mended: as for ``JsonLines``; a shuffle writes the rows to an unnamed file there, and holds eight
    bytes a row.
    """

    def __init__(
        self, files: RowFiles, scratch: Path | None = None, mended: Callable[[str], None] | None = None
    ) -> None:
        self.files, self.scratch, self.mended = files, scratch, mended
        self.at = ""

    def _all(self) -> Iterator[Row]:
        for file in self.files.files:
            for number, row in enumerate(rows_of(file, self.mended), 1):
                self.at = f"{file}: row {number}"
                yield row

    def __iter__(self) -> Iterator[Row]:
        part = self.files.slice
        if part is None:
            return self._all()
        first, last = part.absolute or part.places(sum(1 for _ in FileRows(self.files._replace(slice=None))))
        return islice(self._all(), first, last)

    def shuffled(self, seed: int) -> Iterator[Row]:
        """The rows in the order that ``random.Random(seed).shuffle`` gives a list of them."""
        with tempfile.TemporaryFile(dir=self.scratch) as spool:
            places = array("q")
            for row in self:
                places.append(spool.tell())
                spool.write(json.dumps(row).encode() + b"\n")
            random.Random(seed).shuffle(places)
            for place in places:
                spool.seek(place)
                yield json.loads(spool.readline())


class HubRows:
    """Rows of a data set of the hub (``hub.DataSetRef``), which the hub's client keeps on disk.
    commits: those of the run that reads. Raises DataError saying why it cannot be had.
    """

    def __init__(self, ref: str, commits: Commits | None = None) -> None:
        self.data: Any = load_rows(ref, commits)

    def __iter__(self) -> Iterator[Row]:
        return (plain(row) for row in self.data)

    def shuffled(self, seed: int) -> Iterator[Row]:
        """The rows in the order that ``random.Random(seed).shuffle`` gives a list of them."""
        places = array("q", range(len(self.data)))
        random.Random(seed).shuffle(places)
        return (plain(self.data[place]) for place in places)


def table_of(files: RowFiles, scratch: Path | None = None, mended: Callable[[str], None] | None = None) -> RowTable:
    """The rows of files. One file of JSON lines is shuffled where it lies."""
    if len(files.files) == 1 and files.slice is None and kind_by_content(files.files[0]) == ".jsonl":
        return JsonLines(files.files[0], scratch, mended)
    return FileRows(files, scratch, mended)
