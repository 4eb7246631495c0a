"""Magpie: a chat-tuned teacher that is shown where a user's turn begins writes the turn itself, then answers it.

After Magpie (arXiv 2406.08464). No seeds and no prompts of its own: the text before a
user's words comes from the teacher's chat template, and only the random draws make the
instructions differ. Seeds, where a recipe names any, are instructions not to repeat.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from openbezoar.errors import ModelError
from openbezoar.llm import Completion, Sampling
from openbezoar.recipe.blocks import Strict
from openbezoar.rows.records import Row, Turn
from openbezoar.schemes.gathering import NewInstructions, gather
from openbezoar.schemes.work import Work, answered

PROMPTS: tuple[str, ...] = ()
SEED_FIELDS: tuple[str, ...] = ()
SOURCE = "pre-query"
PROBE = "\u2021user\u2021"  # stands for the user's words in a rendered template


class Options(Strict):
    """The scheme's own keys. The published scripts draw instructions at temperature 1 and top-p 1,
    and answer greedily (``temperature: 0``).
    """

    instruction_temperature: float = Field(1.0, gt=0, description="Of the user's turn. Magpie: 1 to 1.25.")
    instruction_top_p: float = Field(1.0, gt=0, le=1, description="Of the user's turn. Magpie: 0.99 to 1.")
    instruction_tokens: int = Field(
        256, ge=16, description="Most tokens of a user's turn; one that is not over by then is dropped. This project's."
    )
    lines: Literal["all", "first"] = Field(
        "all",
        description=(
            "'all': the whole turn is the instruction; 'first': its first line, for weak teachers that do not find the"
            " end. This project's."
        ),
    )
    system: str | None = Field(
        None,
        description=(
            "System message before the user's turn, to steer what it is about (mathematics, code). Answers come"
            " without it."
        ),
    )
    pre_query: str | None = Field(
        None,
        description=(
            "Text up to where a user's turn begins, such as '<|im_start|>user\\n'; needed for chat servers, which do"
            " not tell their template."
        ),
    )
    end: str | None = Field(
        None,
        description="Text that ends a user's turn; default: what the template writes after it, or the model's own end.",
    )
    max_prompts: int | None = Field(
        None,
        ge=1,
        description="Give up after this many draws; default: four times the rows, but at least 20. This project's.",
    )

    @model_validator(mode="after")
    def _one_system(self) -> Options:
        if self.system is not None and self.pre_query is not None:
            raise ValueError("system: pre_query is sent as it stands; write the system message into it")
        return self


def make(options: Options, work: Work) -> list[Row]:
    """Rows with instruction, response and ``source`` 'pre-query'.

    Makes fewer than wanted if too few draws are usable by ``max_prompts``; the shortfall is
    counted. Raises ModelError if none is, or if the teacher's template cannot be had.
    """
    before, end = user_turn(options, work)
    stop = tuple(text for text in (end, "\n" if options.lines == "first" else "") if text)
    sampling = Sampling(options.instruction_tokens, options.instruction_temperature, options.instruction_top_p, stop)
    instructions = NewInstructions(work)

    def ask(numbers: range) -> None:
        seeds = [work.seed("instruction", n) for n in numbers]
        try:
            replies = work.complete("instructions", [before] * len(numbers), seeds, sampling=sampling, bar=False)
        except ModelError as error:
            if "404" not in str(error) and "405" not in str(error):
                raise
            raise ModelError(f"{error}; magpie needs raw completions (/v1/completions of a server)") from None
        for reply in replies:
            _take(reply, options, instructions)

    remedy = (
        "expected a chat-tuned teacher in its own template: set its prompt to {template: own}, raise"
        " instruction_tokens, or set lines: first"
    )
    gather(instructions, options.max_prompts or max(20, 4 * work.rows), 0.8, ask, remedy)
    rows = instructions.rows()
    replies = work.chat(
        "answers",
        [[Turn("user", row["instruction"])] for row in rows],
        [work.seed("answer", n) for n in range(len(rows))],
    )
    return answered(work, rows, replies)


def user_turn(options: Options, work: Work) -> tuple[str, str]:
    """The text up to where a user's turn begins, and the text that ends one ("" if only the model's own end does).

    Raises ModelError if the recipe gives neither and the teacher's template cannot be seen.
    """
    if options.pre_query is not None:
        return options.pre_query, options.end or ""
    turns = [Turn("system", options.system)] if options.system is not None else []
    text = work.written([*turns, Turn("user", PROBE)], work.teacher)
    if text is None:
        raise ModelError(
            f"teacher '{work.teacher}': a chat server does not tell its template, and magpie has to begin the user's"
            " turn in it; set pre_query (such as '<|im_start|>user\\n'), the model's 'wrapper', or name a model that"
            " runs in this process"
        )
    before, probe, after = text.partition(PROBE)
    if not probe:
        raise ModelError(
            f"teacher '{work.teacher}': its chat template does not show a user's words as they are; set pre_query"
            " and end"
        )
    # A space at the end would split off from the first word, unlike in any text that the teacher was tuned on.
    return before.rstrip(" "), (
        options.end if options.end is not None else _end(after, getattr(work.llm(work.teacher), "tokenizer", None))
    )


def _end(after: str, tokenizer: Any) -> str:
    """What a template writes first after the user's words: a token of its own, or the rest of the line."""
    line = after.strip().partition("\n")[0].strip()
    if tokenizer is None or not line:
        return line
    token = tokenizer.convert_ids_to_tokens(tokenizer(line, add_special_tokens=False).input_ids[0])
    return str(token) if token in tokenizer.get_added_vocab() else line


def _take(reply: Completion, options: Options, found: NewInstructions) -> None:
    """Add the turn to what was found, or count why not."""
    text, over = reply.text, reply.finish == "stop"
    if options.lines == "first" and "\n" in text:  # a server need not heed the stop string
        text, over = text.partition("\n")[0].rstrip(), True
    if reply.finish == "error":
        return  # counted where it came in
    if not over:
        found.work.counts.add("instruction dropped: not over by instruction_tokens")
    else:
        found.add(text, SOURCE)
