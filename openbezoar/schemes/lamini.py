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
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from pydantic import Field

from openbezoar.errors import DataError, ModelError
from openbezoar.llm import Completion, Sampling
from openbezoar.recipe import Strict
from openbezoar.records import Row, Turn, instruction_text
from openbezoar.schemes.work import Work, answered, normal, row_id, unquoted

PROMPTS = ("lamini_examples", "lamini_topics", "lamini_answer_system")
BEGIN = "<example>"
EXAMPLES, TOPICS = "example-guided", "topic-guided"
LONGEST = 2000  # characters; what is longer is no instruction but a reply that ran away


class Options(Strict):
    """The scheme's own keys. Numbers without a note are LaMini-LM's, as third-party notes give them."""

    topics: str | None = Field(
        None, description="Topic rows with a 'title'; without them every prompt is example-guided.", json_schema_extra={"refers_to": "data"}
    )
    examples_per_prompt: int = Field(3, ge=1, description="Seed instructions shown in a prompt.")
    instructions_per_prompt: int = Field(20, ge=1, description="New instructions asked for in a prompt.")
    topics_per_prompt: int = Field(3, ge=1, description="Topics named in a topic-guided prompt.")
    topic_share: float = Field(0.5, ge=0, le=1, description="Share of prompts that are topic-guided. This project's.")
    instruction_tokens: int = Field(1024, ge=16, description="Most tokens of a reply that holds instructions. This project's.")
    begun: bool = Field(True, description="Let models in this process begin their reply with <example>; weak ones keep the format better. This project's.")
    max_prompts: int | None = Field(None, ge=1, description="Give up after this many prompts; default: as many as rows, but at least 20. This project's.")


def make(options: Options, work: Work) -> list[Row]:
    """Rows with instruction, response and ``source`` ('example-guided' or 'topic-guided').

    Makes fewer than wanted if the teacher's replies hold too few instructions by
    ``max_prompts``; the shortfall is counted. Raises ModelError if they hold none.
    """
    found = _instructions(options, work)
    system = Turn("system", work.text("lamini_answer_system"))
    rows: list[Row] = [
        {"id": row_id("lamini", n), "scheme": "lamini", "system": None, "instruction": text, "response": "", "finish": "", "source": source}
        for n, (text, source) in enumerate(found, 1)
    ]
    replies = work.chat("answers", [[system, Turn("user", row["instruction"])] for row in rows], [work.seed("answer", 0, n) for n in range(len(rows))])
    return answered(work, rows, replies)


# -------------------------------------------------------------------------- instructions


@dataclass
class _Found:
    """New instructions with their sources, and all texts that may not come again."""

    seen: set[str]
    texts: list[tuple[str, str]] = field(default_factory=list)

    def add(self, text: str, source: str) -> str | None:
        """Take the text in, or say why not."""
        if reason := unusable(text):
            return reason
        if normal(text) in self.seen:
            return "repeats a seed or an earlier one"
        self.seen.add(normal(text))
        self.texts.append((text, source))
        return None


def _instructions(options: Options, work: Work) -> list[tuple[str, str]]:
    """(instruction, source) pairs, at most as many as rows are wanted."""
    shown, topics = _shown(options, work), _topics(options, work)
    limit = options.max_prompts or max(20, work.rows)
    found = _Found({normal(text) for seed in work.seeds for text in (seed["instruction"], instruction_text(seed))})
    sampling = Sampling(options.instruction_tokens, work.sampling.temperature, work.sampling.top_p)
    asked = 0
    with work.context.progress.bar("instructions", work.rows, "instructions") as bar:
        while (missing := work.rows - len(found.texts)) > 0 and asked < limit:
            numbers = range(asked, asked + min(limit - asked, work.batch, _prompts_for(missing, len(found.texts), asked, options)))
            drawn = [_prompt(options, work, n, shown, topics) for n in numbers]
            replies = _ask(options, work, [text for text, _ in drawn], [work.seed("instructions", 0, n) for n in numbers], sampling)
            before = len(found.texts)
            for (_, source), reply in zip(drawn, replies, strict=True):
                _take(reply, source, found, work)
            asked = numbers.stop
            bar.advance(min(len(found.texts), work.rows) - before)
    if not found.texts:
        raise ModelError(
            f"teacher '{work.teacher}': none of {asked} replies held a new instruction; expected <example>...</example> or a list; use a stronger teacher, or set prompts.lamini_examples"
        )
    if missing > 0:
        work.counts.add("short of the rows wanted", missing)
        work.say(f"{len(found.texts)} instructions after {asked} prompts, {missing} fewer than wanted; raise max_prompts or use a stronger teacher")
    work.counts.add("prompts for instructions", asked)
    return found.texts[: work.rows]


def _ask(options: Options, work: Work, texts: list[str], seeds: list[int], sampling: Sampling) -> list[Completion]:
    """Replies to prompts for instructions, begun with a tag where the model's prompt can be written out."""
    if options.begun and hasattr(work.llm(work.teacher), "formatter"):
        replies = work.begun("instructions", texts, [BEGIN] * len(texts), seeds, sampling, work.teacher, bar=False)
        return [Completion(BEGIN + r.text, r.finish, r.prompt_tokens, r.tokens) for r in replies]
    return work.chat("instructions", [[Turn("user", text)] for text in texts], seeds, sampling=sampling, bar=False)


def _prompts_for(missing: int, found: int, asked: int, options: Options) -> int:
    """How many prompts are likely to give the missing instructions, by what earlier ones gave."""
    each = found / asked if asked else options.instructions_per_prompt / 2
    return math.ceil(missing / max(each, 0.25))


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
        return work.text("lamini_topics", topics=", ".join(draw.sample(topics, options.topics_per_prompt)), **values), TOPICS
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
        raise DataError(f"seeds: {len(bare)} rows, but examples_per_prompt is {options.examples_per_prompt}; add seeds or lower it")
    return [_TAG.sub("", instruction_text(seed)).strip() for seed in bare]


def _topics(options: Options, work: Work) -> list[str]:
    """Topics of fewer than three words; of Wikipedia categories only the well-filled ones."""
    if options.topics is None:
        return []
    kept: list[str] = []
    for number, row in enumerate(work.rows_of(options.topics), 1):
        title = row.get("title", row.get("topic"))
        if not isinstance(title, str) or not title.strip():
            raise DataError(f"{options.topics}: row {row.get('id', number)}: no field 'title'; it has {', '.join(map(str, row)) or 'none'}")
        if len(title.split()) >= 3:
            work.counts.add("topics of three words or more")
        elif _at_most(row, "subcategories", 10) or _at_most(row, "pages", 50):
            work.counts.add("topics with too few sub-categories or pages")
        else:
            kept.append(title.strip())
    if len(kept) < options.topics_per_prompt:
        raise DataError(
            f"{options.topics}: {len(kept)} topics of fewer than three words, but topics_per_prompt is {options.topics_per_prompt}; add topics or lower it"
        )
    return kept


def _at_most(row: Row, name: str, number: int) -> bool:
    value = row.get(name)
    return isinstance(value, int) and value <= number


# ------------------------------------------------------------------------------- parsing

_TAG = re.compile(r"</?\s*example\s*>", re.IGNORECASE)
_LISTED = re.compile(r"[ \t]*(?:\(?\d{1,3}[.):]|[-*•])[ \t]+(\S.*)")
_LABEL = re.compile(r"(?:(?:example|instruction|question|task)[ \t]*\d{0,3}[ \t]*:|\(?\d{1,3}[.)])[ \t]*", re.IGNORECASE)
_MARKUP = re.compile(r"</?\s*examples?\b", re.IGNORECASE)


def parse_instructions(reply: str, whole: bool) -> tuple[list[str], Literal["tags", "list", "none"]]:
    """Instructions in a teacher's reply, and the form they were found in.

    An <example> ends at </example> or where the next one begins; a last one that is not
    closed is dropped as unfinished. A reply without tags is read as a numbered or bulleted
    list, less its last line unless the reply is ``whole``.
    """
    tags = list(_TAG.finditer(reply))
    if tags:
        found = [reply[a.end() : b.start()] for a, b in pairwise(tags) if "/" not in a[0]]
        return [text for raw in found if (text := _tidy(raw))], "tags"
    lines = reply.splitlines() if whole else reply.splitlines()[:-1]
    listed = [text for line in lines if (match := _LISTED.match(line)) and (text := _tidy(match[1]))]
    return listed, "list" if listed else "none"


def _tidy(raw: str) -> str:
    text = _LABEL.sub("", raw.strip(), count=1) if _LABEL.match(raw.strip()) else raw.strip()
    return unquoted(text)


def unusable(text: str) -> str | None:
    """Why a text is no instruction, or None."""
    if not any(c.isalpha() for c in text):
        return "no word in it"
    if len(text) > LONGEST:
        return f"longer than {LONGEST} characters"
    if _MARKUP.search(text):
        return "holds the prompt's own markup"
    return None


def _take(reply: Completion, source: str, found: _Found, work: Work) -> None:
    """Add a reply's instructions to what was found; count what is dropped, and why."""
    texts, form = parse_instructions(reply.text, reply.finish == "stop")
    if form == "list":
        work.counts.add("replies without tags, read as a list")
    if not texts:
        work.counts.add("replies without an instruction")
    for text in texts:
        if reason := found.add(text, source):
            work.counts.add(f"instruction dropped: {reason}")
