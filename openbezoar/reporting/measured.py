"""What steps measure, as plain values: scores of checkpoints with n and interval, paired
differences of two, and what was found out about answers. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openbezoar.reporting.wording import estimate
from openbezoar.stats.intervals import proportion_interval

ORDER = {"task": 0, "loss": 1, "rewards": 2, "pairs": 3, "wins": 4, "rating": 5, "ended": 6}
"""Kinds of scores, as the table of checkpoints has their columns."""
OUTDONE = {"pairs": "rewards"}
"""Kinds of scores that another kind says better, where that is there."""
ALPHA = 0.05
LOWER_IS_BETTER = ("loss", "degenerate", "cut off", "empty", "unsafe", "unsupported")
NO_DIRECTION = ("refusals", "words")  # neither more nor fewer of them is better as such
Items = Mapping[Any, float]


@dataclass(frozen=True)
class Score:
    """A number with what makes it believable; low and high are None where no interval exists."""

    value: float
    low: float | None
    high: float | None
    n: int

    def text(self, digits: int = 3) -> str:
        return f"{estimate(self.value, self.low, self.high, digits)} n={self.n}"


def score(value: float | None, low: float | None, high: float | None, n: int | None) -> Score | None:
    """A score; None if its number or its n is missing. One end alone is no interval."""
    if value is None or n is None or n < 1:
        return None
    if low is None or high is None:
        return Score(float(value), None, None, n)
    return Score(float(value), float(low), float(high), n)


def share(value: float | None, n: int) -> Score | None:
    """A share of n with Wilson's interval."""
    if value is None or n < 1 or not 0 <= value <= 1:
        return None
    hits = round(value * n)
    return Score(hits / n, *proportion_interval(hits, n), n)


@dataclass(frozen=True)
class Measured:
    """One score of one checkpoint. ``kind``: one of ``ORDER``, or failures, which the table has no column for."""

    checkpoint: str
    kind: str
    name: str  # what tells it from the others of its step and kind; a difference of it has the same one
    title: str
    score: Score
    digits: int = 3
    lower: bool = False  # lower values are better


@dataclass(frozen=True)
class Comparable:
    """A score with its values by item and a digest of what the items are; None where that is not known."""

    measured: Measured
    items: Items | None
    same: str | None


@dataclass(frozen=True)
class Grades:
    """What was found out about one checkpoint's answers."""

    checkpoint: str
    mean: Score | None  # n counts questions
    rated: int | None  # turns
    unscored: int | None
    ended: Score | None
    degenerate: Score | None
    empty: Score | None
    errors: int | None
    mean_tokens: float | None
    by_category: Mapping[str, Score]
    by_turn: Mapping[str, Score]


@dataclass(frozen=True)
class Difference:
    """A paired difference of two checkpoints: ``after`` minus ``before``, on n shared items."""

    before: str
    after: str
    what: str
    value: float
    low: float
    high: float
    n: int | None
    kind: str = "task"  # as of Measured
    p: float | None = None  # corrected for the number of comparisons of its step
    step: str = ""  # where several steps of the run measure the same
    lower: bool = False  # of a task: lower values are better
    name: str = ""  # as of Measured
    source: str = ""  # the step that measured it
    chance: bool = False  # ``before`` stands for what chance alone gives

    @property
    def label(self) -> str:
        """What was measured, in words that tell it from every other measure of the run."""
        return f"{self.what}, {self.step}" if self.step else self.what

    @property
    def gain(self) -> float:
        """How much better ``after`` is: the difference with the sign of what is measured, 0 where
        there is no better.
        """
        measure = "loss" if self.kind == "loss" else self.what
        return (
            0.0 if measure in NO_DIRECTION else -self.value if self.lower or measure in LOWER_IS_BETTER else self.value
        )

    @property
    def worse(self) -> bool:
        """Whether ``after`` is the worse one: a higher loss, more answers that loop, a lower score."""
        return self.gain < 0

    @property
    def verdict(self) -> str:
        """better, worse, changed (outside noise, but neither), or noise."""
        if not self.outside_noise:
            return "noise"
        return "worse" if self.gain < 0 else "better" if self.gain > 0 else "changed"

    @property
    def outside_noise(self) -> bool:
        """Whether the corrected test rejects that there is none; without a test, whether the 95 %
        interval excludes 0.
        """
        return self.p < ALPHA if self.p is not None else self.low > 0 or self.high < 0

    def __str__(self) -> str:
        n = "" if self.n is None else f" n={self.n}"
        p = "" if self.p is None else f", p={self.p:.2g}"
        return (
            f"{self.before} → {self.after}, {self.label}: {estimate(self.value, self.low, self.high, sign=True)}{n}{p}"
        )
