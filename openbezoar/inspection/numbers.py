"""What a look at data comes to: plain numbers, as a step's manifest and ``openbezoar data --json`` have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from openbezoar.stats.intervals import proportion_interval
from openbezoar.stats.pair_accuracy import PairAccuracy

BARS = 12  # of a histogram
FEW = 0.01  # a share of rows that is not worth a line


class Numbers(BaseModel):
    """Base of what is kept: fields of a later version are passed over."""

    model_config = ConfigDict(extra="ignore")


class Portion(Numbers):
    """``k`` of ``n``, with Wilson's 95 % interval."""

    k: int
    n: int
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, k: int, n: int) -> Portion:
        low, high = proportion_interval(k, n) if n else (None, None)
        return cls(k=k, n=n, value=k / n if n else None, low=low, high=high)


class Spread(Numbers):
    """How numbers are spread. bars: how many lie in each of equal parts from 0 to the longest."""

    least: int
    median: int
    p95: int
    longest: int
    mean: float
    bars: list[int]

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread | None:
        """Of some numbers; None of none. A quantile is the least value that so many do not exceed."""
        if not values:
            return None
        ordered, bars = sorted(values), [0] * BARS
        longest = max(ordered[-1], 1)
        for value in ordered:
            bars[min(value * BARS // (longest + 1), BARS - 1)] += 1
        middle, late = (ordered[-(-len(ordered) * p // 100) - 1] for p in (50, 95))
        mean = sum(ordered) / len(ordered)
        return cls(least=ordered[0], median=middle, p95=late, longest=ordered[-1], mean=mean, bars=bars)


class PairNumbers(Numbers):
    """Of preference pairs. longer_chosen: whose longer answer is the chosen one, of those that differ in length."""

    near_identical: Portion
    longer_chosen: Portion
    refusals_chosen: Portion
    refusals_rejected: Portion


class Contradiction(Numbers):
    """Pairs whose rejected answer is the likelier one for a model: by the sum over its tokens, and by their mean."""

    by_sum: Portion
    by_mean: Portion


class Look(Numbers):
    """What was seen of a data set.

    rows: that were read; kept: that can be trained on. forms, columns, roles: with the number of
    rows (of turns). reasons: for which rows were dropped or changed. unit: of lengths, 'tokens', or
    'estimated tokens' without a model. tokens: of a row's longest path; learnt: its tokens that
    carry loss, of all its paths; learnt_share: of all tokens that are read, each once. answers:
    learnt ones a row. twins: rows that stand there before, word for word; asked_again: whose prompt
    does, under another answer. near: of the rows drawn, those whose prompt nearly does. foreign: of
    the rows drawn, those plainly not in English. control: rows with a control token in their own
    texts, by token. benchmarks: rows drawn with a run of words of one, by name. drawn: rows of
    which the dearer numbers are.
    """

    rows: int = 0
    kept: int = 0
    forms: dict[str, int] = {}
    columns: dict[str, int] = {}
    roles: dict[str, int] = {}
    reasons: dict[str, int] = {}
    unit: str = "tokens"
    max_length: int | None = None
    tokens: Spread | None = None
    learnt: Spread | None = None
    learnt_share: float | None = None
    answers: Spread | None = None
    twins: Portion | None = None
    asked_again: Portion | None = None
    near: Portion | None = None
    foreign: Portion | None = None
    control: dict[str, int] = {}
    benchmarks: dict[str, int] | None = None
    pairs: PairNumbers | None = None
    contradicted: Contradiction | None = None
    rewarded: PairAccuracy | None = None
    drawn: int = 0

    def written(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json", exclude_none=True)


def concerns(look: Look) -> list[str]:
    """What deserves a look before training, a line each."""
    lines = []
    if look.rows and look.kept < 0.9 * look.rows:
        lines.append(f"{look.rows - look.kept:,} of {look.rows:,} rows cannot be trained on ({_reasons(look)})")
    for share, what in (
        (look.twins, "rows stand there more than once, word for word"),
        (look.near, "prompts are nearly the same as another's"),
        (look.foreign, "rows are plainly not in English"),
    ):
        if share is not None and share.value is not None and share.value > 5 * FEW:
            lines.append(f"{shown(share)} of the {what}")
    if look.control:
        most = ", ".join(f"{token} in {n:,}" for token, n in list(look.control.items())[:4])
        lines.append(f"texts hold control tokens, which the tokenizer does not take for words ({most} rows)")
    if look.benchmarks:
        lines.append(f"rows hold text of benchmarks: {', '.join(f'{n:,} of {b}' for b, n in look.benchmarks.items())}")
    if look.learnt_share is not None and look.learnt_share < 0.05:
        lines.append(f"{look.learnt_share:.1%} of the tokens carry loss; the rest is only read")
    return [*lines, *_of_pairs(look)]


def _of_pairs(look: Look) -> list[str]:
    lines = []
    if look.pairs is not None:
        longer = look.pairs.longer_chosen
        if longer.low is not None and longer.high is not None and (longer.low > 0.55 or longer.high < 0.45):
            lines.append(
                f"of {shown(longer)} of the pairs the longer answer is the chosen one; a loss that sums over tokens"
                " may learn the length (loss: sigmoid_norm takes means)"
            )
        for share, what in (
            (look.pairs.refusals_chosen, "chosen answers begin by declining"),
            (look.pairs.near_identical, "pairs have nearly identical answers, which teach little"),
        ):
            if share.value is not None and share.value > 5 * FEW:
                lines.append(f"{shown(share)} of the {what}")
    if look.contradicted is not None and (value := look.contradicted.by_mean.value) is not None and value > 0.6:
        lines.append(f"of {shown(look.contradicted.by_mean)} of the pairs the model finds the rejected answer likelier")
    if (rewarded := look.rewarded) is not None and (value := rewarded.accuracy.value) is not None and value < 0.6:
        lines.append(f"the reward model puts the chosen answer first in only {rewarded.accuracy.text()} pairs")
    return lines


def _reasons(look: Look) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in look.reasons.items()) or "no reason"


def shown(share: Portion) -> str:
    """A share with its interval, for a reader."""
    if share.value is None or share.low is None or share.high is None:
        return "none"
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
