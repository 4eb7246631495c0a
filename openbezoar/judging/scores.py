"""From judgments to a table: means with intervals, by category and turn, and what the answers look like.

Takes the rows of ``answers.jsonl`` and ``judgments.jsonl``; writes nothing. The unit that
is drawn again for an interval is the question, since the two turns of a question are not
independent. A question's score is the mean of its rated turns; a turn without a rating is
left out and counted, never taken as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openbezoar.judging.failures import loops, refuses
from openbezoar.rows.records import Row
from openbezoar.stats.comparisons import correct, every_pair
from openbezoar.stats.intervals import mean_interval
from openbezoar.stats.seeds import step_seed


def score_table(
    models: Sequence[str], answers: Sequence[Row], judgments: Sequence[Row], seed: int
) -> dict[str, dict[str, Any]]:
    """Scores by model, in the models' order.

    Each has ``n`` (rated turns), ``questions`` (with a rated turn), ``unscored``,
    ``score``, ``by_category``, ``by_turn`` and ``answers``.
    """
    table: dict[str, dict[str, Any]] = {}
    for model in models:
        own = [j for j in judgments if j["model"] == model]
        by_question = question_scores(own)
        table[model] = {
            "n": sum(j["rating"] is not None for j in own),
            "questions": len(by_question),
            "unscored": sum(j["rating"] is None for j in own),
            "score": interval(list(by_question.values()), step_seed(seed, "score")),
            "by_category": _by(own, "category", seed),
            "by_turn": _by(own, "turn", seed),
            "answers": answer_numbers([a for a in answers if a["model"] == model]),
        }
    return table


def rating_differences(models: Sequence[str], judgments: Sequence[Row], seed: int) -> list[Row]:
    """Every two models' ratings compared over the turns that both have one for, by question; as
    ``comparisons.every_pair``, with ``p_holm``.
    """
    scores = {model: turn_ratings([j for j in judgments if j["model"] == model]) for model in models}
    rows = every_pair(scores, seed, {"what": "rating"}, unit=question_of)
    correct(rows)
    return rows


def self_preference(judge: str, models: Sequence[str], judgments: Sequence[Row], seed: int) -> dict[str, Any]:
    """The judge's rating of its own answers less its mean rating of the others', over the turns
    that it rated both on: {model, mean, low, high, n: questions}.
    """
    own = turn_ratings([j for j in judgments if j["model"] == judge])
    others: dict[tuple[Any, int], list[float]] = {}
    for j in judgments:
        if j["rating"] is not None and j["model"] != judge and j["model"] in models:
            others.setdefault((j["question_id"], j["turn"]), []).append(j["rating"])
    gains: dict[Any, list[float]] = {}
    for turn, rating in own.items():
        if turn in others:
            gains.setdefault(turn[0], []).append(rating - sum(others[turn]) / len(others[turn]))
    return {"model": judge, **interval([sum(of) / len(of) for of in gains.values()], step_seed(seed, "self", judge))}


def turn_ratings(judgments: Sequence[Row]) -> dict[tuple[Any, int], float]:
    """One model's ratings by (question_id, turn). Turns differ in how hard they are, so that two
    models are compared on the same ones.
    """
    return {(j["question_id"], j["turn"]): j["rating"] for j in judgments if j["rating"] is not None}


def question_of(turn: tuple[Any, int]) -> Any:
    """The question of (question, turn): what is independent."""
    return turn[0]


def question_scores(judgments: Sequence[Row]) -> dict[Any, float]:
    """Mean rating of each question's rated turns, by question_id."""
    ratings: dict[Any, list[float]] = {}
    for row in judgments:
        if row["rating"] is not None:
            ratings.setdefault(row["question_id"], []).append(row["rating"])
    return {question: sum(values) / len(values) for question, values in ratings.items()}


def interval(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Mean with its 95 % interval and n; all None without values."""
    mean, low, high = mean_interval(values, seed) if values else (None, None, None)
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


def _by(judgments: Sequence[Row], field: str, seed: int) -> dict[str, dict[str, Any]]:
    groups = dict.fromkeys(j[field] for j in judgments)
    return {
        str(group): interval(
            list(question_scores([j for j in judgments if j[field] == group]).values()), step_seed(seed, field, group)
        )
        for group in groups
    }


def answer_numbers(answers: Sequence[Row]) -> dict[str, Any]:
    """How a model's answers look: counts and shares over all turns for which an answer came.

    How published answers ended, and in how many tokens, is not known: None.
    """
    turns = [turn for row in answers for turn in zip(row["turns"], row["finish"], row["tokens"], strict=True)]
    came = [turn for turn in turns if turn[1] != "error"]
    known = [turn for turn in came if turn[1] is not None]

    def share(n: int, of: Sequence[Any] = came) -> float | None:
        return n / len(of) if of else None

    return {
        "turns": len(turns),
        "errors": len(turns) - len(came),
        "empty": sum(not text.strip() for text, _, _ in came),
        "ended": share(sum(finish == "stop" for _, finish, _ in known), known),
        "degenerate": share(sum(loops(text) for text, _, _ in came)),
        "refusals": share(sum(refuses(text) for text, _, _ in came)),
        "mean_tokens": share(sum(tokens for _, _, tokens in known), known),
    }


def summary_line(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in one line: each model's mean with its interval, then how many turns have no rating."""
    parts = []
    for model, numbers in table.items():
        score = numbers["score"]
        parts.append(
            f"{model} {score['mean']:.2f} ({score['low']:.2f} to {score['high']:.2f})"
            if score["n"]
            else f"{model} unscored"
        )
    return (
        f"{', '.join(parts)}; {sum(n['unscored'] for n in table.values())} of"
        f" {sum(n['n'] + n['unscored'] for n in table.values())} turns unscored"
    )
