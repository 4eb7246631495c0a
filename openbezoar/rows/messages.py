"""Lists of messages as turns, and what is made of their defects. Takes values of rows, gives turns.

Read are messages of ``role`` and ``content`` (a text, or a list of parts that are texts), ShareGPT's
``from`` and ``value``, and plain lists of texts, user and assistant in turn. What no template
renders (tools, images, roles of other kinds) raises ``Unusable``. What real data sets have and
can be put right is put right under a note; what cannot raises RowError. A list that is none, or
holds something else than messages, raises DataError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from openbezoar.errors import DataError, RowError, fields_of, named
from openbezoar.machine.textfiles import loads
from openbezoar.rows.fields import kind_of
from openbezoar.rows.records import Role, Turn

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "gpt4", "gpt-4", "bing", "bard", "claude", "model", "bot", "chatbot", "ai"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Whose turn a message is, by the names that data sets give speakers, in small letters."""

TOOL_ROLES = frozenset(
    ("tool", "function", "ipython", "function_call", "function_response", "tool_call", "tool_response", "observation")
)
_CALLS = ("tool_calls", "function_call")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")

TOOLS = "tool calls"
PARTS = "images, audio or other parts that are no texts"
STRANGER = "a role that no template renders"
LATE_SYSTEM = "a system message after the first turn"
NO_TEXT = "a message without a text"
NO_MESSAGES = "an empty list of messages"
NO_ANSWER = "a conversation without an answer to learn"
NO_QUESTION = "an answer without a question"
NOT_AN_END = "not a dialogue that ends where an answer begins"

JOINED = "messages of one speaker joined"
OPENING = "answer before the first question left out"
REST = "turns after the last answer left out"
UNTHOUGHT = "thoughts beside an answer left out"


class Unusable(RowError):
    """A row with something that no template renders: tools, images, roles of other kinds."""


@dataclass(frozen=True)
class Conversation:
    """Turns in which no two that follow one another are of one speaker.

    learnt: places of the answers that are to be learnt. notes: what was changed.
    """

    turns: tuple[Turn, ...]
    learnt: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def repeats(self, value: Any) -> bool:
        """Whether a text, or every text of a list of messages, stands among the turns, perhaps with
        its context; or the text is a transcript of them all.
        """
        said = [text.strip() for text in texts_in(value)]
        turns = [turn.content.strip() for turn in self.turns]
        known = {*turns, *(turn.partition("\n\n")[0] for turn in turns), ""}
        return set(said) <= known or (isinstance(value, str) and all(turn in value for turn in turns))

    @property
    def text(self) -> str:
        """All that is said, for comparisons."""
        return "\n\n".join(turn.content for turn in self.turns)


@dataclass(frozen=True)
class Utterance:
    """One message. thought: something was thought beside it, which is left out."""

    turn: Turn
    learnt: bool = False
    thought: bool = False


# ---------------------------------------------------------------------------- messages


def is_list(value: Any) -> bool:
    """Whether a value that may be a text is to be read as messages: as a list of objects, or as one message."""
    if isinstance(value, Mapping):
        return bool({"role", "from"} & set(value))
    return isinstance(value, list) and (not value or any(isinstance(one, Mapping) for one in value))


def read_messages(value: Any, name: str, where: str) -> Conversation:
    """The turns of a row's list of messages, or of one message, which is in the row's field ``name``."""
    messages = [value] if isinstance(value, Mapping) and is_list(value) else unpacked(value)
    if not isinstance(messages, list):
        raise DataError(f"{where}: '{name}' is {kind_of(value)}; expected a list of messages: mend it, or drop the row")
    if not messages:
        raise RowError(f"{where}: '{name}' is an empty list; expected messages", NO_MESSAGES)
    if all(isinstance(text, str) for text in messages):
        messages = [
            {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(messages)
        ]
    return joined(_said(one, f"{where}: '{name}', message {n}") for n, one in enumerate(messages, 1))


def unpacked(value: Any) -> Any:
    """The list in a text that is one in JSON, as tables without lists hold it; any other value as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        return loads(value)[0]
    except (ValueError, RecursionError):
        return value


def joined(messages: Iterable[Utterance]) -> Conversation:
    """Messages as turns; those of one speaker that follow one another become one, learnt if all of them are."""
    turns: list[Turn] = []
    learnt: list[bool] = []
    notes: dict[str, None] = {}
    for message in messages:
        role, content = message.turn.role, message.turn.content
        if message.thought:
            notes[UNTHOUGHT] = None
        if turns and turns[-1].role == role:
            notes[JOINED] = None
            turns[-1] = Turn(role, f"{turns[-1].content}\n\n{content}")
            learnt[-1] = learnt[-1] and message.learnt
        else:
            turns.append(Turn(role, content))
            learnt.append(message.learnt)
    return Conversation(tuple(turns), frozenset(place for place, yes in enumerate(learnt) if yes), tuple(notes))


def _said(message: Any, where: str) -> Utterance:
    """One message. where: the row, its field and the message's number."""
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {kind_of(message)}; expected an object with role and content")
    role = _role(message, where)
    if any(message.get(name) for name in _CALLS):
        raise Unusable(f"{where} calls tools, which no template here renders; drop the row", TOOLS)
    text = _content(message, where)
    if role != "assistant":
        if role == "user" and not text.strip():
            raise RowError(f"{where} is empty; fill it in, or drop the row", NO_TEXT)
        return Utterance(Turn(role, text))
    weight = message.get("weight")
    if weight is not None and weight not in (0, 1):
        raise DataError(f"{where}: 'weight' is {kind_of(weight)}; expected 0 (not learnt) or 1")
    thought = any(isinstance(message.get(name), str) and message[name].strip() for name in _THOUGHTS)
    return Utterance(Turn(role, text), weight != 0, thought)


def _field(message: Mapping[str, Any], names: tuple[str, str]) -> str:
    """The name under which a message has one of its two parts, null or not; "" if it has neither."""
    return next((name for name in names if message.get(name) is not None), next((n for n in names if n in message), ""))


def _role(message: Mapping[str, Any], where: str) -> Role:
    name = _field(message, ("role", "from"))
    given = message.get(name)
    if not isinstance(given, str):
        what = f"its '{name}' is {kind_of(given)}" if name else f"it has {fields_of(message)}"
        raise DataError(f"{where} does not say who speaks ({what}); expected a 'role' such as 'user' (or a 'from')")
    role = ROLES.get(given.strip().lower())
    if role is None:
        reason = TOOLS if given.strip().lower() in TOOL_ROLES else STRANGER
        raise Unusable(f"{where} is of the role '{named(given)}', which no template here renders; drop the row", reason)
    return role


def _content(message: Mapping[str, Any], where: str) -> str:
    name = _field(message, ("content", "value"))
    if not name:
        raise DataError(f"{where} has no 'content' (or 'value'); it has {fields_of(message)}")
    content = message[name]
    if content is None:
        raise RowError(f"{where}: its '{name}' is null; fill it in, or drop the row", NO_TEXT)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where}: its '{name}' is {kind_of(content)}; expected a text, or a list of parts")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    """The text of one part of a content."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise DataError(f"{where}: a part of its content is {kind_of(part)}; expected an object with type and text")
    if part.get("type", "text") not in _TEXT_PARTS:
        raise Unusable(f"{where} has a part of the type '{named(part['type'])}', which is no text; drop the row", PARTS)
    if not isinstance(part.get("text"), str):
        raise DataError(f"{where}: the text of a part is {kind_of(part.get('text'))}; expected a text")
    return str(part["text"])


# ------------------------------------------------------------------------- conversations


def opened(talk: Conversation, where: str) -> Conversation:
    """The talk from its first question on, under its system message. Raises RowError where there is
    no question, or a system message stands further on.
    """
    first = 1 if talk.turns[0].role == "system" else 0
    if any(turn.role == "system" for turn in talk.turns[1:]):
        raise RowError(f"{where}: a system message stands after the first turn; put it first", LATE_SYSTEM)
    if len(talk.turns) == first or (talk.turns[first].role == "assistant" and len(talk.turns) == first + 1):
        raise RowError(f"{where}: nothing is asked; expected a turn of the user", NO_QUESTION)
    if talk.turns[first].role == "user":
        return talk
    return Conversation(
        (*talk.turns[:first], *talk.turns[first + 1 :]),
        frozenset(place - 1 for place in talk.learnt if place > first),
        (*talk.notes, OPENING),
    )


def last_learnt(talk: Conversation, where: str) -> Conversation:
    """The talk up to the last answer that says something and is to be learnt. Raises RowError if there is none."""
    places = [place for place in talk.learnt if talk.turns[place].content.strip()]
    if not places:
        raise RowError(f"{where}: the conversation has no answer that is to be learnt", NO_ANSWER)
    end = max(places) + 1
    notes = talk.notes if end == len(talk.turns) else (*talk.notes, REST)
    return Conversation(talk.turns[:end], frozenset(place for place in talk.learnt if place < end), notes)


def ends_with_question(talk: Conversation, where: str) -> Conversation:
    """The talk, which ends with a turn of the user. Raises RowError if it does not."""
    if talk.turns[-1].role != "user":
        raise RowError(f"{where}: the prompt does not end with a turn of the user", NOT_AN_END)
    return talk


def after(prompt: Conversation, answers: Conversation) -> Conversation:
    """A prompt and what follows it as one talk, of which the answers that follow are learnt."""
    return Conversation(
        (*prompt.turns, *answers.turns),
        frozenset(place + len(prompt.turns) for place in answers.learnt),
        tuple(dict.fromkeys((*prompt.notes, *answers.notes))),
    )


def texts_in(value: Any) -> Iterator[str]:
    """The texts of a list of messages, whatever else it holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from texts_in(value.get(_field(value, ("content", "value")) or "text"))
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)
