"""A judge's verdicts on single answers: status, rating and reason, read from its reply or from token
probabilities.

Asks the judge it is given; writes nothing. ``filter`` keeps rows by them, the best of several answers
are picked by them, and ``openbezoar judge check`` holds them against labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from openbezoar.context import StepContext
from openbezoar.judging.parsers import parse_filter_reply
from openbezoar.judging.prompting import RATING_CHOICES, RATING_PREFIX, UNSCORED, ask, expected_rating, judge_texts
from openbezoar.llm import LLM, Sampling, recorded
from openbezoar.recipe.fields import RatingSettings
from openbezoar.rows.records import Row, Turn
from openbezoar.stats.seeds import step_seed

PROMPTS = {"text": "judge_filter", "probability": "judge_filter_probability"}
TEXTS = tuple(PROMPTS.values())
PLACEHOLDERS = ("instruction", "response")
RETRY_TEMPERATURE = 0.7  # the first ask is greedy, and asking greedily again would give the same reply

Item = tuple[int, str, str]
"""(place, which seeds further asks; what was asked; the response)"""


def rate(
    llm: LLM,
    rating: RatingSettings,
    context: StepContext,
    items: Sequence[Item],
    *,
    batch: int,
    min_rating: float,
    files: Mapping[str, Path],
) -> list[Row]:
    """One verdict row an item: status, rating, reason, or ``unscored`` with why and the last reply.
    min_rating: by probability an answer is accepted from it on. files: texts instead of the project's own.
    """
    name = PROMPTS[rating.mode]
    template = judge_texts({name: PLACEHOLDERS}, files, TEXTS)[name]

    def make(_: int, some: Sequence[Item]) -> list[Row]:
        conversations = [ask(template, instruction=asked, response=response) for _, asked, response in some]
        if rating.mode == "probability":
            return _by_probability(llm, conversations, min_rating)
        return _by_text(rating, context.seed, llm, conversations, [i for i, _, _ in some])

    return context.batched("judge", items, batch, make)


def _by_probability(llm: LLM, conversations: Sequence[Sequence[Turn]], min_rating: float) -> list[Row]:
    verdicts: list[Row] = []
    for logprobs in llm.choice_logprobs(conversations, RATING_PREFIX, RATING_CHOICES):
        rating = expected_rating(logprobs)
        if not logprobs:
            verdicts.append({"unscored": UNSCORED["error"], "reply": ""})
        elif rating is None:
            verdicts.append({"unscored": "no_probability", "reply": ""})
        else:
            verdicts.append(
                {
                    "status": "accept" if rating >= min_rating else "reject",
                    "rating": round(rating, 4),
                    "reason": "probability",
                }
            )
    return verdicts


def _by_text(
    rating: RatingSettings, seed: int, llm: LLM, conversations: Sequence[Sequence[Turn]], places: Sequence[int]
) -> list[Row]:
    """Ask all; ask again, with other seeds, those whose reply cannot be parsed."""
    verdicts: list[Row] = [{} for _ in conversations]
    open_ = list(range(len(conversations)))
    for attempt in range(1 + rating.retries):
        temperature = max(rating.temperature, RETRY_TEMPERATURE if attempt else 0.0)
        sampling = Sampling(rating.max_new_tokens, temperature, rating.top_p)
        replies = llm.chat(
            [conversations[i] for i in open_], sampling, [step_seed(seed, "judge", places[i], attempt) for i in open_]
        )
        for i, reply in zip(open_, replies, strict=True):
            parsed = None if reply.finish == "error" else parse_filter_reply(reply.text)
            if parsed is None:
                verdicts[i] = {"unscored": UNSCORED[reply.finish], "reply": reply.text}
            else:
                verdicts[i] = dict(zip(("status", "rating", "reason"), parsed, strict=True))
            verdicts[i] |= {"asks": attempt + 1, **recorded(reply)}
        open_ = [i for i in open_ if "unscored" in verdicts[i] and "refused" not in verdicts[i]]
        if not open_:
            break
    return verdicts
