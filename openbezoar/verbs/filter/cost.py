"""How many tokens a filter's models will read and write, and what the filter hands on."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from statistics import fmean

from openbezoar.recipe.data_steps import Filter
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.verbs.book import CHARACTERS, Book, Estimate, HandedOn

TEMPLATE = 25  # tokens of a chat template and its own system message
PASSED = 0.9  # of a filter's finished rows come to the judge, what a 135M model's rows did over several recipes
ANSWER = 0.7  # of a row's characters that are its answer
VERDICT = 40  # tokens of a judge's reply, of the same model


def cost(step: Filter, book: Book) -> Estimate:
    """The judge's calls and the tokens that likelihoods and rewards are taken of; without any the rows only."""
    rows, characters = book.rows(step.filter)
    parts = [
        *([_judged(step, book, rows, characters)] if step.judge is not None else []),
        *([_scored(step, book, rows, characters)] if step.likelihood is not None else []),
        *([_rewarded(step, book, rows, characters)] if step.reward is not None else []),
    ]
    return reduce(_and_then, parts) if parts else Estimate(rows)


def _and_then(first: Estimate, then: Estimate) -> Estimate:
    """One after the other, each model alone in memory."""
    return replace(
        first,
        tokens_in=(first.tokens_in or 0) + (then.tokens_in or 0),
        memory_bytes=max(first.memory_bytes or 0, then.memory_bytes or 0) or None,
        seconds=_sum(first.seconds, then.seconds),
        flops=_sum(first.flops, then.flops),
        assumed=first.assumed or then.assumed,
    )


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _scored(step: Filter, book: Book, rows: int, characters: float) -> Estimate:
    """The model of ``likelihood`` reads each row that passes the rules once, its answer twice."""
    assert step.likelihood is not None
    name = step.likelihood.model
    passed = _whole(step, book, rows) * PASSED
    prompt = TEMPLATE + characters / CHARACTERS_A_TOKEN
    tokens = passed * (prompt + ANSWER * characters / CHARACTERS_A_TOKEN)
    return book.timed(Estimate(rows, int(tokens), 0, None, book.resident(name)), "filter", name, tokens)


def _rewarded(step: Filter, book: Book, rows: int, characters: float) -> Estimate:
    """The reward model reads each row that comes to it once."""
    assert step.reward is not None
    name = step.reward.model
    tokens = _likely(step, _whole(step, book, rows) * PASSED) * (TEMPLATE + characters / CHARACTERS_A_TOKEN)
    return book.timed(Estimate(rows, int(tokens), 0, None, book.resident(name)), "filter", name, tokens)


def _judged(step: Filter, book: Book, rows: int, characters: float) -> Estimate:
    """The judge's calls."""
    assert step.judge is not None
    template = book.text(step)("judge_filter" if step.mode == "text" else "judge_filter_probability")
    judged = _likely(step, _whole(step, book, rows) * PASSED)
    # a reply's length is taken as exponentially distributed, and is cut at the limit
    reply = VERDICT * (1 - math.exp(-step.max_new_tokens / VERDICT)) if step.mode == "text" else 0.0
    tokens_in = judged * (TEMPLATE + (characters + len(template)) / CHARACTERS_A_TOKEN)
    tokens_out = judged * reply
    estimate = book.answered("filter", step.judge, rows, tokens_in, tokens_out)
    return book.timed(estimate, "filter", step.judge, tokens_in + 4 * tokens_out)


def _whole(step: Filter, book: Book, rows: float) -> float:
    """Of the rows those whose answers are finished, where the filter drops the others."""
    sources = book.from_steps(step.filter)
    return rows * fmean(source.finished for source in sources) if sources and step.rules.drop_unfinished else rows


def _likely(step: Filter, rows: float) -> float:
    """Of the rows that pass the rules those that ``likelihood`` keeps, where it says how many."""
    keep = step.likelihood.ifd.keep if step.likelihood is not None and step.likelihood.ifd is not None else None
    return _part(rows, keep)


def _part(rows: float, keep: float | None) -> float:
    """A share of rows, or a number of them."""
    return rows if keep is None else min(rows, keep) if isinstance(keep, int) else keep * rows


def hands_on(step: Filter, book: Book, name: str) -> HandedOn:
    """The rows that are whole and pass most rules, with their sources' lengths."""
    sources = book.from_steps(step.filter)
    likely = _likely(step, _whole(step, book, book.estimates[name].rows or 0) * PASSED)
    kept = _part(likely, step.reward.best if step.reward is not None else None)
    characters = sources[0].characters if sources else CHARACTERS
    return HandedOn(kept, 1.0, characters, bool(sources) and all(source.system for source in sources))
