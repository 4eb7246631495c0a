"""A batch of trees as one row of tokens: each shared prefix once, no padding.

Depth first: a tree's shared prefix (the longest common prefix of its paths' token ids), then
each path's own rest. A token attends to what lies before it on its path; positions count
along the path. The last token of a path predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Path:
    """Token ids, and for each whether its log-probability is asked for (never the first)."""

    ids: Sequence[int]
    scored: Sequence[bool]

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Sequence[int]) -> Path:
        """Prompt unscored, completion scored."""
        return cls((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))

    @property
    def n_scored(self) -> int:
        return sum(self.scored)


Tree = tuple[Path, ...]


@dataclass(frozen=True)
class Segment:
    """A run of tokens, [start, end) in the row, that attends to [prefix_start, prefix_end) and to itself."""

    start: int
    end: int
    prefix_start: int
    prefix_end: int


@dataclass(frozen=True)
class Layout:
    """One row of n tokens for several trees.

    ids, positions: int64 [n], positions along the path. segments: in the row's order, all of
    it covered. rows and targets, int64 [asked]: where each asked-for token is predicted, and
    what it is, path by path; counts: how many each path asks for.
    """

    ids: Tensor
    positions: Tensor
    rows: Tensor
    targets: Tensor
    segments: tuple[Segment, ...]
    counts: list[int]


def shared_prefix(tree: Tree) -> int:
    """Length of the longest common prefix of the paths' ids, the last token of each path left out."""
    shortest = min(len(path.ids) for path in tree) - 1
    first = tree[0].ids
    for i in range(shortest):
        if any(path.ids[i] != first[i] for path in tree[1:]):
            return i
    return shortest


def size(tree: Tree) -> int:
    """Tokens that a tree takes in a row."""
    shared = shared_prefix(tree)
    return shared + sum(len(path.ids) - 1 - shared for path in tree)


def lay_out(trees: Sequence[Tree], device: torch.device) -> Layout:
    """The row of some trees."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    segments: list[Segment] = []
    for tree in trees:
        shared, base = shared_prefix(tree), len(ids)
        ids += tree[0].ids[:shared]
        positions += range(shared)
        if shared:
            segments.append(Segment(base, base + shared, base, base))
        for path in tree:
            start, rest = len(ids), path.ids[shared:-1]
            ids += rest
            positions += range(shared, shared + len(rest))
            if rest:
                segments.append(Segment(start, len(ids), base, base + shared))
            asked = [c for c, wanted in enumerate(path.scored) if wanted]
            assert not asked or asked[0] > 0, "the first token has nothing before it"
            rows += [base + c - 1 if c <= shared else start + c - 1 - shared for c in asked]
            targets += [path.ids[c] for c in asked]
            counts.append(len(asked))
    tensors = [torch.tensor(x, dtype=torch.long, device=device) for x in (ids, positions, rows, targets)]
    return Layout(*tensors, tuple(segments), counts)
