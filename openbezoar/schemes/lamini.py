"""LaMini: the teacher writes instructions like a few examples, then answers them.

After LaMini-LM (arXiv 2304.14402). An example-guided prompt shows three seed instructions
and asks for twenty more; a topic-guided one also names three topics. Seeds: rows with
``instruction``. Topics: rows with ``title`` (or ``topic``), and optionally
``subcategories`` and ``pages`` as for Wikipedia categories.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from openbezoar.cleaning import units
from openbezoar.errors import DataError, fields_of, named, shown
from openbezoar.llm import Completion, Sampling
from openbezoar.recipe.blocks import DataRef, Strict
from openbezoar.recipe.refs import Ref
from openbezoar.rows.fields import text_in
from openbezoar.rows.instructions import instruction_text
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.rows.records import Row, Turn
from openbezoar.schemes.expected import INSTRUCTION, Calls, Expected, Known, mean_characters
from openbezoar.schemes.gathering import NewInstructions, gather
from openbezoar.schemes.work import Work, answered, unquoted

PROMPTS = ("lamini_examples", "lamini_topics", "lamini_answer_system")
SEED_FIELDS = ("instruction",)
BEGIN = "<example>"
EXAMPLES, TOPICS = "example-guided", "topic-guided"


class Options(Strict):
    """The scheme's own keys. Numbers without a note are LaMini-LM's, as third-party notes give them."""

    topics: Annotated[DataRef | None, Ref("data", role="seeds")] = Field(
        None,
        description="Topic rows with a 'title'; without them every prompt is example-guided.",
    )
    examples_per_prompt: int = Field(3, ge=1, description="Seed instructions shown in a prompt.")
    instructions_per_prompt: int = Field(20, ge=1, description="New instructions asked for in a prompt.")
    topics_per_prompt: int = Field(3, ge=1, description="Topics named in a topic-guided prompt.")
    topic_share: float = Field(0.5, ge=0, le=1, description="Share of prompts that are topic-guided. This project's.")
    instruction_tokens: int = Field(
        1024, ge=16, description="Most tokens of a reply that holds instructions. This project's."
    )
    begun: bool = Field(
        True,
        description=(
            "Let the reply begin with <example> where the teacher's prompt can be written out (in this process, or by"
            " 'wrapper'); weak ones keep the format better. This project's."
        ),
    )
    max_prompts: int | None = Field(
        None,
        ge=1,
        description="Give up after this many prompts; default: as many as rows, but at least 20. This project's.",
    )


USABLE = 0.37  # of the instructions asked for: new, whole and well-formed


def expected(options: Options, known: Known) -> Expected:
    """Prompts until enough instructions are usable."""
    written = min(options.instruction_tokens, options.instructions_per_prompt * INSTRUCTION)
    prompts = min(known.rows / (USABLE * written / INSTRUCTION), options.max_prompts or max(20, known.rows))
    examples = [row for row in known.seeds if not row.get("context")] or known.seeds
    guided = options.topic_share if options.topics else 0.0
    prompt = guided * len(known.text("lamini_topics")) + (1 - guided) * len(known.text("lamini_examples"))
    prompt += options.examples_per_prompt * (mean_characters(examples, "instruction") + len("<example></example>"))
    return Expected(
        before=(Calls("instructions", prompts, prompt, written),),
        prompt=len(known.text("lamini_answer_system")) + (INSTRUCTION - 5) * CHARACTERS_A_TOKEN,
        answer=62,
    )


def make(options: Options, work: Work) -> list[Row]:
    """Rows with instruction, response and ``source`` ('example-guided' or 'topic-guided').

    Makes fewer than wanted if the teacher's replies hold too few instructions by
    ``max_prompts``; the shortfall is counted. Raises ModelError if they hold none.
    """
    examples, topics = _shown(options, work), _topics(options, work)
    sampling = Sampling(options.instruction_tokens, work.sampling.temperature, work.sampling.top_p)
    instructions = NewInstructions(work, unusable)

    def ask(numbers: range) -> None:
        drawn = [_prompt(options, work, n, examples, topics) for n in numbers]
        replies = _ask(
            options, work, [text for text, _ in drawn], [work.seed("instructions", 0, n) for n in numbers], sampling
        )
        for (_, source), reply in zip(drawn, replies, strict=True):
            _take(reply, source, instructions)

    remedy = "expected <example>...</example> or a list: use a stronger teacher, or set prompts.lamini_examples"
    # Half of what is asked for, until it is known how many a reply holds.
    gather(instructions, options.max_prompts or max(20, work.rows), options.instructions_per_prompt / 2, ask, remedy)
    system = Turn("system", work.text("lamini_answer_system"))
    rows = instructions.rows()
    replies = work.chat(
        "answers",
        [[system, Turn("user", row["instruction"])] for row in rows],
        [work.seed("answer", 0, n) for n in range(len(rows))],
    )
    return answered(work, rows, replies)


# -------------------------------------------------------------------------- instructions


def _ask(options: Options, work: Work, texts: list[str], seeds: list[int], sampling: Sampling) -> list[Completion]:
    """Replies to prompts for instructions, begun with a tag where the model's prompt can be written out."""
    if options.begun and work.written([Turn("user", BEGIN)], work.teacher) is not None:
        replies = work.begun("instructions", texts, [BEGIN] * len(texts), seeds, sampling, work.teacher, bar=False)
        return [replace(r, text=BEGIN + r.text) for r in replies]
    return work.chat("instructions", [[Turn("user", text)] for text in texts], seeds, sampling=sampling, bar=False)


def _prompt(options: Options, work: Work, number: int, shown: list[str], topics: list[str]) -> tuple[str, str]:
    """Prompt ``number`` and its source; which seeds and topics it shows depends on the number alone."""
    draw = random.Random(work.seed("prompt", 0, number))
    examples = draw.sample(shown, options.examples_per_prompt)
    values = {
        "shown": str(len(examples)),
        "wanted": str(options.instructions_per_prompt),
        "examples": "\n".join(f"<example>{text}</example>" for text in examples),
    }
    # Spread evenly rather than drawn, so that few prompts hold the share too.
    guided = topics and math.floor((number + 1) * options.topic_share) > math.floor(number * options.topic_share)
    if guided:
        return (
            work.text("lamini_topics", topics=", ".join(draw.sample(topics, options.topics_per_prompt)), **values),
            TOPICS,
        )
    return work.text("lamini_examples", **values), EXAMPLES


def _shown(options: Options, work: Work) -> list[str]:
    """Seed instructions that can stand in a prompt.

    One that speaks of a text beside it makes a poor example for instructions that have none,
    so seeds with context serve only if there are too few others.
    """
    bare = [seed for seed in work.seeds if not seed.get("context")]
    if len(bare) >= options.examples_per_prompt:
        if len(bare) < len(work.seeds):
            work.counts.add("seeds with context not shown as examples", len(work.seeds) - len(bare))
    else:
        bare = list(work.seeds)
    if len(bare) < options.examples_per_prompt:
        raise DataError(
            f"seeds: {len(bare)} rows, but examples_per_prompt is {options.examples_per_prompt}; add seeds or lower it"
        )
    return [_TAG.sub("", instruction_text(seed)).strip() for seed in bare]


def _topics(options: Options, work: Work) -> list[str]:
    """Topics by LaMini-LM's rule: fewer than three words, and where the rows have the counts, more
    than 10 sub-categories and more than 50 pages.
    """
    if options.topics is None:
        return []
    kept: dict[str, None] = {}
    for number, row in enumerate(work.rows_of(options.topics), 1):
        where = f"topics: row {named(row.get('id', number))}"
        if not {"title", "topic"} & set(row):
            raise DataError(f"{where}: no field 'title'; it has {fields_of(row)}")
        title = text_in(row, ("title", "topic"), where)
        if not title.strip():
            raise DataError(f"{where}: the title is empty; drop the row or fill it in")
        if units.size(units.split(title)) >= 3 * units.WORD:
            work.counts.add("topics of three words or more")
        elif _at_most(row, "subcategories", 10, where) or _at_most(row, "pages", 50, where):
            work.counts.add("topics with too few sub-categories or pages")
        else:
            kept[" ".join(title.split())] = None
    if len(kept) < options.topics_per_prompt:
        raise DataError(
            f"topics: {len(kept)} topics of fewer than three words, but topics_per_prompt is"
            f" {options.topics_per_prompt}; add topics or lower it"
        )
    return list(kept)


def _at_most(row: Row, name: str, number: int, where: str) -> bool:
    if row.get(name) is None:
        return False
    try:
        return float(row[name]) <= number
    except (TypeError, ValueError, OverflowError):  # a whole number may be too large for float
        raise DataError(
            f"{where}: the field '{name}' is {shown(row[name])}; expected a count, or no such field"
        ) from None


# ------------------------------------------------------------------------------- parsing

_TAG = re.compile(r"(?:<|&lt;)/?\s*example(?:\s*\d{1,3})?\s*(?:>|&gt;)", re.IGNORECASE)
# Bullets, numbers, or labels in front of a line; teachers like to set the latter two in bold.
_LABEL = r"(?:example|instruction|question|task|command)[ \t]*\d{0,3}[ \t]*:"
_LISTED = re.compile(rf"[ \t]*(?:\*\*)?(?:\(?\d{{1,3}}[.):]|[-*•]|{_LABEL})(?:\*\*)?[ \t]+(\S.*)", re.IGNORECASE)
_HEAD = re.compile(rf"(?:\*\*)?(?:{_LABEL}|\(?\d{{1,3}}[.)])(?:\*\*)?[ \t]*", re.IGNORECASE)
_ANSWER = re.compile(
    r"^[ \t]*(?:\*\*)?(?:the[ \t]+)?(?:answer|response|output|solution)(?:[ \t]+is)?[ \t]*\d{0,3}[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_MARKUP = re.compile(r"(?:<|&lt;)/?\s*examples?\b", re.IGNORECASE)


def parse_instructions(reply: str, whole: bool) -> tuple[list[str], Literal["tags", "list", "none"]]:
    """Instructions in a teacher's reply, and the form they were found in.

    An <example> ends at </example> or where the next one begins; a last one that is not
    closed is dropped as unfinished. One that holds nothing but a list is taken apart. A
    reply without tags is read as a list (numbers, bullets, or labels such as "Example 1:"),
    less its last line unless the reply is ``whole``.
    """
    tags = list(_TAG.finditer(reply))
    if tags:
        inner = [reply[opening.end() : after.start()] for opening, after in pairwise(tags) if "/" not in opening[0]]
        return [text for raw in inner for text in _one_or_list(raw)], "tags"
    lines = reply.splitlines() if whole else reply.splitlines()[:-1]
    listed = [text for line in lines if (match := _LISTED.match(line)) and (text := _tidy(match[1]))]
    return listed, "list" if listed else "none"


def _one_or_list(raw: str) -> list[str]:
    lines = [line for line in raw.splitlines() if line.strip()]
    listed = [match[1] for line in lines if (match := _LISTED.match(line))]
    texts = listed if len(lines) > 1 and len(listed) == len(lines) else [raw]
    return [text for t in texts if (text := _tidy(t))]


def _tidy(raw: str) -> str:
    return unquoted(_HEAD.sub("", raw.strip(), count=1) if _HEAD.match(raw.strip()) else raw.strip())


def without_answer(text: str) -> str:
    """An instruction without the answer that a teacher gave to it, although it was asked not to."""
    match = _ANSWER.search(text)
    return text[: match.start()].rstrip() if match and text[: match.start()].strip() else text


def unusable(text: str) -> str | None:
    """LaMini's own reason why a text is no instruction, or None."""
    return "holds the prompt's own markup" if _MARKUP.search(text) else None


def _take(reply: Completion, source: str, found: NewInstructions) -> None:
    """Add a reply's instructions to what was found; count what is dropped, and why."""
    texts, form = parse_instructions(reply.text, reply.finish == "stop")
    counts = found.work.counts
    if form == "list":
        counts.add("replies without tags, read as a list")
    if not texts:
        counts.add("replies without an instruction")
    for text in texts:
        bare = without_answer(text)
        if bare != text:
            counts.add("answers cut off new instructions")
        found.add(bare, source)
