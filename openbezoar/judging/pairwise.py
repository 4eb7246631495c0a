"""Verdicts on two answers, each pair shown in both orders: who won, and how far the judge can be believed.

Takes rows of ``comparisons.jsonl`` (``judging.both_orders``). Writes nothing. A pair without a winner
is left out and counted. What is drawn again for an interval is the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

from openbezoar.judging.both_orders import INCONSISTENT
from openbezoar.rows.records import Row
from openbezoar.stats.comparisons import correct
from openbezoar.stats.intervals import Array, grouped_intervals, random_signs, ratio, widened
from openbezoar.stats.seeds import step_seed

_SCORE = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, INCONSISTENT: 0.5}


def share(
    rows: Iterable[Row], value: Callable[[Row], float | None], seed: int, by: str = "question_id"
) -> dict[str, Any]:
    """Mean of a value from 0 to 1 over rows, None left out: {value, low, high, n}; the interval is
    over groups of rows.
    """
    groups: dict[Any, list[float]] = {}
    for row in rows:
        if (v := value(row)) is not None:
            groups.setdefault(row[by], []).append(v)
    n = sum(map(len, groups.values()))
    (interval,) = grouped_intervals([[sum(g), len(g)] for g in groups.values()], (_mean,), seed)
    if interval is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {**dict(zip(("value", "low", "high"), widened(interval, len(groups)), strict=True)), "n": n}


def _mean(tables: Array) -> Array:
    return ratio(tables[:, 0], tables[:, 1])


def order_numbers(rows: Sequence[Row], seed: int, by: str = "question_id") -> dict[str, Any]:
    """What the order of the answers does to the verdicts.

    ``flips``: share of pairs whose verdict changed when they were swapped. ``first``: share
    of the verdicts other than a tie that went to the answer shown first; 0.5 is fair.
    """
    verdicts = [(row[by], verdict) for row in rows for verdict in row["verdicts"]]
    single = [{by: group, "first": float(verdict == "A")} for group, verdict in verdicts if verdict in ("A", "B")]
    return {
        "flips": share(
            rows,
            lambda r: None if r["winner"] is None else float(r["winner"] == INCONSISTENT),
            step_seed(seed, "flips"),
            by,
        ),
        "first": share(single, lambda r: r["first"], step_seed(seed, "first"), by),
    }


def longer_wins(row: Row) -> float | None:
    """1 if the longer answer won, 0 if the shorter, None without a winner or a difference."""
    (a, b), winner = row["lengths"], row["winner"]
    return float((a > b) == (winner == "model_a")) if winner in ("model_a", "model_b") and a != b else None


def pair_numbers(models: Sequence[str], rows: Sequence[Row], seed: int, judge: str | None = None) -> dict[str, Any]:
    """{models, pairs, n, unscored, flips, first, longer, self_preference} of the comparisons.

    models: by name the win rate (ties count half) with interval and n comparisons, also
    ``by_turn`` and ``by_category``. pairs: every two models that were compared, with wins,
    ties and win rate of ``a``, and p of a paired test over questions that neither is better,
    also corrected for the number of pairs (``p_holm``). longer: share of decided comparisons
    that the longer answer won. judge: the contestant that is the judge itself, if one is.
    """
    by_model = {m: _win_rates(m, [r for r in rows if m in (r["model_a"], r["model_b"])], seed) for m in models}
    pairs = []
    for a, b in combinations(models, 2):
        between = [r for r in rows if {r["model_a"], r["model_b"]} == {a, b}]
        if between:
            pairs.append(_pair(a, b, between, step_seed(seed, "pair", a, b)))
    tested = [p for p in pairs if p["p"] is not None]
    correct(tested)
    return {
        "models": by_model,
        "pairs": pairs,
        "n": sum(r["winner"] is not None for r in rows),
        "unscored": sum(r["winner"] is None for r in rows),
        **order_numbers(rows, seed),
        "longer": share(rows, longer_wins, step_seed(seed, "longer")),
        "self_preference": {"model": judge, **by_model[judge]["win_rate"]} if judge in by_model else None,
    }


def score_of(model: str, row: Row) -> float | None:
    """1 if the model won, 0.5 for a tie, 0 if it lost, None without a verdict."""
    if row["winner"] is None:
        return None
    score = _SCORE[row["winner"]]
    return score if row["model_a"] == model else 1 - score


def _win_rates(model: str, rows: Sequence[Row], seed: int) -> dict[str, Any]:
    def rate(some: Sequence[Row], *of: object) -> dict[str, Any]:
        return share(some, lambda r: score_of(model, r), step_seed(seed, "wins", model, *of))

    return {
        "win_rate": rate(rows),
        "by_turn": {
            str(t): rate([r for r in rows if r["turn"] == t], "turn", t) for t in sorted({r["turn"] for r in rows})
        },
        "by_category": {
            c: rate([r for r in rows if r["category"] == c], "category", c)
            for c in dict.fromkeys(r["category"] for r in rows)
        },
    }


def _pair(a: str, b: str, rows: Sequence[Row], seed: int) -> dict[str, Any]:
    scores = [s for r in rows if (s := score_of(a, r)) is not None]
    by_question: dict[Any, list[float]] = {}
    for row in rows:
        if (s := score_of(a, row)) is not None:
            by_question.setdefault(row["question_id"], []).append(s)
    means = [sum(s) / len(s) for s in by_question.values()]
    return {
        "a": a,
        "b": b,
        "wins": scores.count(1.0),
        "losses": scores.count(0.0),
        "ties": scores.count(0.5),
        "inconsistent": sum(r["winner"] == INCONSISTENT for r in rows),
        "unscored": len(rows) - len(scores),
        "win_rate": share(rows, lambda r: score_of(a, r), seed),
        "p": random_signs(means, [0.5] * len(means), seed) if means else None,
    }
