"""Rows as other trainers read them: lists of messages, and TRL's preference forms. Takes rows, writes nothing.

``messages`` is the chat form of most trainers. An assistant turn that is not to be learnt has
``weight: 0``, as in OpenAI's fine-tuning files. ``preference`` has a prompt and two answers, and
``unpaired`` one answer with a label, all as lists of messages (huggingface.co/docs/trl,
"Dataset formats and types"). Every form is one that ``forms`` reads back as the same record. A row's
other columns, such as id and licence, go with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from openbezoar.rows.forms import to_example, to_pair, to_unpaired, unpaired_of
from openbezoar.rows.known import BESIDE, FORMS, form_of
from openbezoar.rows.records import Example, Pair, Row, Turn, Unpaired

MESSAGES = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion"),
}
"""The forms, each with its columns that are lists of messages."""

_TEXTS = frozenset(
    ["rejected", *BESIDE, *(name for form in FORMS for name in (*form.known_by, *form.prompt, *form.answer))]
) - {"label"}
"""Fields that say what a row means, which its other columns are told from."""


class Rewritten(NamedTuple):
    """What a row became: one row, or of a pair two unpaired ones; and what was changed, as reasons to count under."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def as_messages(example: Example) -> Row:
    """{messages: [{role, content}]}; answers that are not to be learnt have ``weight: 0``."""
    learnt = {*example.earlier, len(example.prompt)}
    turns = (*example.prompt, Turn("assistant", example.answer))
    return {
        "messages": [
            {**turn.as_dict(), **({"weight": 0} if turn.role == "assistant" and place not in learnt else {})}
            for place, turn in enumerate(turns)
        ]
    }


def as_preference(pair: Pair) -> Row:
    """{prompt, chosen, rejected}, each a list of messages."""
    return {"prompt": _prompt(pair.prompt), "chosen": _answer(pair.chosen), "rejected": _answer(pair.rejected)}


def as_unpaired(one: Unpaired) -> Row:
    """{prompt, completion, label}, the first two lists of messages; label: true if the answer was liked."""
    return {"prompt": _prompt(one.prompt), "completion": _answer(one.answer), "label": one.liked}


def _prompt(turns: tuple[Turn, ...]) -> list[dict[str, str]]:
    return [turn.as_dict() for turn in turns]


def _answer(text: str) -> list[dict[str, str]]:
    return [Turn("assistant", text).as_dict()]


def columns_beside(row: Mapping[str, Any]) -> Row:
    """The columns of a row that are no part of what is said in it, such as id and licence."""
    return {name: value for name, value in row.items() if name not in _TEXTS}


def rewritten(row: Mapping[str, Any], form: str, where: str) -> Rewritten:
    """A row of any form that is read, in one of ``MESSAGES``; a pair as unpaired becomes two rows.

    Raises DataError and RowError as ``to_example``, ``to_pair`` and ``to_unpaired`` do.
    """
    rest = columns_beside(row)
    if form == "messages":
        example = to_example(row, where)
        return Rewritten(({**rest, **as_messages(example)},), example.notes)
    if form == "unpaired" and form_of(row, where).kind == "unpaired":
        one = to_unpaired(row, where)
        return Rewritten(({**rest, **as_unpaired(one)},), one.notes)
    pair = to_pair(row, where)
    if form == "preference":
        return Rewritten(({**rest, **as_preference(pair)},), pair.notes)
    return Rewritten(tuple({**rest, **as_unpaired(one)} for one in unpaired_of(pair)), pair.notes)
