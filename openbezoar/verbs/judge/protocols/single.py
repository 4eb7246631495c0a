"""Each answer by itself: a rating from 1 to 10, against a reference where the question has one.

Its part of ``scores.json``: ``models`` (``judging.scores.score_table``), ``differences`` and
``self_preference``. ``judgments.jsonl`` has a row a model, question and turn, with the judge's text
and the rating.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openbezoar.judging.grading import judge_sampling, rate
from openbezoar.judging.prompting import Text, question_shown
from openbezoar.judging.questions import Question
from openbezoar.rows.records import Row, Turn
from openbezoar.stats.seeds import step_seed
from openbezoar.verbs.judge.protocols import Sitting, TurnCalls, came

if TYPE_CHECKING:
    from openbezoar.reporting.document import Block
    from openbezoar.verbs.judge.result import MtBenchScores

TEXTS = {
    "judge_single": ("question", "answer"),
    "judge_single_reference": ("question", "ref_answer_1", "answer"),
    "judge_single_turn2": ("question_1", "answer_1", "question_2", "answer_2"),
    "judge_single_turn2_reference": (
        "question_1",
        "ref_answer_1",
        "question_2",
        "ref_answer_2",
        "answer_1",
        "answer_2",
    ),
}
OFFICIAL = {
    "judge_single": "single-v1",
    "judge_single_reference": "single-math-v1",
    "judge_single_turn2": "single-v1-multi-turn",
    "judge_single_turn2_reference": "single-math-v1-multi-turn",
}
FILE = "judgments.jsonl"


def calls(models: int, against: str | None) -> TurnCalls:
    """One of each model's answer."""
    return TurnCalls(models, models)


def grade(sitting: Sitting) -> list[Row]:
    """One judgment a model, question and turn. Answers that never came are not shown to the judge."""
    step, context = sitting.step, sitting.context
    items = [(row, turn) for row in sitting.answers for turn in (1, 2)]
    questions = {question.id: question for question in sitting.questions}

    def make(_: int, batch: Sequence[tuple[Row, int]]) -> list[Row]:
        shown = [(row, turn) for row, turn in batch if came(row, turn)]
        talks = [asked(sitting.texts, questions[row["question_id"]], row["turns"], turn) for row, turn in shown]
        seeds = [step_seed(context.seed, "judge", row["model"], row["question_id"], turn) for row, turn in shown]
        graded = iter(rate(sitting.judge, talks, seeds, step.mode, judge_sampling(step)))
        return [
            {
                "model": row["model"],
                "question_id": row["question_id"],
                "category": row["category"],
                "turn": turn,
                "mode": step.mode,
                **(next(graded) if came(row, turn) else NO_REPLY),
            }
            for row, turn in batch
        ]

    return context.batched("judge", items, step.batch, make, unit="turns")


NO_REPLY: Row = {"judgment": None, "rating": None, "unscored": "answer_error"}


def asked(texts: Mapping[str, Text], question: Question, answers: Sequence[str], turn: int) -> tuple[Turn, ...]:
    """What the judge is asked about turn 1 or 2 of one model's answers; against a reference if the
    question has one for that turn.
    """
    name, shown = question_shown("judge_single", question, turn)
    answer_fields = {"answer": answers[0]} if turn == 1 else {"answer_1": answers[0], "answer_2": answers[1]}
    return texts[name].ask(**shown, **answer_fields)


def scores(sitting: Sitting, rows: Sequence[Row]) -> dict[str, Any]:
    """Means with intervals, differences of every two models, and what the judge gives itself."""
    from openbezoar.judging.scores import rating_differences, score_table, self_preference

    models, seed, own = sitting.models, sitting.context.seed, sitting.own
    return {
        "models": score_table(models, sitting.answers, rows, seed),
        "differences": rating_differences(models, rows, seed),
        "self_preference": self_preference(own, models, rows, seed) if own else None,
    }


def summary(scores: Mapping[str, Any]) -> str:
    """Each model's mean with its interval."""
    from openbezoar.judging.scores import summary_line

    return summary_line(scores["models"])


def blocks(result: MtBenchScores) -> list[Block]:
    """What the judge gives itself, and ratings by turn and category."""
    from openbezoar.verbs.judge.answers_section import rating_blocks

    return rating_blocks(result)
