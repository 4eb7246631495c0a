"""A judge's replies to conversations: ratings of one answer, verdicts on two. Reads and writes nothing.

By text the judge writes and its reply is parsed; by probability the choices after a fixed
beginning are weighed, which leaves nothing to parse and needs a local judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from openbezoar.judging.parsers import Verdict, parse_rating, parse_verdict, parse_yes_no
from openbezoar.judging.prompting import RATING_CHOICES, RATING_PREFIX, UNSCORED, VERDICT_CHOICES, VERDICT_PREFIX, YES_NO_CHOICES, expected_rating
from openbezoar.llm import LLM, Sampling
from openbezoar.records import Row, Turn

Mode = Literal["text", "probability"]
Talks = Sequence[Sequence[Turn]]

VERDICTS: tuple[Verdict, ...] = ("A", "B", "tie")
NO_PROBABILITY = "no_probability"
UNLIKELY = -100.0  # log-probability of a choice that a server does not tell, since others are likelier


def rate(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, most: int) -> list[Row]:
    """{judgment, rating, unscored} a conversation: the judge's text, the rating or null, and why there is none."""
    if not talks:
        return []
    if mode == "probability":
        ratings = [expected_rating(logprobs) for logprobs in llm.choice_logprobs(talks, RATING_PREFIX, RATING_CHOICES)]
        return [{"judgment": None, "rating": r, "unscored": NO_PROBABILITY if r is None else None} for r in ratings]
    rows: list[Row] = []
    for reply in llm.chat(talks, Sampling(most), seeds):
        rating = None if reply.finish == "error" else parse_rating(reply.text)
        rows.append({"judgment": reply.text, "rating": rating, "unscored": UNSCORED[reply.finish] if rating is None else None})
    return rows


def compare(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, most: int) -> list[Row]:
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
            rows.append({"judgment": None, "verdict": verdict, "logprobs": kept, "unscored": None if known else NO_PROBABILITY})
        return rows
    for reply in llm.chat(talks, Sampling(most), seeds):
        verdict = None if reply.finish == "error" else parse_verdict(reply.text)
        rows.append({"judgment": reply.text, "verdict": verdict, "logprobs": None, "unscored": UNSCORED[reply.finish] if verdict is None else None})
    return rows


def say_yes_or_no(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, most: int) -> list[Row]:
    """{judgment, yes, unscored} a conversation: whether the judge says yes, or null."""
    if not talks:
        return []
    rows: list[Row] = []
    if mode == "probability":
        for yes, no in llm.choice_logprobs(talks, VERDICT_PREFIX, YES_NO_CHOICES):
            known = math.isfinite(yes) or math.isfinite(no)
            rows.append({"judgment": None, "yes": yes > no if known else None, "unscored": None if known else NO_PROBABILITY})
        return rows
    for reply in llm.chat(talks, Sampling(most), seeds):
        said = None if reply.finish == "error" else parse_yes_no(reply.text)
        rows.append({"judgment": reply.text, "yes": said, "unscored": UNSCORED[reply.finish] if said is None else None})
    return rows
