"""A judge's replies to conversations: ratings of one answer, verdicts on two. Reads and writes nothing.

By text the judge writes and its reply is parsed; by probability the choices after a fixed
beginning are weighed, which leaves nothing to parse and needs a local judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from openbezoar.llm import LLM, Completion, Sampling, recorded
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


@dataclass(frozen=True)
class ReplyForm:
    """How a judge says what it finds.

    name: the field of a row that it becomes. read: from a reply's text, None if it says nothing. By
    probability the judge is made to begin with ``start``, and ``choices`` after it are weighed;
    weighed: from their log-probabilities, of which at least one is known. keeps: these stay in the row.
    """

    name: str
    start: str
    choices: tuple[str, ...]
    weighed: Callable[[Sequence[float]], Any]
    read: Callable[[str], Any]
    keeps: bool = False


def told(llm: LLM, talks: Talks, seeds: Sequence[int], *, mode: Mode, sampling: Sampling, form: ReplyForm) -> list[Row]:
    """A row a conversation: the judge's text (``judgment``), what it says by the form's name or null,
    and why there is nothing (``unscored``).
    """
    if not talks:
        return []
    if mode == "probability":
        return [_by_probability(form, row) for row in llm.choice_logprobs(talks, form.start, form.choices)]
    return [_by_text(form, reply) for reply in llm.chat(talks, sampling, seeds)]


def _by_probability(form: ReplyForm, logprobs: Sequence[float]) -> Row:
    known = any(math.isfinite(p) for p in logprobs)
    return {
        "judgment": None,
        form.name: form.weighed(logprobs) if known else None,
        **({"logprobs": [max(p, UNLIKELY) for p in logprobs] if known else None} if form.keeps else {}),
        "unscored": None if known else NO_PROBABILITY if logprobs else UNSCORED["error"],
    }


def _by_text(form: ReplyForm, reply: Completion) -> Row:
    verdict = None if reply.finish == "error" else form.read(reply.text)
    return {
        "judgment": reply.text,
        form.name: verdict,
        **({"logprobs": None} if form.keeps else {}),
        "unscored": UNSCORED[reply.finish] if verdict is None else None,
        **recorded(reply),
    }


RATING = ReplyForm("rating", RATING_PREFIX, RATING_CHOICES, expected_rating, parse_rating)
VERDICT = ReplyForm(
    "verdict",
    VERDICT_PREFIX,
    VERDICT_CHOICES,
    lambda logprobs: VERDICTS[max(range(3), key=[max(p, UNLIKELY) for p in logprobs].__getitem__)],
    parse_verdict,
    keeps=True,
)
YES_NO = ReplyForm("yes", VERDICT_PREFIX, YES_NO_CHOICES, lambda logprobs: logprobs[0] > logprobs[1], parse_yes_no)


def rate(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, sampling: Sampling) -> list[Row]:
    """{judgment, rating, unscored} a conversation: the judge's text, the rating or null, and why there is none."""
    return told(llm, talks, seeds, mode=mode, sampling=sampling, form=RATING)


def compare(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, sampling: Sampling) -> list[Row]:
    """{judgment, verdict, logprobs, unscored} a conversation: "A" (shown first), "B", "tie" or null.

    logprobs: of A, B and a tie, by probability only, which takes the likeliest.
    """
    return told(llm, talks, seeds, mode=mode, sampling=sampling, form=VERDICT)


def say_yes_or_no(llm: LLM, talks: Talks, seeds: Sequence[int], mode: Mode, sampling: Sampling) -> list[Row]:
    """{judgment, yes, unscored} a conversation: whether the judge says yes, or null."""
    return told(llm, talks, seeds, mode=mode, sampling=sampling, form=YES_NO)
