"""How many tokens a filter's judge will read and write, and what the filter hands on."""

from __future__ import annotations

import math
from statistics import fmean

from openbezoar.recipe.data_steps import Filter
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.verbs.book import CHARACTERS, Book, Estimate, HandedOn

TEMPLATE = 25  # tokens of a chat template and its own system message
PASSED = 0.9  # of a filter's finished rows come to the judge, what a 135M model's rows did over several recipes
VERDICT = 40  # tokens of a judge's reply, of the same model


def cost(step: Filter, book: Book) -> Estimate:
    """The judge's calls; without a judge the rows only."""
    rows, characters = book.rows(step.filter)
    if step.judge is None:
        return Estimate(rows)
    template = book.text(step)("judge_filter" if step.mode == "text" else "judge_filter_probability")
    judged = _whole(step, book, rows) * PASSED
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


def hands_on(step: Filter, book: Book, name: str) -> HandedOn:
    """The rows that are whole and pass most rules, with their sources' lengths."""
    sources = book.from_steps(step.filter)
    kept = _whole(step, book, book.estimates[name].rows or 0) * PASSED
    characters = sources[0].characters if sources else CHARACTERS
    return HandedOn(kept, 1.0, characters, bool(sources) and all(source.system for source in sources))
