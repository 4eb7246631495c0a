"""A batch of trees as one row of tokens: each shared prefix once, no padding.

All paths of a pass are laid out as one forest, depth first: a segment holds the tokens that a
group of paths share (the longest common prefix of their token *ids*), and its children what
smaller groups share, down to single paths. So a pair's prompt, a question's choices, a
template's preamble and a subject's few-shot examples are each computed once. A token attends
to what lies before it on its path; positions count along the path. The last token of a path
predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenPath:
    """Token ids, and for each whether its log-probability is asked for (never the first)."""

    ids: Sequence[int]
    scored: Sequence[bool]

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Sequence[int]) -> TokenPath:
        """Prompt unscored, completion scored."""
        return cls((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))

    @property
    def n_scored(self) -> int:
        return sum(self.scored)


Tree = tuple[TokenPath, ...]


@dataclass(frozen=True)
class Segment:
    """A run of tokens, [start, end) in the row; ``before`` has the runs of its ancestors, the root first."""

    start: int
    end: int
    before: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """One row of n tokens for several trees.

    ids, positions: int64 [n], positions along the path. last: int64 [n], for each token the last one of the subtree
    below its segment, itself included: token i sees token j exactly if j <= i <= last[j]. segments: in the row's
    order, all of it covered. rows and targets, int64 [asked]: where each asked-for token is predicted, and
    what it is, path by path; counts: how many each path asks for, asked: the same as int64 [paths].
    """

    ids: Tensor
    positions: Tensor
    last: Tensor
    rows: Tensor
    targets: Tensor
    asked: Tensor
    segments: tuple[Segment, ...]
    counts: list[int]
    places: list[list[int]]
    cache: dict[Any, Any] = field(default_factory=dict)


def on_device(columns: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, ...]:
    """Each column of numbers as int64 on a device: one copy for all of them, and from pinned memory, so that a GPU goes
    on with what it was told before.
    """
    whole = torch.tensor([number for column in columns for number in column], dtype=torch.long)
    if device.type == "cuda":
        whole = whole.pin_memory()
    return torch.split(whole.to(device, non_blocking=True), [len(column) for column in columns])


def common(a: Sequence[int], b: Sequence[int], most: int) -> int:
    """Length of the common prefix of two sequences of ids, ``most`` at most."""
    for i in range(min(len(a), len(b), most)):
        if a[i] != b[i]:
            return i
    return min(len(a), len(b), most)


def in_order(trees: Sequence[Tree]) -> list[tuple[int, int]]:
    """(index, tokens that the tree adds after the ones before it), trees with common prefixes side by side."""
    order = sorted(range(len(trees)), key=lambda i: tuple(trees[i][0].ids))
    costs = []
    before: Sequence[int] = ()
    for i in order:
        cost = 0
        for path in sorted(trees[i], key=lambda p: tuple(p.ids)):
            cost += len(path.ids) - 1 - common(before, path.ids, len(path.ids) - 1)
            before = path.ids[:-1]
        costs.append((i, cost))
    return costs


def weight(tree: Tree) -> int:
    """Tokens that a tree's row has, what its paths share counted once."""
    return in_order([tree])[0][1]


class _Row:
    """The row in the making."""

    def __init__(self, paths: Sequence[TokenPath]) -> None:
        self.paths = paths
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.last: list[int] = []
        self.segments: list[Segment] = []
        self.places: list[list[int]] = [[] for _ in paths]  # where each forwarded token of a path lies

    def place(self, group: list[int], depth: int, before: tuple[tuple[int, int], ...]) -> None:
        """Lay out what a group of paths, sorted by ids and equal up to ``depth``, has after it."""
        group = [i for i in group if len(self.paths[i].ids) - 1 > depth]
        while group:
            # Sorted, so what begins alike lies together; the group's first path leads one child.
            token = self.paths[group[0]].ids[depth]
            size = next((k for k, i in enumerate(group) if self.paths[i].ids[depth] != token), len(group))
            child, group = group[:size], group[size:]
            first, last = self.paths[child[0]].ids, self.paths[child[-1]].ids
            end = common(first, last, min(len(self.paths[i].ids) for i in child) - 1)
            start = len(self.ids)
            self.ids += first[depth:end]
            self.positions += range(depth, end)
            self.segments.append(Segment(start, len(self.ids), before))
            for i in child:
                self.places[i] += range(start, len(self.ids))
            own = len(self.ids) - start
            self.last += [0] * own
            self.place(child, end, (*before, (start, len(self.ids))))
            self.last[start : start + own] = [len(self.ids) - 1] * own


def lay_out(trees: Sequence[Tree], device: torch.device) -> Layout:
    """The row of some trees."""
    paths = [path for tree in trees for path in tree]
    row = _Row(paths)
    row.place(sorted(range(len(paths)), key=lambda i: tuple(paths[i].ids)), 0, ())
    rows: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for path, places in zip(paths, row.places, strict=True):
        scored = [c for c, flag in enumerate(path.scored) if flag]
        assert not scored or scored[0] > 0, "the first token has nothing before it"
        rows += [places[c - 1] for c in scored]
        targets += [path.ids[c] for c in scored]
        counts.append(len(scored))

    ids, positions, last, at, wanted, asked = on_device(
        (row.ids, row.positions, row.last, rows, targets, counts), device
    )
    return Layout(ids, positions, last, at, wanted, asked, tuple(row.segments), counts, row.places)
