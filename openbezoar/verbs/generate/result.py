"""What ``generate`` leaves for others to read: the numbers of its manifest, beside its rows."""

from __future__ import annotations

from openbezoar.reporting.funnels import ROWS, RowCounts, RowNumbers
from openbezoar.reporting.results import Number


class GenerateNumbers(RowNumbers):
    """Counts, tokens of all replies (also those that led to no row), mean lengths in words, share
    of finished answers. Where the best of several answers was kept: the mean score of the first ones, which would
    have been the only ones, and of those that were kept, over the rows whose first one has a score.
    """

    rows: int | None = None
    wanted: int | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    tokens_per_second: Number | None = None
    instruction_words: Number | None = None
    response_words: Number | None = None
    finished: Number | None = None
    first_score: Number | None = None
    best_score: Number | None = None
    summary: str | None = None

    def outcome(self) -> str:
        return f"{self.row_counts().kept:,} rows"

    def speed(self) -> float | None:
        return self.tokens_per_second

    def scheme(self) -> str:
        return str(self.step.settings.get(self.step.verb) or self.step.name)

    def row_counts(self) -> RowCounts:
        return RowCounts(self.step.settings.get("rows"), self.step.rows_in(ROWS))
