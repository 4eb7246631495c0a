"""From judgments to a table: means with intervals, by category and turn, and what the answers look like.

Takes the rows of ``answers.jsonl`` and ``judgments.jsonl``; writes nothing. The unit that
is drawn again for an interval is the question, since the two turns of a question are not
independent. A question's score is the mean of its rated turns; a turn without a rating is
left out and counted, never taken as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openbezoar.cleaning.rules import repeated_share
from openbezoar.judging.statistics import mean_interval, paired_difference
from openbezoar.records import Row
from openbezoar.runs import step_seed

DEGENERATE = 0.5  # share of repeated 4-grams above which an answer counts as a loop


def score_table(models: Sequence[str], answers: Sequence[Row], judgments: Sequence[Row], seed: int) -> dict[str, dict[str, Any]]:
    """Scores by model, in the models' order.

    Each has ``n`` (rated turns), ``questions`` (with a rated turn), ``unscored``,
    ``score``, ``by_category``, ``by_turn``, ``answers`` and ``difference`` to the model
    before it over the questions that both have a score for (None for the first model).
    """
    table: dict[str, dict[str, Any]] = {}
    before: tuple[str, dict[Any, float]] | None = None
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
            "difference": _difference(by_question, before, seed) if before else None,
        }
        before = (model, by_question)
    return table


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
        str(group): interval(list(question_scores([j for j in judgments if j[field] == group]).values()), step_seed(seed, field, group)) for group in groups
    }


def _difference(scores: Mapping[Any, float], before: tuple[str, Mapping[Any, float]], seed: int) -> dict[str, Any]:
    name, earlier = before
    shared = [question for question in scores if question in earlier]
    found: tuple[float | None, float | None, float | None] = (None, None, None)
    if shared:
        found = paired_difference([scores[q] for q in shared], [earlier[q] for q in shared], step_seed(seed, "difference"))
    return {"to": name, **dict(zip(("mean", "low", "high"), found, strict=True)), "n": len(shared)}


def answer_numbers(answers: Sequence[Row]) -> dict[str, Any]:
    """How a model's answers look: counts and shares over all turns for which an answer came."""
    turns = [turn for row in answers for turn in zip(row["turns"], row["finish"], row["tokens"], strict=True)]
    came = [turn for turn in turns if turn[1] != "error"]

    def share(n: int) -> float | None:
        return n / len(came) if came else None

    return {
        "turns": len(turns),
        "errors": len(turns) - len(came),
        "empty": sum(not text.strip() for text, _, _ in came),
        "ended": share(sum(finish == "stop" for _, finish, _ in came)),
        "degenerate": share(sum(repeated_share(text) > DEGENERATE for text, _, _ in came)),
        "mean_tokens": share(sum(tokens for _, _, tokens in came)),
    }


def summary_line(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in one line: each model's mean with its interval, then how many turns have no rating."""
    parts = []
    for model, numbers in table.items():
        score = numbers["score"]
        parts.append(f"{model} {score['mean']:.2f} ({score['low']:.2f} to {score['high']:.2f})" if score["n"] else f"{model} unscored")
    return f"{', '.join(parts)}; {sum(n['unscored'] for n in table.values())} of {sum(n['n'] + n['unscored'] for n in table.values())} turns unscored"
