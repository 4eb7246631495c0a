"""HH-RLHF's text form of a dialogue: "\\n\\nHuman: …\\n\\nAssistant: …". Takes text, gives turns."""

from __future__ import annotations

import re

from openbezoar.errors import RowError
from openbezoar.rows.records import Role, Turn

_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_BEGINS = "\n\nHuman:"


def is_dialogue(prompt: str) -> bool:
    """Whether a text is a dialogue of HH-RLHF's form, with its markers in it."""
    body = "\n\n" + prompt.strip("\n")
    answers = "\n\nAssistant:" in body
    return prompt.startswith(_BEGINS) or (
        answers and (body.startswith(_BEGINS) or (_BEGINS in body and body.rstrip().endswith("\n\nAssistant:")))
    )


def parse_dialogue(text: str, where: str) -> tuple[Turn, ...]:
    """HH-RLHF's "\\n\\nHuman: …\\n\\nAssistant: …" as turns that alternate and end with the assistant's.

    Consecutive turns of one speaker are joined by a blank line. Raises RowError for any other text.
    """
    parts = _speeches(text)
    if parts is None or len(parts) < 2 or parts[-1][0] != "Assistant":
        raise RowError(
            f"{where}: not a dialogue that begins with '\\n\\nHuman:' and ends with an '\\n\\nAssistant:' turn",
            "not a dialogue that ends with an answer",
        )
    return _turns(parts)


def parse_prompt(text: str, where: str) -> tuple[Turn, ...]:
    """A dialogue whose answers are apart, as turns that end with the user's: "\\n\\nHuman:
    …\\n\\nAssistant:". Raises RowError for any other text.
    """
    parts = _speeches(text)
    if parts and parts[-1][0] == "Assistant" and not parts[-1][1].strip():
        parts.pop()
    if not parts or parts[-1][0] != "Human":
        raise RowError(
            f"{where}: the prompt is not a dialogue that begins with '\\n\\nHuman:' and ends with an empty"
            " '\\n\\nAssistant:' turn",
            "not a dialogue that ends where an answer begins",
        )
    return _turns(parts)


def _speeches(text: str) -> list[tuple[str, str]] | None:
    """(speaker, what was said) in order; None unless the text begins with what a human said."""
    parts = _SPEAKER.split(text if text.startswith("\n\n") else "\n\n" + text.lstrip("\n"))
    if parts[0].strip() or len(parts) < 3 or parts[1] != "Human":
        return None
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _turns(parts: list[tuple[str, str]]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for speaker, content in parts:
        role: Role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, turns[-1].content + "\n\n" + content.strip())
        else:
            turns.append(Turn(role, content.strip()))
    return tuple(turns)
