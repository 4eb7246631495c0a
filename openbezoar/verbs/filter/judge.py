"""A filter judge's verdicts on single answers: status, rating and reason, read from its reply or
from token probabilities.

Asks the judge it is given; writes nothing. ``filter`` keeps rows by them, and ``openbezoar
judge check`` holds them against labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from openbezoar.context import StepContext
from openbezoar.judging.parsers import parse_filter_reply
from openbezoar.judging.prompting import RATING_CHOICES, RATING_PREFIX, UNSCORED, ask, expected_rating, judge_texts
from openbezoar.llm import LLM, Sampling, recorded
from openbezoar.recipe.data_steps import Filter
from openbezoar.rows.records import Row, Turn
from openbezoar.stats.seeds import step_seed

PROMPTS = {"text": "judge_filter", "probability": "judge_filter_probability"}
PLACEHOLDERS = ("instruction", "response")
RETRY_TEMPERATURE = 0.7  # the first ask is greedy, and asking greedily again would give the same reply

Item = tuple[int, str, str]
"""(place, which seeds further asks; what was asked; the response)"""


def rate(llm: LLM, step: Filter, context: StepContext, items: Sequence[Item], files: Mapping[str, Path]) -> list[Row]:
    """One verdict row an item: status, rating, reason, or ``unscored`` with why and the last reply.
    files: texts instead of the project's own.
    """
    name = PROMPTS[step.mode]
    template = judge_texts({name: PLACEHOLDERS}, files, tuple(PROMPTS.values()))[name]

    def make(_: int, batch: Sequence[Item]) -> list[Row]:
        conversations = [ask(template, instruction=asked, response=response) for _, asked, response in batch]
        if step.mode == "probability":
            return _by_probability(llm, conversations, step.min_rating)
        return _by_text(step, context.seed, llm, conversations, [i for i, _, _ in batch])

    return context.batched("judge", items, step.batch, make)


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
    step: Filter, seed: int, llm: LLM, conversations: Sequence[Sequence[Turn]], places: Sequence[int]
) -> list[Row]:
    """Ask all; ask again, with other seeds, those whose reply cannot be parsed."""
    verdicts: list[Row] = [{} for _ in conversations]
    open_ = list(range(len(conversations)))
    for attempt in range(1 + step.retries):
        temperature = max(step.judge_temperature, RETRY_TEMPERATURE if attempt else 0.0)
        sampling = Sampling(step.max_new_tokens, temperature, step.judge_top_p)
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
