"""How many tokens the models of a generate step will read and write, before any is asked.

Which calls a generate step makes, its scheme says (``schemes/expected.py``). ``rates.learn``
corrects that by what each teacher did in each scheme on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from openbezoar.judging.rewards import is_reward_model
from openbezoar.recipe.blocks import LocalModel
from openbezoar.recipe.data_steps import Generate
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.rows.records import Row
from openbezoar.schemes import SCHEMES
from openbezoar.schemes.expected import Calls, Known, up_to
from openbezoar.verbs.book import Book, Estimate, HandedOn, one_after_another
from openbezoar.verbs.generate.key import scheme_options

TEMPLATE = 25  # tokens of a chat template and its own system message
# of the limit, that an unknown teacher behind a server takes for an answer: rather too much money
# than too little
SHARE = 0.6

Text = Callable[[str], str]


def cost(step: Generate, book: Book) -> Estimate:
    """Tokens as the scheme asks for them, corrected by what this teacher did in it before."""
    options, seeds, text = scheme_options(step, "plan"), book.rows_here(step.seeds or []), book.text(step)
    expected = SCHEMES[step.generate].expected(options, Known(step.rows, seeds, text))
    local = isinstance(book.spec(step.teacher), LocalModel)
    tokens = generate_tokens(step, options, seeds, text, local)
    teacher = book.recipe.models.get(step.teacher)
    ratio = f"tokens.{step.generate}.{teacher.model if teacher else step.teacher}"
    tokens_in = tokens[0] * book.rates.get(f"{ratio}.in", 1.0)
    tokens_out = tokens[1] * book.rates.get(f"{ratio}.out", 1.0)
    estimate = book.answered("generate", step.teacher, step.rows, tokens_in, tokens_out)
    estimate.ratio = ratio
    # a model in this process reads faster than it writes
    made = book.timed(
        book.with_cache(estimate, step.teacher, step.batch), "generate", step.teacher, tokens_in / 8 + tokens_out
    )
    if step.by is None:
        return made
    shown = TEMPLATE + (expected.prompt / CHARACTERS_A_TOKEN) + up_to(expected.answer, step.max_new_tokens)
    answers, reward = step.rows * step.samples, is_reward_model(book.recipe, step.by)
    scored = book.scored("generate", step, step.by, answers=answers, shown=shown, reward=reward)
    # both are held at once; what the teacher's tokens were taken for cannot be learnt from the sum
    memory = made.memory_bytes and made.memory_bytes + (scored.memory_bytes or 0)
    beside = ((step.teacher, made.memory_bytes or 0), (step.by, scored.memory_bytes or 0))
    return replace(one_after_another(step.rows, [made, scored]), memory_bytes=memory, beside=beside)


def hands_on(step: Generate, book: Book, name: str) -> HandedOn:
    """The rows that it will make."""
    options = scheme_options(step, "plan")
    share, characters = rows_made(step, options, book.rows_here(step.seeds or []), book.text(step))
    return HandedOn(book.estimates[name].rows or 0, share, characters, SCHEMES[step.generate].brings_system)


def finished(mean: float, limit: int) -> tuple[float, float]:
    """Of texts with exponentially distributed lengths the share that ends before a limit, and the mean of those."""
    cut = math.exp(-limit / mean)
    return 1 - cut, mean - limit * cut / (1 - cut)


def rows_made(step: Generate, options: Any, seeds: Sequence[Row], text: Text) -> tuple[float, float]:
    """Of a generate step's rows the share whose answer is finished, and the mean characters of those rows."""
    expected = SCHEMES[step.generate].expected(options, Known(step.rows, seeds, text))
    share, answer = finished(expected.answer, step.max_new_tokens)
    return share, expected.instruction + answer * CHARACTERS_A_TOKEN


def generate_tokens(step: Generate, options: Any, seeds: Sequence[Row], text: Text, local: bool) -> tuple[float, float]:
    """(tokens read, tokens written) by all models of a generate step. text: a prompt text by its name."""
    expected = SCHEMES[step.generate].expected(options, Known(step.rows, seeds, text))
    answer = up_to(expected.answer, step.max_new_tokens)
    if not local:
        answer = max(answer, SHARE * step.max_new_tokens)
    calls = (*expected.before, Calls("answers", step.rows * step.samples, expected.prompt, answer))
    read = sum(c.number * (TEMPLATE + c.characters / CHARACTERS_A_TOKEN) for c in calls)
    return read, sum(c.number * c.tokens for c in calls)
