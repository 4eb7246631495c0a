"""What ``filter`` leaves for others to read: the numbers of its manifest, beside its three files of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from openbezoar.cleaning.rules import BY_LIKELIHOOD, BY_REWARD
from openbezoar.reporting.facts import RunFacts, reference_of
from openbezoar.reporting.funnels import ROWS, RowCounts, RowNumbers
from openbezoar.reporting.results import Number, Record
from openbezoar.reporting.wording import tally
from openbezoar.rows.records import Row

REJECTED, UNSCORED = "rejected.jsonl", "unscored.jsonl"


class Cleaned(Record):
    """How many rows a cleaner changed, and its first changes: {id, field, before, after}."""

    rows: int = 0
    examples: list[dict[str, str]] = Field(default_factory=list)


class Contamination(Record):
    """What rows were compared with: rows by benchmark, and the benchmarks that were not on this machine."""

    benchmark_rows: dict[str, int] = Field(default_factory=dict)
    not_compared: list[str] = Field(default_factory=list)


class LikelihoodNumbers(Record):
    """How likely a model found the answers of the rows that it was asked about: counts, the thresholds that
    were applied, quantiles by their names, rows by the lower edge of their bin of IFD.
    """

    model: str = ""
    rows: int = 0
    tokens: int = 0
    cut: int = 0
    without_ifd: int = 0
    thresholds: dict[str, Number | None] = Field(default_factory=dict)
    perplexity: dict[str, Number] = Field(default_factory=dict)
    ifd: dict[str, Number] = Field(default_factory=dict)
    ifd_histogram: dict[str, int] = Field(default_factory=dict)


class RewardedRows(Record):
    """The rewards of the rows that a reward model was asked about: quantiles by their names, the least one kept."""

    model: str = ""
    rows: int = 0
    kept_from: Number | None = None
    quantiles: dict[str, Number] = Field(default_factory=dict)


class FilterNumbers(RowNumbers):
    """The funnel in numbers, as ``cleaning.funnel`` gives them, with examples by reason."""

    SINCE: ClassVar[Mapping[str, str]] = {"funnel": "how many rows were left after each rule"}

    rows_in: int | None = None
    kept: int | None = None
    rejected_by_rule: dict[str, int] = Field(default_factory=dict)
    rejected_by_judge: int | None = None
    unscored: int | None = None
    rating_mean: Number | None = None
    rating_histogram: dict[str, int] = Field(default_factory=dict)
    reviewed: dict[str, int] = Field(default_factory=dict)
    examples: dict[str, list[Row | str]] = Field(default_factory=dict)  # ids alone in files of an older version
    funnel: list[list[str | int]] = Field(default_factory=list)  # [rule, rows left after it]
    cleaned: dict[str, Cleaned] = Field(default_factory=dict)
    contamination: Contamination | None = None
    likelihood: LikelihoodNumbers | None = None
    rewards: RewardedRows | None = None
    summary: str | None = None

    def outcome(self) -> str:
        read, kept, *_ = self.row_counts().texts()
        return f"{kept} of {read} kept"

    def row_counts(self) -> RowCounts:
        kept, rejected, unscored = (self.step.rows_in(name) for name in (ROWS, REJECTED, UNSCORED))
        read = kept + rejected + unscored if self.rows_in is None else self.rows_in
        return RowCounts(read, kept, rejected, unscored)

    def rows_left(self) -> list[tuple[str, int]]:
        """Each rule with the rows that are left after it."""
        return [(str(name), int(left)) for name, left in self.funnel]

    def by_hand(self) -> int:
        return sum(self.reviewed.values())

    def compared_with(self) -> str | None:
        """What the rows were compared with, and how many fell; None if with nothing."""
        compared = self.contamination
        if compared is None:
            return None
        words = self._rules().get("decontaminate_words")
        dropped = self.rejected_by_rule.get("contaminated", 0)
        missing = (
            f" Not compared, because their rows were not local: {', '.join(compared.not_compared)}."
            if compared.not_compared
            else ""
        )
        return (
            f"{self.step.name}: compared with {tally(compared.benchmark_rows)} rows by runs of {words} words;"
            f" {dropped} row{'s' * (dropped != 1)} dropped.{missing}"
        )

    def by_likelihood(self) -> str | None:
        """Whose likelihood was asked, and what was kept by it; None if nobody's."""
        asked = self.likelihood
        if asked is None:
            return None
        t = asked.thresholds
        kept = [
            *([f"perplexity {_band(t.get('perplexity_from'), t['perplexity_to'])}"] if "perplexity_to" in t else []),
            *([f"IFD {_band(t.get('ifd_from'), None, t['ifd_below'])}"] if "ifd_below" in t else []),
        ]
        dropped = sum(n for name, n in self.rejected_by_rule.items() if name in BY_LIKELIHOOD)
        cut = f" {asked.cut} answers were scored as far as they fit." if asked.cut else ""
        return (
            f"{self.step.name}, likelihood by {asked.model}: {asked.rows} rows scored; kept:"
            f" {', '.join(kept) or 'all'}; {dropped} row{'s' * (dropped != 1)} dropped.{cut}"
        )

    def by_reward(self) -> str | None:
        """Whose rewards were asked, how they are spread, and how many rows fell; None if nobody's."""
        if (asked := self.rewards) is None:
            return None
        dropped = sum(n for name, n in self.rejected_by_rule.items() if name in BY_REWARD)
        middle = (asked.quantiles.get(name) for name in ("0.05", "0.5", "0.95"))
        spread = ", ".join(f"{value:.3g}" for value in middle if value is not None)
        kept = "" if asked.kept_from is None else f", kept from {asked.kept_from:.4g} on"
        return (
            f"{self.step.name}, reward by {asked.model}: {asked.rows} rows (5, 50 and 95 %: {spread}){kept}; {dropped}"
            f" row{'s' * (dropped != 1)} dropped."
        )

    def told(self, facts: RunFacts) -> list[str]:
        name, settings = self.step.name, self.step.settings
        sentences = [f"{name}, texts cleaned: {tally({cleaner: c.rows for cleaner, c in self.cleaned.items()})}."]
        if rules := self._rules():
            sentences.append(
                f"{name}, rules: {', '.join(f'{rule} {_setting(value)}' for rule, value in rules.items())}."
            )
        if likelihood := self.by_likelihood():
            sentences.append(likelihood)
        if reward := self.by_reward():
            sentences.append(reward)
        if judge := settings.get("judge"):
            reference = reference_of(facts.models()[judge]) if judge in facts.models() else judge
            sentences.append(
                f"{name}, judge: {reference}, by {settings.get('mode')}; kept from a rating of"
                f" {settings.get('min_rating')} of 10."
            )
        sentences.append(self.compared_with() or f"{name}: not compared with any benchmark.")
        if self.reviewed:
            sentences.append(f"{name}, decided by a person: {tally(self.reviewed)}.")
        return sentences

    def _rules(self) -> dict[str, Any]:
        rules = self.step.settings.get("rules")
        return dict(rules) if isinstance(rules, dict) else {}


def _band(low: float | None, high: float | None, below: float | None = None) -> str:
    ends = [("from", low), ("to", high), ("below", below)]
    return " ".join(f"{word} {end:.4g}" for word, end in ends if end is not None)


def _setting(value: Any) -> str:
    return {True: "yes", False: "no", None: "none"}[value] if isinstance(value, bool | None) else str(value)
