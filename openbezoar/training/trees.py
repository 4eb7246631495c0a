"""Trees of token ids on disk, read where they are asked for.

Two unnamed files in a step's work folder, gone with the process: the trees' records (``encoded``),
one after another, and int64 where each one ends. So a data set of any size holds no memory, and a
prompt that two answers share is held once.
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
from openbezoar.training.encoded import Encoded, liked_in, unpack


class UnpairedTree(tuple[TokenPath, ...]):
    """The tree of one answer, which was liked or was not."""

    liked: bool

    @classmethod
    def of(cls, tree: Tree, liked: bool) -> UnpairedTree:
        labelled = cls(tree)
        labelled.liked = liked
        return labelled


def tree_of(encoded: Encoded, liked: bool | None = None) -> Tree:
    """An encoded tree as the scorer takes it; with ``liked`` an UnpairedTree."""
    paths: list[TokenPath] = []
    for kept, runs in encoded:
        ids = list(paths[-1].ids[:kept]) if paths else []
        scored = [False] * kept
        for place, run in enumerate(runs):
            ids += run
            scored += [place % 2 == 1] * len(run)
        paths.append(TokenPath(tuple(ids), tuple(scored)))
    return tuple(paths) if liked is None else UnpairedTree.of(tuple(paths), liked)


class TreeStore(Sequence[Tree]):
    """A sequence of trees.

    folder: where the files are to lie. Raises RunError if the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._records = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  both live as long as the store
        self._ends = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._folder, self._trees, self._end = folder, 0, 0
        self._flushed = True

    def append(self, record: bytes) -> None:
        """Add a packed tree."""
        try:
            self._records.write(record)
            self._ends.write(array("q", [self._end + len(record)]))
        except OSError as error:
            raise self._full(error) from error
        self._end += len(record)
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
        place = index % self._trees
        # The first tree begins where none ended.
        begin, end = array("q", os.pread(self._ends.fileno(), 16, 8 * place - 8)) if place else (0, self._first_end())
        record = os.pread(self._records.fileno(), end - begin, begin)
        return tree_of(unpack(record), liked_in(record))

    def _first_end(self) -> int:
        return int(array("q", os.pread(self._ends.fileno(), 8, 0))[0])

    def _flush(self) -> None:
        if not self._flushed:
            try:
                self._records.flush()
                self._ends.flush()
            except OSError as error:
                raise self._full(error) from error
            self._flushed = True

    def _full(self, error: OSError) -> RunError:
        return RunError(
            f"{self._folder}: the rows' tokens cannot be written ({error.strerror}); they take {self._end / 1e9:.1f} GB"
            " so far, free disk space"
        )
