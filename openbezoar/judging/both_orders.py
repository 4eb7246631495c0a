"""Two answers put before a judge in both orders, which is how a verdict on a pair is asked for. Writes nothing.

Gives rows of ``comparisons.jsonl``, which are votes in the schema that ``openbezoar agreement``
reads, with the replies in both orders beside them. As in MT-Bench (arXiv 2306.05685) a model wins
where both orders say so; two different verdicts are a tie ("tie (inconsistent)"). A pair without a
verdict in one of the orders has no winner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openbezoar.judging.grading import Mode, compare
from openbezoar.judging.prompting import Text, question_shown
from openbezoar.judging.questions import Question
from openbezoar.llm import LLM, Sampling
from openbezoar.rows.records import Row, Turn

_TALKS = ("question_1", "question_2", "answer_a_1", "answer_a_2", "answer_b_1", "answer_b_2")
TEXTS = {
    "judge_pair": ("question", "answer_a", "answer_b"),
    "judge_pair_reference": ("question", "ref_answer_1", "answer_a", "answer_b"),
    "judge_pair_turn2": _TALKS,
    "judge_pair_turn2_reference": (*_TALKS, "ref_answer_1", "ref_answer_2"),
}
"""The texts for two answers, with the placeholders that each must hold."""

OFFICIAL = {
    "judge_pair": "pair-v2",
    "judge_pair_reference": "pair-math-v1",
    "judge_pair_turn2": "pair-v2-multi-turn",
    "judge_pair_turn2_reference": "pair-math-v1-multi-turn",
}
"""Names of the same texts in FastChat's file."""

INCONSISTENT = "tie (inconsistent)"
_WINNER = {"A": "model_a", "B": "model_b", "tie": "tie"}
SWAPPED = {"A": "B", "B": "A", "tie": "tie"}
NO_REPLY: Row = {"judgment": None, "verdict": None, "logprobs": None, "unscored": "answer_error"}


@dataclass(frozen=True)
class Pairing:
    """Two answers to compare at a turn of a question.

    what: the fields of its row of ``comparisons.jsonl`` that say what is compared. answers: each
    side's by turn, up to the one that is compared. seeds: of the calls with the first side shown
    first, and second. came: whether both answers are there; else the judge is not asked.
    """

    what: Row
    question: Question
    turn: int
    answers: tuple[Sequence[str], Sequence[str]]
    seeds: tuple[int, ...]
    came: bool = True

    def talks(self, texts: Mapping[str, Text]) -> list[tuple[Turn, ...]]:
        """The conversations in both orders; against a reference if the question has one for that turn."""
        name, shown = question_shown("judge_pair", self.question, self.turn)
        return [texts[name].ask(**shown, **_answers(*order, self.turn)) for order in (self.answers, self.answers[::-1])]


def _answers(a: Sequence[str], b: Sequence[str], turn: int) -> dict[str, str]:
    if turn == 1:
        return {"answer_a": a[0], "answer_b": b[0]}
    return {f"answer_{side}_{n}": text for side, texts in (("a", a), ("b", b)) for n, text in enumerate(texts, 1)}


def compared(
    judge: LLM, texts: Mapping[str, Text], pairings: Sequence[Pairing], mode: Mode, sampling: Sampling
) -> list[Row]:
    """A row of ``comparisons.jsonl`` for each pairing, with the winner over both orders."""
    pairs = [pairing for pairing in pairings if pairing.came]
    talks = [talk for pairing in pairs for talk in pairing.talks(texts)]
    seeds = [seed for pairing in pairs for seed in pairing.seeds]
    replies = iter(compare(judge, talks, seeds, mode, sampling))
    rows = []
    for pairing in pairings:
        as_named, swapped = (next(replies), next(replies)) if pairing.came else (NO_REPLY, NO_REPLY)
        a, b = (len(side[pairing.turn - 1]) for side in pairing.answers)
        rows.append(comparison(pairing.what, (a, b), as_named, swapped))
    return rows


def settle(as_named: str | None, swapped: str | None) -> str | None:
    """The winner from the verdicts with a shown first and with b shown first; None if one is missing."""
    if as_named is None or swapped is None:
        return None
    return _WINNER[as_named] if as_named == SWAPPED[swapped] else INCONSISTENT


def comparison(what: Row, lengths: tuple[int, int], as_named: Row, swapped: Row) -> Row:
    """A row of ``comparisons.jsonl`` from what is compared and the judge's replies
    (``grading.compare``) in both orders.
    """
    replies = (as_named, swapped)
    return {
        **what,
        "winner": settle(as_named["verdict"], swapped["verdict"]),
        "verdicts": [r["verdict"] for r in replies],
        "judgments": [r["judgment"] for r in replies],
        "logprobs": [r["logprobs"] for r in replies],
        "lengths": list(lengths),
        "unscored": next((r["unscored"] for r in replies if r["unscored"]), None),
        **{name: [r.get(name) for r in replies] for name in ("left_out", "refused") if any(name in r for r in replies)},
    }
