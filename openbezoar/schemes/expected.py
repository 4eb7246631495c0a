"""What a scheme will ask of its models, before any is asked: how many calls, and how long.

Reads prompt texts and seeds' lengths, writes nothing. Prompts are counted in characters of what
will be sent. What a teacher makes of them is not known beforehand: constants here and in the
schemes are what a 135M model did over several recipes, and ``plan`` corrects them by what each
teacher did in each scheme on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.rows.records import Row

INSTRUCTION = 22  # tokens of a new instruction with its tags
ANSWER = 90  # tokens of an answer, were there no limit


class Known(NamedTuple):
    """What is known of a step beforehand: the rows that it wants, its seeds on disk, its prompt texts by name."""

    rows: int
    seeds: Sequence[Row]
    text: Callable[[str], str]


class Calls(NamedTuple):
    """Calls of one kind: how many; characters of each prompt and tokens of each reply, on average."""

    kind: str
    number: float
    characters: float
    tokens: float


class Expected(NamedTuple):
    """What a scheme expects to ask.

    before: the calls that instructions take. prompt: characters of what is sent for an answer, of
    which each row is one call. instruction: characters of a row's texts beside its answer.
    answer: tokens of an answer, were there no limit.
    """

    before: tuple[Calls, ...]
    prompt: float
    instruction: float = INSTRUCTION * CHARACTERS_A_TOKEN
    answer: float = ANSWER


def expected(options: Any, known: Known) -> Expected:
    """Of a scheme that says nothing itself: a call for an instruction and one for its answer a row."""
    prompt = mean_characters(known.seeds, "instruction") or INSTRUCTION * CHARACTERS_A_TOKEN
    return Expected((Calls("instructions", known.rows, 0.0, INSTRUCTION),), prompt)


def up_to(mean: float, limit: int) -> float:
    """Mean length of texts that are cut at a limit, where their lengths without it are exponentially distributed."""
    return mean * (1 - math.exp(-limit / mean))


def mean_characters(rows: Sequence[Row], *fields: str) -> float:
    """Mean characters of some fields of rows."""
    return sum(len(str(row.get(name) or "")) for row in rows for name in fields) / max(1, len(rows))
