"""What pairs cost: the models' answers, and what scores them. Lengths are not known beforehand."""

from __future__ import annotations

from openbezoar.judging.rewards import is_reward_model
from openbezoar.recipe.pair_steps import Pairs
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.verbs.book import Book, Estimate, HandedOn, one_after_another

QUESTION = 150  # tokens of a prompt, as it is sent
LENGTH = 0.6  # of the limit, that an answer has
MADE = 0.9  # of the prompts that give a pair
BROUGHT = 1.5  # answers that a row brings: one, or of a pair two


def cost(step: Pairs, book: Book) -> Estimate:
    """Each model's answers, then all of them scored, one model alone in memory at a time."""
    rows, _ = book.rows(step.pairs)
    shares = [1.0 if number == 0 or step.pick == "delta" else step.foreign for number in range(len(step.models))]
    calls = [rows * share * step.answers for share in shares]
    parts = [_answers(step, book, model, n) for model, n in zip(step.models, calls, strict=True)]
    if step.by is not None:
        brought = rows * step.foreign * BROUGHT if step.row_answers else 0.0
        shown = QUESTION + step.max_new_tokens * LENGTH
        reward = is_reward_model(book.recipe, step.by)
        parts.append(book.scored("pairs", step, step.by, answers=sum(calls) + brought, shown=shown, reward=reward))
    return one_after_another(rows, parts)


def _answers(step: Pairs, book: Book, model: str, calls: float) -> Estimate:
    tokens_in, tokens_out = calls * QUESTION, calls * step.max_new_tokens * LENGTH
    estimate = book.with_cache(
        book.answered("pairs", model, max(1, round(calls)), tokens_in, tokens_out), model, step.batch
    )
    # a model in this process reads faster than it writes
    return book.timed(estimate, "pairs", model, tokens_in / 8 + tokens_out)


def hands_on(step: Pairs, book: Book, name: str) -> HandedOn:
    """A pair of most prompts."""
    characters = (QUESTION + 2 * step.max_new_tokens * LENGTH) * CHARACTERS_A_TOKEN
    return HandedOn((book.estimates[name].rows or 0) * MADE, 1.0, characters, False)
