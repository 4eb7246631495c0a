"""Trees of token ids as plain lists and as bytes, for processes that encode and for the disk. Imports no torch.

A tree has one path for each way in which a model reads a row. A pair has two, which share the
prompt. A conversation has one for as long as its template writes what was said before as it wrote
it when it was said, and another wherever it does not (thoughts that are left out later on, an end
that only the last answer has): each answer stands after what inference would have sent before it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

Ids = Sequence[int]


class EncodedPath(NamedTuple):
    """kept: how many first ids are those of the path before, none of them scored here. runs: the
    ids after those, alternately unscored (perhaps none) and scored.
    """

    kept: int
    runs: tuple[Ids, ...]


Encoded = tuple[EncodedPath, ...]


def of_answers(prompt: Ids, answers: Sequence[Ids]) -> Encoded:
    """One prompt with each of its answers, all scored."""
    first, *others = answers
    return EncodedPath(0, (prompt, first)), *(EncodedPath(len(prompt), ((), answer)) for answer in others)


def of_wholes(texts: Sequence[Ids]) -> Encoded:
    """Whole conversations of which nothing is learnt token by token, each after what it shares with the one before."""
    paths: list[EncodedPath] = []
    before: Ids = ()
    for ids in texts:
        kept = _common(before, ids)
        paths.append(EncodedPath(kept, (ids[kept:],)))
        before = ids
    return tuple(paths)


def of_turns(turns: Sequence[tuple[Ids, Ids]]) -> Encoded:
    """The learnt answers of one conversation, in order, each with the ids of all that was sent before it.

    An answer goes on from the path of the one before it where that path is what was sent, id by id.
    """
    paths: list[EncodedPath] = []
    whole: list[int] = []  # the last path's ids
    for prompt, answer in turns:
        same = _common(whole, prompt)
        if paths and same == len(whole):
            kept, runs = paths[-1]
            paths[-1] = EncodedPath(kept, (*runs, prompt[same:], answer))
        else:
            paths.append(EncodedPath(same, (prompt[same:], answer)))
        whole = [*prompt, *answer]
    return tuple(paths)


def _common(a: Ids, b: Ids) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def pack(tree: Encoded, liked: bool | None = None) -> bytes:
    """int32 in the machine's byte order: the number of paths; of each, kept, the number of runs and
    their lengths; the ids of all runs; then whether the tree's answer was liked (1), was not (0), or
    nothing is said of it (-1).
    """
    record = array("i", [len(tree)])
    for path in tree:
        record.extend((path.kept, len(path.runs), *map(len, path.runs)))
    for path in tree:
        for run in path.runs:
            record.extend(run)
    record.append(-1 if liked is None else int(liked))
    return record.tobytes()


def liked_in(record: bytes) -> bool | None:
    """Whether a packed tree's answer was liked; None where nothing is said of it."""
    (mark,) = array("i", record[-array("i").itemsize :])
    return None if mark < 0 else bool(mark)


def unpack(record: bytes) -> Encoded:
    """What was packed; its runs are lists."""
    numbers = array("i")
    numbers.frombytes(record)
    heads: list[tuple[int, Sequence[int]]] = []
    place = 1
    for _ in range(numbers[0]):
        kept, runs = numbers[place : place + 2]
        heads.append((kept, numbers[place + 2 : place + 2 + runs]))
        place += 2 + runs
    ends = list(accumulate((length for _, lengths in heads for length in lengths), initial=place))
    runs_of_all = iter([numbers[begin:end].tolist() for begin, end in pairwise(ends)])
    return tuple(EncodedPath(kept, tuple(next(runs_of_all) for _ in lengths)) for kept, lengths in heads)
