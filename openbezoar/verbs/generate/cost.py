"""How many tokens the models of a generate step will read and write, before any is asked.

Reads prompt texts and seeds' lengths, writes nothing. Lengths of prompts are counted in
characters of what will be sent. What a teacher makes of them is not known beforehand: the
constants below are what a 135M model did over several recipes, and ``rates.learn``
corrects them by what each teacher did in each scheme on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from openbezoar.recipe.blocks import LocalModel
from openbezoar.recipe.data_steps import Generate
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.rows.records import Row
from openbezoar.verbs.book import Book, Estimate, HandedOn
from openbezoar.verbs.generate.key import scheme_options

TEMPLATE = 25  # tokens of a chat template and its own system message
INSTRUCTION = 22  # tokens of a new instruction with its tags
USABLE = 0.37  # of the instructions asked for: new, whole and well-formed
TRIES = 1.9  # evolutions for one that passes the rules
EVOLUTION = 55  # tokens of one, were there no limit
ANSWERS = {"lamini": 62, "evol_instruct": 180, "orca": 75}  # tokens of an answer, were there no limit
ANSWER = 90  # of another scheme's
# of the limit, that an unknown teacher behind a server takes for an answer: rather too much money
# than too little
SHARE = 0.6

Text = Callable[[str], str]


def cost(step: Generate, book: Book) -> Estimate:
    """Tokens as the scheme asks for them, corrected by what this teacher did in it before."""
    options = scheme_options(step, "plan")
    local = isinstance(book.spec(step.teacher), LocalModel)
    tokens = generate_tokens(step, options, book.rows_here(step.seeds or []), book.text(step), local)
    teacher = book.recipe.models.get(step.teacher)
    ratio = f"tokens.{step.generate}.{teacher.model if teacher else step.teacher}"
    tokens_in = tokens[0] * book.rates.get(f"{ratio}.in", 1.0)
    tokens_out = tokens[1] * book.rates.get(f"{ratio}.out", 1.0)
    made = book.answered("generate", step.teacher, step.rows, tokens_in, tokens_out)
    made.ratio = ratio
    # a model in this process reads faster than it writes
    return book.timed(
        book.with_cache(made, step.teacher, step.batch), "generate", step.teacher, tokens_in / 8 + tokens_out
    )


def hands_on(step: Generate, book: Book, name: str) -> HandedOn:
    """The rows that it will make."""
    options = scheme_options(step, "plan")
    share, characters = rows_made(step, options, book.rows_here(step.seeds or []), book.text(step))
    return HandedOn(book.estimates[name].rows or 0, share, characters, step.generate == "orca")


def up_to(mean: float, limit: int) -> float:
    """Mean length of texts that are cut at a limit, where their lengths without it are exponentially distributed."""
    return mean * (1 - math.exp(-limit / mean))


def finished(mean: float, limit: int) -> tuple[float, float]:
    """Of such texts the share that ends before the limit, and the mean length of those."""
    cut = math.exp(-limit / mean)
    return 1 - cut, mean - limit * cut / (1 - cut)


def rows_made(step: Generate, options: Any, seeds: Sequence[Row], text: Text) -> tuple[float, float]:
    """Of a generate step's rows the share whose answer is finished, and the mean characters of those rows."""
    share, answer = finished(ANSWERS.get(step.generate, ANSWER), step.max_new_tokens)
    if step.generate == "orca":
        asked = _orca(options, seeds) + len(text("orca_system_messages")) / 16
    else:
        asked = (EVOLUTION if step.generate == "evol_instruct" else INSTRUCTION) * CHARACTERS_A_TOKEN
    return share, asked + answer * CHARACTERS_A_TOKEN


def generate_tokens(step: Generate, options: Any, seeds: Sequence[Row], text: Text, local: bool) -> tuple[float, float]:
    """(tokens read, tokens written) by all models of a generate step. text: a prompt text by its name."""
    answer = up_to(ANSWERS.get(step.generate, ANSWER), step.max_new_tokens)
    if not local:
        answer = max(answer, SHARE * step.max_new_tokens)
    if step.generate == "lamini":
        read, written, asked = _lamini(step, options, seeds, text)
    elif step.generate == "evol_instruct":
        read, written, asked = _evol(step, options, seeds, text)
    elif step.generate == "orca":
        read, written, asked = 0.0, 0.0, _orca(options, seeds) + len(text("orca_system_messages")) / 16
    else:
        read, written, asked = (
            step.rows * TEMPLATE,
            step.rows * INSTRUCTION,
            _mean(seeds, "instruction") or INSTRUCTION * CHARACTERS_A_TOKEN,
        )
    return read + step.rows * (TEMPLATE + asked / CHARACTERS_A_TOKEN), written + step.rows * answer


def _lamini(step: Generate, options: Any, seeds: Sequence[Row], text: Text) -> tuple[float, float, float]:
    """Tokens read and written for instructions, and characters of a prompt for an answer."""
    written = min(options.instruction_tokens, options.instructions_per_prompt * INSTRUCTION)
    prompts = min(step.rows / (USABLE * written / INSTRUCTION), options.max_prompts or max(20, step.rows))
    shown = [row for row in seeds if not row.get("context")] or seeds
    guided = options.topic_share if options.topics else 0.0
    prompt = guided * len(text("lamini_topics")) + (1 - guided) * len(text("lamini_examples"))
    prompt += options.examples_per_prompt * (_mean(shown, "instruction") + len("<example></example>"))
    return (
        prompts * (TEMPLATE + prompt / CHARACTERS_A_TOKEN),
        prompts * written,
        len(text("lamini_answer_system")) + (INSTRUCTION - 5) * CHARACTERS_A_TOKEN,
    )


def _evol(step: Generate, options: Any, seeds: Sequence[Row], text: Text) -> tuple[float, float, float]:
    """As ``_lamini``. One operation in five is in breadth; with an equality judge each kept
    evolution is asked about.
    """
    tries = TRIES * step.rows
    evolved = up_to(EVOLUTION, options.evolved_tokens)
    seed = min(_mean(seeds, "instruction", "context"), options.seed_tokens * CHARACTERS_A_TOKEN)
    prompt = (
        0.8 * (len(text("evol_in_depth")) + len(text("evol_deepening"))) + 0.2 * len(text("evol_in_breadth")) + seed
    )
    read, written = tries * (TEMPLATE + prompt / CHARACTERS_A_TOKEN), tries * evolved
    if options.equality_judge is not None:
        read += 1.5 * step.rows * (TEMPLATE + (len(text("evol_equality")) + seed) / CHARACTERS_A_TOKEN + evolved)
        written += 1.5 * step.rows * 15
    return read, written, evolved * CHARACTERS_A_TOKEN


def _orca(options: Any, seeds: Sequence[Row]) -> float:
    """Characters of a query, by the weights of the sub-collections that the seeds have."""
    by_submix: dict[str, list[Row]] = {}
    for row in seeds:
        by_submix.setdefault(str(row.get("submix", "")).strip().lower(), []).append(row)
    weights = {name: weight for name, weight in options.submixes.items() if name in by_submix and weight > 0}
    return (
        sum(weight * _mean(by_submix[name], "input") for name, weight in weights.items()) / sum(weights.values())
        if weights
        else _mean(seeds, "input")
    )


def _mean(rows: Sequence[Row], *fields: str) -> float:
    """Mean characters of some fields of rows."""
    return sum(len(str(row.get(name) or "")) for row in rows for name in fields) / max(1, len(rows))
