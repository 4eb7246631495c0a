"""Every two answers beside each other, in both orders: which is better.

Its part of ``scores.json``: ``pairwise`` (``judging.pairwise.pair_numbers``). ``comparisons.jsonl``
has a row a pair of models, question and turn with the winner over both orders, a vote that
``openbezoar agreement`` reads, and both replies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from openbezoar.judging.both_orders import OFFICIAL, TEXTS, Pairing, compared
from openbezoar.judging.grading import judge_sampling
from openbezoar.judging.questions import Question
from openbezoar.rows.records import Row
from openbezoar.stats.seeds import step_seed
from openbezoar.verbs.judge.protocols import Sitting, TurnCalls, came

if TYPE_CHECKING:
    from openbezoar.reporting.document import Block
    from openbezoar.verbs.judge.result import MtBenchScores

__all__ = ["FILE", "OFFICIAL", "TEXTS", "blocks", "calls", "grade", "scores", "summary"]

FILE = "comparisons.jsonl"


def calls(models: int, against: str | None) -> TurnCalls:
    """Two of each pair, which show both answers each."""
    pairs = models - 1 if against else math.comb(models, 2)
    return TurnCalls(2 * pairs, 4 * pairs)


def grade(sitting: Sitting) -> list[Row]:
    """One comparison a pair of models, question and turn, each in both orders."""
    step = sitting.step
    pairings = [_pairing(sitting, q, turn, a, b) for q, a, b in _pairs(sitting) for turn in (1, 2)]

    def make(_: int, batch: Sequence[Pairing]) -> list[Row]:
        return compared(sitting.judge, sitting.texts, batch, step.mode, judge_sampling(step))

    return sitting.context.batched("compare", pairings, step.batch, make, unit="comparisons")


def _pairing(sitting: Sitting, question: Question, turn: int, a: Row, b: Row) -> Pairing:
    step, names = sitting.step, (a["model"], b["model"])
    return Pairing(
        what={
            "question_id": question.id,
            "category": question.category,
            "turn": turn,
            "model_a": a["model"],
            "model_b": b["model"],
            "judge": step.judge,
            "mode": step.mode,
        },
        question=question,
        turn=turn,
        answers=(a["turns"], b["turns"]),
        seeds=tuple(
            step_seed(sitting.context.seed, "pair", *order, question.id, turn) for order in (names, names[::-1])
        ),
        came=came(a, turn) and came(b, turn),
    )


def _pairs(sitting: Sitting) -> Iterator[tuple[Question, Row, Row]]:
    """A question and the answers of two models to it, for every two models that both have one."""
    rows = {(row["question_id"], row["model"]): row for row in sitting.answers}
    for a, b in combinations(sitting.models, 2):
        if sitting.step.against in (None, a, b):
            for question in sitting.questions:
                if (question.id, a) in rows and (question.id, b) in rows:
                    yield question, rows[question.id, a], rows[question.id, b]


def scores(sitting: Sitting, rows: Sequence[Row]) -> dict[str, Any]:
    """Win rates with intervals, every two models, and what order and length did to the verdicts."""
    from openbezoar.judging.pairwise import pair_numbers

    return {"pairwise": pair_numbers(sitting.models, rows, sitting.context.seed, sitting.own)}


def summary(scores: Mapping[str, Any]) -> str:
    """Each model's win rate with its interval."""
    numbers = scores["pairwise"]
    rates = [(model, by_model["win_rate"]) for model, by_model in numbers["models"].items()]
    parts = [
        (
            f"{model} wins {100 * rate['value']:.0f} % ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})"
            if rate["n"]
            else f"{model} unscored"
        )
        for model, rate in rates
    ]
    return f"{', '.join(parts)}; {numbers['unscored']} of {numbers['n'] + numbers['unscored']} comparisons unscored"


def blocks(result: MtBenchScores) -> list[Block]:
    """Win rates, and what the order and the length of answers did to the verdicts."""
    from openbezoar.verbs.judge.section import pairwise_blocks

    return pairwise_blocks(result.pairwise)
