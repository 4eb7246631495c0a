"""What became of every row of a filter, in numbers and in examples.

Takes outcomes, one a row in the order they were read; writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openbezoar.cleaning import likelihood, rewards
from openbezoar.cleaning.reviews import Decision
from openbezoar.cleaning.rules import NAMES, Drop
from openbezoar.cleaning.text import Change
from openbezoar.rows.held import shown_in
from openbezoar.rows.records import Row

EXAMPLES = 3  # kept a reason
SHOWN = 300  # characters of a text in an example
VERDICT = ("status", "rating", "reason")
# why the judge did not answer, and which settings it was asked without
HOW = {"refused": "refused", "left_out": "judge_left_out"}
# a filter's own
COLUMNS = (
    *(*VERDICT, "review", "before_review", "cleaned", "hash", "rule", "why", "unscored", "reply"),
    *HOW.values(),
    *likelihood.COLUMNS,
    rewards.COLUMN,
)
BY_JUDGE = ("rejected_by_judge", "below_min_rating")
BY_HAND = "rejected_in_review"


@dataclass(frozen=True)
class Outcome:
    """Where a row went, and for what reason ("" for rows that are kept)."""

    row: Row
    bucket: Literal["kept", "rejected", "unscored"]
    reason: str = ""


def dropped(row: Row, drop: Drop) -> Outcome:
    """A row that a rule drops."""
    return Outcome({**row, "rule": drop.rule, **({"why": drop.why} if drop.why else {})}, "rejected", drop.rule)


def judged(row: Row, verdict: Row, min_rating: float) -> Outcome:
    """A row by the judge's verdict: kept if it is not rejected and rated ``min_rating`` or more, or
    not rated because nobody was asked.
    """
    row = {**row, **{column: verdict[name] for name, column in HOW.items() if name in verdict}}
    if "unscored" in verdict:
        return Outcome(
            {**row, "unscored": verdict["unscored"], "reply": verdict["reply"]},
            "unscored",
            f"unscored_{verdict['unscored']}",
        )
    row = {**row, **{name: verdict[name] for name in VERDICT}}
    if verdict["status"] == "reject":
        return Outcome(row, "rejected", "rejected_by_judge")
    return (
        Outcome(row, "kept")
        if verdict["rating"] is None or verdict["rating"] >= min_rating
        else Outcome(row, "rejected", "below_min_rating")
    )


def reviewed(outcome: Outcome, decision: Decision) -> Outcome:
    """A row as a person decided; why it had been dropped stays with it as ``before_review``."""
    row = {
        name: value
        for name, value in outcome.row.items()
        if name not in ("rule", "why", "unscored", "reply", "refused")
    }
    if "output" in row and "response" in decision.texts:
        del row["output"]
    row |= {
        **decision.texts,
        "status": "reject" if decision.verdict == "reject" else "accept",
        "rating": row.get("rating"),
        "reason": row.get("reason", "review"),
        "review": decision.verdict,
        "before_review": outcome.reason or "kept",
    }
    return Outcome(row, "rejected", BY_HAND) if decision.verdict == "reject" else Outcome(row, "kept")


def lay_over(outcomes: Sequence[Outcome], decisions: Mapping[str, Decision]) -> tuple[list[Outcome], int]:
    """The outcomes with a person's decisions over them, and how many decisions are on rows that are not there.

    Accepting a row that was dropped brings back the first row with its texts, not that one's duplicates.
    """
    merged, met = [], set()
    for outcome in outcomes:
        decision = decisions.get(outcome.row["hash"])
        if decision is not None and (
            decision.verdict == "reject" or outcome.bucket == "kept" or decision.row not in met
        ):
            outcome = reviewed(outcome, decision)
        met.add(outcome.row["hash"])
        merged.append(outcome)
    return merged, len(set(decisions) - met)


# ------------------------------------------------------------------------------ in numbers


def numbers(before: Sequence[Outcome], after: Sequence[Outcome], judge: bool) -> dict[str, Any]:
    """The funnel for the manifest: counts by rule, ratings, rows left after each rule.

    before: the filter's own outcomes; after: with a person's decisions.
    """
    counted = Counter(o.reason for o in before)
    ratings = [o.row["rating"] for o in before if o.row.get("rating") is not None]
    histogram = Counter(int(rating + 0.5) for rating in ratings)
    left, funnel = len(before), [["read", len(before)]]
    for name in (n for n in NAMES if counted[n]):
        left -= counted[name]
        funnel.append([name, left])
    unscored = sum(o.bucket == "unscored" for o in before)
    if judge:
        funnel += [["unscored", left - unscored], ["judge", left - unscored - sum(counted[r] for r in BY_JUDGE)]]
    by_hand = Counter(o.row["review"] for o in after if "review" in o.row)
    n_kept = sum(o.bucket == "kept" for o in after)
    if by_hand:
        funnel.append(["review", n_kept])
    return {
        "rows_in": len(before),
        "kept": n_kept,
        "rejected_by_rule": {name: counted[name] for name in NAMES if counted[name]},
        "rejected_by_judge": sum(counted[r] for r in BY_JUDGE),
        "unscored": sum(o.bucket == "unscored" for o in after),
        "rating_mean": sum(ratings) / len(ratings) if ratings else None,
        "rating_histogram": {str(n): histogram[n] for n in range(1, 11)} if ratings else {},
        "reviewed": dict(by_hand),
        "examples": examples(after),
        "funnel": funnel,
    }


def summary(numbers: Mapping[str, Any]) -> str:
    """The funnel in one line."""
    by_rule = sum(numbers["rejected_by_rule"].values())
    text = (
        f"{numbers['kept']} of {numbers['rows_in']} kept, {by_rule} rejected by rules, {numbers['rejected_by_judge']}"
        f" by the judge, {numbers['unscored']} unscored"
    )
    return text + (f"; {sum(numbers['reviewed'].values())} reviewed by hand" if numbers["reviewed"] else "")


# ----------------------------------------------------------------------------- in examples


def examples(outcomes: Sequence[Outcome]) -> dict[str, list[Row]]:
    """The first rows that each reason took away, shortened."""
    by_reason: dict[str, list[Row]] = {}
    for outcome in outcomes:
        if outcome.reason and len(rows := by_reason.setdefault(outcome.reason, [])) < EXAMPLES:
            row = outcome.row
            why = (
                row.get("why")
                or row.get("reply")
                or (f"rated {row['rating']:g}: {row['reason']}" if row.get("rating") is not None else "")
            )
            texts = {**shown_in(row), "why": why}
            rows.append({"id": str(row.get("id", "")), **{name: _short(text) for name, text in texts.items() if text}})
    return by_reason


def changes(rows: Sequence[tuple[str, Sequence[Change]]]) -> dict[str, dict[str, Any]]:
    """By cleaner, how many rows it changed and the first changes. rows: id and changes of each row."""
    by_cleaner: dict[str, dict[str, Any]] = {}
    for id_, changed in rows:
        for change in {c.cleaner: c for c in reversed(changed)}.values():
            entry = by_cleaner.setdefault(change.cleaner, {"rows": 0, "examples": []})
            entry["rows"] += 1
            if entry["rows"] <= EXAMPLES:
                entry["examples"].append(
                    {"id": id_, "field": change.field, "before": change.before, "after": change.after}
                )
    return by_cleaner


def _short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… [{len(text) - SHOWN} more characters]"
