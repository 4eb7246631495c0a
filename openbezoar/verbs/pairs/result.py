"""What ``pairs`` leaves for others to read: the numbers of its manifest, beside its rows and candidates."""

from __future__ import annotations

from pydantic import Field

from openbezoar.reporting.results import Estimated, Number, Result

CANDIDATES = "candidates.jsonl"


class PairsNumbers(Result):
    """Prompts (``rows``), answers and pairs; the mean margin of the scores; mean words of chosen and rejected
    answers and the share of pairs, of those that differ in length, whose longer answer is the chosen one;
    ``length_pays``: what an answer of twice the length was scored more within a prompt, where that was removed; whose
    answers were chosen and rejected; ``rejected_cut``: rejected answers that are learnt without an end, where answers
    cut off may be rejected; answers and prompts that were dropped, by reason.
    """

    rows: int | None = None
    answers: int | None = None
    pairs: int | None = None
    margin: Number | None = None
    chosen_words: Number | None = None
    rejected_words: Number | None = None
    longer_chosen: Estimated | None = None
    length_pays: Number | None = None
    rejected_cut: int | None = None
    chosen_by: dict[str, int] = Field(default_factory=dict)
    rejected_by: dict[str, int] = Field(default_factory=dict)
    answers_dropped: dict[str, int] = Field(default_factory=dict)
    prompts_dropped: dict[str, int] = Field(default_factory=dict)
    summary: str | None = None

    def outcome(self) -> str:
        return "" if self.pairs is None else f"{self.pairs:,} pairs of {self.rows or 0:,} prompts"

    def dropped(self) -> dict[str, int]:
        """What was dropped, answers and whole prompts, by reason."""
        return {**{f"answers: {reason}": n for reason, n in self.answers_dropped.items()}, **self.prompts_dropped}
