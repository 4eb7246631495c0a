"""What ``failures`` leaves for others to read: its ``scores.json``.

{"version", "judge", "checkpoints": {name: {"answers": {…}, "systems": {name: {…, "changed": {…}}},
 "unsafe": {…}, "unsupported": {…}}},
 "differences": [{"a", "b", "what", "n", "difference", "low", "high", "p", "p_holm"}]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from pydantic import Field

from openbezoar.judging.failures import MEASURES
from openbezoar.recipe.measure_steps import TRAINED
from openbezoar.reporting.measured import Comparable, Difference, Measured
from openbezoar.reporting.results import Estimated, PairedDifference, Record, Scores
from openbezoar.rows.records import Row
from openbezoar.store.digests import digest

ANSWERS = "answers.jsonl"
INSTRUCTIONS = "instructions"


class AnswerShares(Record):
    """How often a checkpoint's answers go wrong, and how long they are in words."""

    n: int | None = None
    errors: int | None = None
    degenerate: Estimated | None = None
    cut_off: Estimated | None = Field(None, alias="cut off")
    empty: Estimated | None = None
    refusals: Estimated | None = None
    words: Estimated | None = None
    changed: Estimated | None = None  # under another system message

    def named(self) -> dict[str, Estimated | None]:
        """By the names of the file."""
        return {
            "degenerate": self.degenerate,
            "cut off": self.cut_off,
            "empty": self.empty,
            "refusals": self.refusals,
            "words": self.words,
        }


class Checked(Estimated):
    """What a judge said of answers: the share of those that are wrong."""

    unscored: int | None = None


class CheckpointFailures(Record):
    """What goes wrong in one checkpoint's answers."""

    answers: AnswerShares = AnswerShares()
    systems: dict[str, AnswerShares] = Field(default_factory=dict)
    unsafe: Checked | None = None
    unsupported: Checked | None = None


class FailuresScores(Scores):
    """``scores.json`` of a failures step."""

    SINCE: ClassVar[Mapping[str, str]] = {"paired": "paired differences in what goes wrong"}

    judge: str | None = None
    by_checkpoint: dict[str, CheckpointFailures] = Field(default_factory=dict, alias="checkpoints")
    paired: list[PairedDifference] = Field(default_factory=list, alias="differences")

    def outcome(self) -> str:
        return f"{len(self.by_checkpoint)} checkpoints"

    def checkpoints(self) -> list[str]:
        return self._listed(self.by_checkpoint)

    def answer_differences(self) -> list[Difference]:
        differences = [row.told("failures", str(row.what), str(row.what)) for row in self.paired]
        return [difference for difference in differences if difference is not None]

    def comparable(self) -> Iterator[Comparable]:
        """Checkpoints with what goes wrong under the trained system message, by prompt."""
        settings = self.step.settings
        identity = [self.step.data(settings.get("instructions")), settings.get("rows"), settings.get("max_new_tokens")]
        same = None if identity[0] is None else digest(identity)
        rows = [row for row in self.step.rows(ANSWERS) if _is_plain(row)]
        for checkpoint, found in self.by_checkpoint.items():
            own = [row for row in rows if row.get("model") == checkpoint]
            for name, measure in MEASURES.items():
                share = found.answers.named().get(name)
                if share is not None and (score := share.score()) is not None:
                    measured = Measured(checkpoint, "failures", name, name, score)
                    yield Comparable(measured, {row["id"]: float(measure(row)) for row in own}, same)


def _is_plain(row: Row) -> bool:
    """Whether a row is an answer that came, to an instruction under the trained system message."""
    return row.get("set") == INSTRUCTIONS and row.get("system") == TRAINED and row.get("finish") != "error"
