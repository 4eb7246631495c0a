"""A judge's replies to conversations: ratings of one answer, verdicts on two. Reads and writes nothing.

By text the judge writes and its reply is parsed; by probability the choices after a fixed
beginning are weighed, which leaves nothing to parse and needs a local judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from openbezoar.judging.parsers import Verdict, parse_rating, parse_verdict, parse_yes_no
from openbezoar.judging.prompting import (
    RATING_CHOICES,
    RATING_PREFIX,
    UNSCORED,
    VERDICT_CHOICES,
    VERDICT_PREFIX,
    YES_NO_CHOICES,
    expected_rating,
)
from openbezoar.llm import LLM, Sampling, recorded
from openbezoar.recipe.measure_steps import Agreement, Failures, MtBench
from openbezoar.rows.records import Row, Turn

Mode = Literal["text", "probability"]
Talks = Sequence[Sequence[Turn]]


def judge_sampling(step: MtBench | Agreement | Failures) -> Sampling:
    """How a step's judge writes its replies."""
    return Sampling(step.judge_max_new_tokens, step.judge_temperature, step.judge_top_p)


VERDICTS: tuple[Verdict, ...] = ("A", "B", "tie")
NO_PROBABILITY = "no_probability"
UNLIKELY = -100.0  # log-probability of a choice that a server does not tell, since others are likelier


def _unknown(logprobs: Sequence[float]) -> str:
    """Why choices that were weighed tell nothing."""
    return NO_PROBABILITY if logprobs else UNSCORED["error"]


def rate(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, sampling: Sampling) -> list[Row]:
    """{judgment, rating, unscored} a conversation: the judge's text, the rating or null, and why there is none."""
    if not talks:
        return []
    if mode == "probability":
        weighed = llm.choice_logprobs(talks, RATING_PREFIX, RATING_CHOICES)
        ratings = [expected_rating(logprobs) for logprobs in weighed]
        return [
            {"judgment": None, "rating": r, "unscored": _unknown(row) if r is None else None}
            for r, row in zip(ratings, weighed, strict=True)
        ]
    rows: list[Row] = []
    for reply in llm.chat(talks, sampling, seeds):
        rating = None if reply.finish == "error" else parse_rating(reply.text)
        rows.append(
            {
                "judgment": reply.text,
                "rating": rating,
                "unscored": UNSCORED[reply.finish] if rating is None else None,
                **recorded(reply),
            }
        )
    return rows


def compare(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, sampling: Sampling) -> list[Row]:
    """{judgment, verdict, logprobs, unscored} a conversation: "A" (shown first), "B", "tie" or null.

    logprobs: of A, B and a tie, by probability only, which takes the likeliest.
    """
    if not talks:
        return []
    rows: list[Row] = []
    if mode == "probability":
        for logprobs in llm.choice_logprobs(talks, VERDICT_PREFIX, VERDICT_CHOICES):
            known = any(math.isfinite(p) for p in logprobs)
            kept = [max(p, UNLIKELY) for p in logprobs] if known else None
            verdict = VERDICTS[max(range(3), key=kept.__getitem__)] if kept else None
            rows.append(
                {
                    "judgment": None,
                    "verdict": verdict,
                    "logprobs": kept,
                    "unscored": None if known else _unknown(logprobs),
                }
            )
        return rows
    for reply in llm.chat(talks, sampling, seeds):
        verdict = None if reply.finish == "error" else parse_verdict(reply.text)
        rows.append(
            {
                "judgment": reply.text,
                "verdict": verdict,
                "logprobs": None,
                "unscored": UNSCORED[reply.finish] if verdict is None else None,
                **recorded(reply),
            }
        )
    return rows


def say_yes_or_no(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, sampling: Sampling) -> list[Row]:
    """{judgment, yes, unscored} a conversation: whether the judge says yes, or null."""
    if not talks:
        return []
    rows: list[Row] = []
    if mode == "probability":
        for logprobs in llm.choice_logprobs(talks, VERDICT_PREFIX, YES_NO_CHOICES):
            known = any(math.isfinite(p) for p in logprobs)
            rows.append(
                {
                    "judgment": None,
                    "yes": logprobs[0] > logprobs[1] if known else None,
                    "unscored": None if known else _unknown(logprobs),
                }
            )
        return rows
    for reply in llm.chat(talks, sampling, seeds):
        said = None if reply.finish == "error" else parse_yes_no(reply.text)
        rows.append(
            {
                "judgment": reply.text,
                "yes": said,
                "unscored": UNSCORED[reply.finish] if said is None else None,
                **recorded(reply),
            }
        )
    return rows
