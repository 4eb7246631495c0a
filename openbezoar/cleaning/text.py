"""Per-row cleaning: a text's form is put right before any rule looks at what it says.

Reads a row's ``instruction``, ``context`` and ``response`` (or ``output``), or its ``messages``; writes nothing.
Each cleaner is a pure function of a text and of what was asked; ``CLEANERS`` is the whole
list, in the order in which they are applied, under the names of the recipe's ``clean``.
A marker that the instruction itself has is what the row is about, and stays. To add a
cleaner: a function, a line in ``CLEANERS``, its name in ``recipe.CleanerName``, a text each
that it must and must not change in ``tests/test_cleaning.py``. All take time linear in the
text's length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from openbezoar.dialogue.thoughts import mentions, without_thoughts
from openbezoar.rows.held import is_talk
from openbezoar.rows.records import Row

FIELDS = ("instruction", "context", "input", "response", "output")
ANSWERS = ("response", "output")
SHOWN = 60  # characters either side of a change, in an example of it

_ANSI = re.compile(r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|\][^\x07\x1b]*+(?:\x07|\x1b\\))")
_LINE_ENDS = re.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x9f"  # C0 and C1 but for tab and line feed
    r"\u00ad\u200b\u2060\ufeff"  # soft hyphen, zero-width space, word joiner, byte-order mark
    r"\u202a-\u202e\u2066-\u2069"  # turn the reading direction, so that a text shows as another one
    r"\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # no characters at all
    r"\U000e0000-\U000e007f]"  # tags, in which whole texts can be hidden
)
_MARKS = r"[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_PILE = re.compile(rf"({_MARKS}{{4}}){_MARKS}++")  # more marks on one letter than any language writes

_TOKEN = (
    r"<\|im_start\|>(?:system|user|assistant)?|<\|start_header_id\|>\w*+<\|end_header_id\|>|<\|[a-z_]{1,24}\|>"
    r"|<start_of_turn>(?:user|model)?|<end_of_turn>"
)
_HEADING = r"### ?(?:System|Instruction|Response):|<(?:human|bot)>:|\[/?INST\]|#(?:Given|Rewritten|Created) Prompt#:?"
_MARKER = rf"(?:{_TOKEN}|{_HEADING}|</?s>|<[be]os>|</?example>)"
_ANY = re.compile(_MARKER)
_LEADING = re.compile(rf"\s*+({_MARKER})\s*+")
_TRAILING = re.compile(rf"{_MARKER}\Z")
_LONGEST = 80  # characters of a marker
_NEXT_TURN = re.compile(
    r"<\|(?:endoftext|im_end|eot_id|end)\|>|<end_of_turn>"  # an answer's end, wherever it stands
    rf"|^(?:{_TOKEN}|{_HEADING})",
    re.MULTILINE,
)
_QUOTES = {'"': '"', "“": "”"}
_FENCE = re.compile(r"^[ \t]*+(`{3,}+|~{3,}+)([^\n]*)$", re.MULTILINE)


def line_ends(text: str, instruction: str) -> str:
    """Every kind of line end becomes a line feed."""
    return _LINE_ENDS.sub("\n", text)


def control_characters(text: str, instruction: str) -> str:
    """Terminal sequences, control and invisible characters, lone surrogates, and piles of combining marks go."""
    return _PILE.sub(r"\1", _INVISIBLE.sub("", _ANSI.sub("", text)))


def unicode_form(text: str, instruction: str) -> str:
    """One code for each letter (NFC), so that equal texts are equal to tokenizers and to the duplicate rules."""
    return unicodedata.normalize("NFC", text)


def thoughts(text: str, instruction: str) -> str:
    """Take out what a model thought before it answered; nothing is left of a thought that was cut off."""
    return text if mentions(instruction) else without_thoughts(text)


def run_on(text: str, instruction: str) -> str:
    """Cut an answer where its writer went on with another turn, as models do that never learnt to stop."""
    about = _ANY.findall(instruction)
    begin = _after_markers(text, about)
    cut = next((m.start() for m in _NEXT_TURN.finditer(text, begin) if m.start() > begin and m[0] not in about), None)
    return text if cut is None else text[:cut]


def markers(text: str, instruction: str) -> str:
    """Take prompt formats' and chat templates' markers off both ends."""
    about = _ANY.findall(instruction)
    begin = _after_markers(text, about)
    end = whole = len(text)
    while True:
        bare = end
        while bare > begin and text[bare - 1].isspace():
            bare -= 1
        match = _TRAILING.search(text, max(begin, bare - _LONGEST), bare)
        if not match or match[0] in about:
            return text[begin:end] if begin or end < whole else text
        end = match.start()


def _after_markers(text: str, about: Sequence[str]) -> int:
    """Where a text begins behind its leading markers."""
    begin = 0
    while (match := _LEADING.match(text, begin)) and match[1] not in about:
        begin = match.end()
    return begin


def quotes(text: str, instruction: str) -> str:
    """Take off quotation marks that do nothing but enclose the whole text."""
    bare = text.strip()
    if len(bare) < 2 or _QUOTES.get(bare[0]) != bare[-1] or any(c in bare[1:-1] for c in '"“”'):
        return text
    return bare[1:-1]


def whitespace(text: str, instruction: str) -> str:
    """Blank lines become empty ones, two in a row at most; both ends are trimmed."""
    lines = "\n".join(line if line.strip() else "" for line in text.split("\n"))
    return re.sub(r"\n{4,}", "\n\n\n", lines).strip()


def unclosed_fence(text: str, instruction: str) -> str:
    """Close a block of code that the text leaves open."""
    opened = ""
    for fence, rest in _FENCE.findall(text):
        if not opened:
            opened = "" if fence[0] == "`" and "`" in rest else fence
        elif fence[0] == opened[0] and len(fence) >= len(opened) and not rest.strip():
            opened = ""
    return f"{text.rstrip()}\n{opened}" if opened else text


@dataclass(frozen=True)
class Cleaner:
    """A cleaner and the fields that it is for."""

    clean: Callable[[str, str], str]
    fields: tuple[str, ...] = FIELDS


CLEANERS: dict[str, Cleaner] = {
    "line_ends": Cleaner(line_ends),
    "control_characters": Cleaner(control_characters),
    "unicode_form": Cleaner(unicode_form),
    "thoughts": Cleaner(thoughts, ANSWERS),
    "run_on": Cleaner(run_on, ANSWERS),
    "markers": Cleaner(markers),
    "quotes": Cleaner(quotes, ("instruction",)),
    "whitespace": Cleaner(whitespace),
    "unclosed_fence": Cleaner(unclosed_fence, ANSWERS),
}


@dataclass(frozen=True)
class Change:
    """What a cleaner did to a field: the text around the first place that differs."""

    cleaner: str
    field: str
    before: str
    after: str


def clean_row(row: Mapping[str, object], names: Sequence[str]) -> tuple[Row, list[Change]]:
    """The row with its texts cleaned, and what each cleaner changed; the row given is left alone."""
    cleaned, changes = dict(row), []
    instruction = "\n".join(str(row.get(field) or "") for field in FIELDS if field not in ANSWERS)
    for name, cleaner in CLEANERS.items():
        if name not in names:
            continue
        for field in cleaner.fields:
            before = cleaned.get(field)
            if not isinstance(before, str):
                continue
            after = cleaner.clean(before, instruction if field in ANSWERS else "")
            if after != before:
                cleaned[field] = after
                changes.append(Change(name, field, *_around_change(before, after)))
    if is_talk(row):
        cleaned["messages"], changes = _clean_messages(row["messages"], names)  # type: ignore[arg-type]
    if changes:
        cleaned["cleaned"] = list(dict.fromkeys(c.cleaner for c in changes))
    return cleaned, changes


def _clean_messages(messages: Sequence[Mapping[str, object]], names: Sequence[str]) -> tuple[list[Row], list[Change]]:
    """A conversation's turns cleaned: those of the assistant as answers to what the user says, the others as what is
    asked.
    """
    cleaned, changes = [dict(message) for message in messages], []
    asked = "\n".join(str(message["content"]) for message in messages if message["role"] != "assistant")
    for name, cleaner in CLEANERS.items():
        if name not in names:
            continue
        for number, message in enumerate(cleaned, 1):
            is_answer = message["role"] == "assistant"
            if not {"response" if is_answer else "instruction"} & set(cleaner.fields):
                continue
            before = str(message["content"])
            after = cleaner.clean(before, asked if is_answer else "")
            if after != before:
                message["content"] = after
                changes.append(Change(name, f"message {number}", *_around_change(before, after)))
    return cleaned, changes


def _around_change(before: str, after: str) -> tuple[str, str]:
    place = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    return tuple(text[max(0, place - SHOWN) : place + SHOWN] for text in (before, after))  # type: ignore[return-value]
