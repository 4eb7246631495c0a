"""Examples and pairs → trees of token ids, with every dropped or shortened row counted by its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from openbezoar.dialogue.prompt import Formatter
from openbezoar.forest import TokenPath, Tree
from openbezoar.rows.records import Counts, Example, Pair
from openbezoar.training.encode import Encoder

T = TypeVar("T", Example, Pair)


class Renderer:
    """Rows into trees under one length limit."""

    def __init__(
        self, formatter: Formatter, max_length: int, too_long: Literal["drop", "truncate"], counts: Counts
    ) -> None:
        self.formatter, self.counts = formatter, counts
        self.encoder = Encoder(formatter, max_length, too_long, counts)

    def examples(self, rows: Sequence[Example]) -> list[Tree]:
        """One tree of one path a row, the answer scored."""
        return self.trees(rows)

    def pairs(self, rows: Sequence[Pair]) -> list[Tree]:
        """One tree of two paths a pair: chosen, rejected."""
        return self.trees(rows)

    def trees(self, rows: Sequence[Example | Pair]) -> list[Tree]:
        """Trees of rows of either kind, held in memory."""
        encoded = (self.encoder.encode(row) for row in rows)
        return [tuple(TokenPath.of(ids[0], answer) for answer in ids[1:]) for ids in encoded if ids is not None]
