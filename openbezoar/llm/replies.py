"""The one reading of what a server sends for an answer. Bytes in, a Completion or Malformed out;
reads and writes nothing.

Nothing of a reply is used before its type is known: what does not fit is malformed, and the
call is sent again. Two things are put right instead, since the text itself is there and may
be paid for: halves of surrogate pairs, which no file can hold, become U+FFFD; and a count of
tokens that cannot be true of the texts, on which budgets depend, is estimated from them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from openbezoar.llm import Call, Completion
from openbezoar.llm.choices import Token, weigh
from openbezoar.rows.lengths import MOST_CHARACTERS, RESERVED_CHARACTERS

TURN_TOKENS = 8  # a chat template's own, a turn
CHOICE_TOKENS = 24  # that a server may write before its choice
# tokens that a server may put around a prompt without being asked: its own system message, its
# template
OVERHEAD = 16_384
ESTIMATED = "tokens that the server cannot have counted right, estimated"
HALVES = "half characters replaced"
MISSING = "choices that are not among the likeliest tokens that it tells, taken for impossible"
UNSEEN = "choices missing, and more than 1 % of the probability with tokens that it does not tell"
MUCH = 0.01  # of probability
_HALF = re.compile("[\ud800-\udfff]")

THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking", "reasoning_text", "summary_text")
TEXT_PARTS = ("text", "output_text", "refusal")


class Malformed(Exception):
    """A reply that is not the API's."""


# ------------------------------------------------------------------------------ the types


class _Told(BaseModel):
    """A part of a reply. Types are not converted; other keys are the server's affair."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=True)


class _ContentPart(_Told):
    type: str
    text: str | None = None
    refusal: str | None = None
    thinking: str | list[_ContentPart] | None = None
    reasoning: str | list[_ContentPart] | None = None
    summary: str | list[_ContentPart] | None = None


class _Message(_Told):
    content: str | list[_ContentPart] | None = None
    refusal: str | None = None
    tool_calls: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(_Told):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None
    logprobs: Any = None
    error: Any = None


class _Usage(_Told):
    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None


class _Answer(_Told):
    choices: list[Any]
    usage: _Usage | None = None


class _Likely(_Told):
    token: str
    logprob: float | None = None


class _Written(_Likely):
    top_logprobs: list[_Likely] | None = None


class _ChatLogprobs(_Told):
    content: list[_Written] | None = None


class _RawLogprobs(_Told):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


Kind = TypeVar("Kind", bound=_Told)


def fitting(kind: type[Kind], value: Any, what: str) -> Kind:
    """A value as a part of a reply. Raises Malformed, which says where it does not fit."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, (what, *first["loc"])))
        raise Malformed(f"{place[:80]}: {first['msg'][:120]}") from None
    except (OverflowError, RecursionError, ValueError):
        raise Malformed(f"{what}: numbers or nesting beyond all bounds") from None


def parsed(body: bytes) -> Any:
    """The JSON value in a body. Raises Malformed."""
    if not body.strip():
        raise Malformed("an empty reply")
    try:
        return json.loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Malformed("bytes that are no UTF-8") from None
    except (ValueError, RecursionError):
        start = " ".join(body[:60].decode(errors="replace").split())
        raise Malformed(f"no JSON but '{start}'; is the address the API's base, such as http://HOST/v1?") from None


# ---------------------------------------------------------------------------- the reading


def largest(call: Call, request: bytes, likeliest: int) -> int:
    """Bytes that an answer to a call may have.

    A token is at most 128 characters long in the vocabularies in use, six bytes each where
    all are escaped, and may come twice (thoughts under two names); each of its likeliest is
    one more. Servers may send the request back.
    """
    per_token = 2048 + (1024 * likeliest if call.sampling.logprobs or call.kind == "choices" else 0)
    return (1 << 18) + 8 * len(request) + asked_tokens(call) * per_token


def read(value: Any, call: Call, prefix: str) -> tuple[Completion, bool]:
    """The answer in a reply, and whether it tells anything of its tokens where choices are to be weighed.

    prefix: of the answer, that the choices are looked up after. Raises Malformed.
    """
    answer = fitting(_Answer, value, "reply")
    if not answer.choices:
        raise Malformed("a reply without 'choices'; is the address the API's base, such as http://HOST/v1?")
    choice = fitting(_Choice, answer.choices[0], "choices.0")
    if choice.error is not None or choice.finish_reason == "error":
        raise Malformed("choices.0: an error in place of an answer")
    text, thoughts = _texts(choice)
    (text, halves), (thoughts, more) = mended(text), mended(thoughts)
    tokens = tokens_of(choice.logprobs) if call.sampling.logprobs or call.kind == "choices" else []
    logprobs = tuple(token.logprob for token in tokens) or None
    tells, missing = True, list[str]()
    if call.kind == "choices":
        tells = not text or any(token.likeliest for token in tokens)
        weighed, unseen = weigh(tokens, prefix, call.choices)
        logprobs = tuple(weighed)
        seen = sum(p > -math.inf for p in weighed)  # none: the row is unscored, and counted as that
        missing = [MISSING, *([UNSEEN] if unseen > MUCH else [])] if 0 < seen < len(weighed) else []
    read_, written, estimated = _counted(answer.usage, call, text + thoughts)
    notes = (*([HALVES] if halves + more else []), *([ESTIMATED] if estimated else []), *missing)
    finish: Literal["stop", "length", "error"] = "stop"
    if choice.finish_reason in ("length", "max_tokens", "model_length"):
        finish = "length"
    elif choice.finish_reason in ("content_filter", "safety"):
        finish = "error"
    refused = "content" if finish == "error" else ""
    return Completion(text, finish, read_, written, logprobs, thoughts=thoughts, refused=refused, notes=notes), tells


def _texts(choice: _Choice) -> tuple[str, str]:
    """What a choice says, and what was thought before it. A choice that holds neither, nor says why, is no answer."""
    message = choice.message
    if message is None:
        if "text" not in choice.model_fields_set or (choice.text is None and choice.finish_reason is None):
            raise Malformed("choices.0: neither a message nor a text")
        return choice.text or "", ""
    answer, thought = _parts(message.content, "choices.0.message.content")
    thought = thought or next(
        (text for value in (message.reasoning_content, message.reasoning) if (text := _reasoning(value))), ""
    )
    if (
        not (answer or thought)
        and not message.refusal
        and (choice.finish_reason is None or not message.model_fields_set & {"content", "tool_calls"})
    ):
        raise Malformed("choices.0.message: no content")
    return answer or message.refusal or "", thought


def _parts(content: str | Sequence[_ContentPart] | None, where: str) -> tuple[str, str]:
    """The text of a content, and the thoughts that stand beside it in parts of their own."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not content:
        raise Malformed(f"{where}: a list of no parts")
    texts, thought = [], []
    for part in content:
        if part.type in TEXT_PARTS and (text := part.text if part.type != "refusal" else part.refusal) is not None:
            texts.append(text)
        elif part.type in THOUGHT_PARTS:
            thought += [
                _reasoning(value)
                for value in (part.thinking, part.reasoning, part.summary, part.text)
                if value is not None
            ]
        else:
            raise Malformed(f"{where}: a part of type '{part.type[:40]}' that holds no text")
    return "".join(texts), "\n\n".join(text for text in thought if text)


def _reasoning(value: Any) -> str:
    """Thoughts in whatever form they come; only texts are taken."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    return "".join(text for part in value if isinstance(text := _text_of(part), str))


def _text_of(part: Any) -> Any:
    if isinstance(part, _ContentPart):
        return part.text
    return part.get("text") if isinstance(part, dict) else part


def mended(text: str) -> tuple[str, int]:
    """A text whose halves of surrogate pairs are U+FFFD, and how many they were."""
    return _HALF.subn("\ufffd", text) if not text.isascii() else (text, 0)


# ----------------------------------------------------------------------------- the counts


def asked_tokens(call: Call) -> int:
    """Most tokens that a call's answer should have."""
    return CHOICE_TOKENS if call.kind == "choices" else call.sampling.max_new_tokens


def prompt_tokens(call: Call) -> int:
    """Tokens of a call's prompt by its characters, for where nobody has counted them."""
    texts = _prompts(call)
    return math.ceil(sum(map(len, texts)) / RESERVED_CHARACTERS) + TURN_TOKENS * len(texts)


def prompt_characters(call: Call) -> int:
    """Characters of a call's prompt, runs of white space as one."""
    return sum(len(" ".join(text.split())) for text in _prompts(call))


def _prompts(call: Call) -> list[str]:
    return [call.prompt] if isinstance(call.prompt, str) else [turn.content for turn in call.prompt]


def _counted(usage: _Usage | None, call: Call, text: str) -> tuple[int, int, bool]:
    """Tokens read and written, and whether the server's numbers were wrong. Those that it does not tell are estimated.

    A token holds at least a byte of its text, so a text has no more tokens than bytes. What a
    model wrote may be hidden, so there the tokens asked for are allowed too.
    """
    counts = usage or _Usage()
    prompt = "".join(_prompts(call))
    tokens_in, wrong = _believed(
        counts.prompt_tokens, prompt, len(prompt.encode(errors="replace")) + OVERHEAD, prompt_tokens(call)
    )
    most = 2 * max(asked_tokens(call), len(text.encode())) + TURN_TOKENS
    tokens_out, wrong_too = _believed(counts.completion_tokens, text, most, math.ceil(len(text) / RESERVED_CHARACTERS))
    return tokens_in, tokens_out, wrong or wrong_too


def _believed(count: float | None, text: str, most: int, estimate: int) -> tuple[int, bool]:
    if count is None:
        return estimate, False
    least = math.ceil(len(" ".join(text.split())) / MOST_CHARACTERS)
    if least <= count <= most and count == int(count):  # false for NaN, before int() sees it
        return int(count), False
    return estimate, True


# ----------------------------------------------------------------------- log-probabilities


def tokens_of(value: Any) -> list[Token]:
    """The tokens of a choice's ``logprobs`` in either of the API's forms, chat or raw; empty if it
    tells nothing of them.

    A likely token without a number is an impossible one, which some servers cannot write otherwise.
    """
    if value is None:
        return []
    content = fitting(_ChatLogprobs, value, "logprobs").content
    if content:
        return [_token(t.token, t.logprob, {a.token: a.logprob for a in t.top_logprobs or []}) for t in content]
    raw = fitting(_RawLogprobs, value, "logprobs")
    texts = raw.tokens or []
    logprobs, likeliest = raw.token_logprobs or [], raw.top_logprobs or [None] * len(texts)
    if not len(texts) == len(logprobs) == len(likeliest):
        raise Malformed("logprobs: lists of different lengths")
    return [_token(t, p, dict(top or {})) for t, p, top in zip(texts, logprobs, likeliest, strict=True)]


def _token(text: str, logprob: float | None, likeliest: dict[str, float | None]) -> Token:
    finite = {token: p for token, p in likeliest.items() if p is not None and p != -math.inf}
    for p in (logprob, *finite.values()):
        # Rounding may leave a little more than certainty.
        if p is None or not p <= 0.01 or p == -math.inf:
            raise Malformed("logprobs: a token that was written without a probability, or one above 1")
    assert logprob is not None
    return Token(text, min(logprob, 0.0), {token: min(p, 0.0) for token, p in finite.items()})
