"""Trees of token ids on disk, read where they are asked for.

Two unnamed files in a step's work folder, gone with the process: the ids, int32, a tree's
prompt and answers one after another; and for each tree, int64, where it begins and how long
each part is. So a data set of any size holds no memory, and a prompt that two answers share
is held once.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from openbezoar.errors import RunError
from openbezoar.forest import TokenPath, Tree


class TreeStore(Sequence[Tree]):
    """A sequence of trees, each a prompt with one or more answers, all scored; every tree has as many as the first.

    folder: where the files are to lie. Raises RunError if the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._ids = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  both live as long as the store
        self._places = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._folder, self._trees, self._end, self._parts = folder, 0, 0, 0
        self._flushed = True

    def append(self, parts: Sequence[bytes]) -> None:
        """Add a tree: int32 ids of the prompt, then of each answer."""
        self._parts = self._parts or len(parts)
        assert len(parts) == self._parts
        lengths = [len(part) for part in parts]
        try:
            self._ids.writelines(parts)
            self._places.write(array("q", [self._end, *lengths]))
        except OSError as error:
            raise self._full(error) from error
        self._end += sum(lengths)
        self._trees += 1
        self._flushed = False

    def __len__(self) -> int:
        return self._trees

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | list[Tree]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._trees))]
        if not -self._trees <= index < self._trees:
            raise IndexError(f"tree {index} of {self._trees}")
        self._flush()
        size = 8 * (1 + self._parts)
        place, *lengths = array("q", os.pread(self._places.fileno(), size, index % self._trees * size))
        ids = array("i", os.pread(self._ids.fileno(), sum(lengths), place)).tolist()
        parts, first = [], 0
        for length in lengths:
            parts.append(ids[first : first + length // 4])
            first += length // 4
        return tuple(TokenPath.of(parts[0], answer) for answer in parts[1:])

    def _flush(self) -> None:
        if not self._flushed:
            try:
                self._ids.flush()
                self._places.flush()
            except OSError as error:
                raise self._full(error) from error
            self._flushed = True

    def _full(self, error: OSError) -> RunError:
        return RunError(
            f"{self._folder}: the rows' tokens cannot be written ({error.strerror}); they take {self._end / 1e9:.1f} GB"
            " so far, free disk space"
        )
