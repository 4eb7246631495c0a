"""Rows as a filter holds them: an instruction with its response, or a conversation as messages. Takes
rows, writes nothing.

Rows of instructions stay as they are. A row of another form becomes one of these two, with its other
columns as they were, so that cleaning, rules, judges and people meet two forms only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from openbezoar.rows.dialogues import is_dialogue
from openbezoar.rows.forms import to_example
from openbezoar.rows.instructions import asked_text, instruction_text
from openbezoar.rows.known import RESPONSE, fitting
from openbezoar.rows.outgoing import as_messages, columns_beside
from openbezoar.rows.records import Example, Row

HELD = ("answer", "conversation")  # kinds of forms; of pairs a filter would lose one answer


class Held(NamedTuple):
    """A row as it is held, and what was changed to make it, as reasons to count under."""

    row: Row
    notes: tuple[str, ...] = ()


def held(row: Row, where: str) -> Held:
    """A row of any form with one answer or of a conversation; any other as it is, to be refused. Rows
    of one form become rows of one form.

    Raises DataError and RowError as ``to_example`` does.
    """
    form = next(iter(fitting(row)), None)
    if "instruction" in row or form is None or form.kind not in HELD:
        return Held(row)
    example = to_example(row, where)
    asked = next((row[name] for name in form.prompt if row.get(name) is not None), None)
    said = _as_instruction(example, asked) if isinstance(asked, str) else as_messages(example)
    return Held({**columns_beside(row), **said}, example.notes)


def _as_instruction(example: Example, asked: str) -> Row:
    """Instruction and response, under a system message if there is one. asked: the text of the prompt, which
    stays where it is a dialogue.
    """
    *before, question = example.prompt
    system = {"system": before[0].content} if before and before[0].role == "system" else {}
    instruction = asked if is_dialogue(asked) else question.content
    return {**system, "instruction": instruction, "response": example.answer}


def is_talk(row: Mapping[str, Any]) -> bool:
    """Whether a row that is held is a conversation."""
    return isinstance(row.get("messages"), list) and "instruction" not in row


class Exchange(NamedTuple):
    """What was asked in a row, and what was answered, as two texts."""

    asked: str
    answered: str


def exchange_in(row: Mapping[str, Any]) -> Exchange:
    """For rules: of a conversation all that the user says, and all answers that are to be learnt."""
    if not is_talk(row):
        return Exchange(instruction_text(row), _response(row))
    said = [one for one in row["messages"] if one.get("weight") != 0]
    return Exchange(*("\n\n".join(one["content"] for one in said if one["role"] == r) for r in ("user", "assistant")))


def judged_in(row: Mapping[str, Any]) -> Exchange:
    """For a judge: of a conversation the last answer, and all that stands before it, each turn under its role."""
    if not is_talk(row):
        return Exchange(asked_text(row), _response(row))
    *before, last = row["messages"]
    return Exchange(question_text(before), last["content"])


def shown_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """For people: instruction and response as they stand, or all that is said, by the names of the fields."""
    if is_talk(row):
        return {"messages": transcript(row["messages"])}
    return {"instruction": row.get("instruction"), "response": row.get("response", row.get("output"))}


def _response(row: Mapping[str, Any]) -> str:
    return next((row[name] for name in RESPONSE if isinstance(row.get(name), str)), "")


def question_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What was asked as one text, as every judge is shown it: of a single question its words, under the system
    message if there is one, as ``asked_text``; of a conversation each turn under its role.
    """
    if all(one["role"] == "system" for one in messages[:-1]):
        return "\n\n".join(one["content"] for one in messages if one["content"])
    return transcript(messages)


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as one text, each under its role."""
    return "\n\n".join(f"{one['role']}: {one['content']}" for one in messages)
