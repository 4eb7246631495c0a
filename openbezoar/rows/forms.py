"""The forms that a row of data may have: how each is known, and what it becomes. Takes rows, writes nothing.

``FORMS`` is the table of those that are read, ``UNREAD`` of those that are known and refused by
name, ``BESIDE`` of the fields that belong to a prompt wherever they stand. A form uses such a
field, or ``check_beside`` refuses the row: nothing that was said to a model is left out in
silence. Other fields are notes, which nobody reads. To add a form: a line in ``FORMS``, a
function for its turns, a row of it in ``tests/test_forms.py``, a line in docs/data.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from openbezoar.errors import DataError, RowError, fields_of, named, shown
from openbezoar.rows.records import Example, Pair, Role, Turn

Fields = Mapping[str, Any]

_NOTE = "put what it says into the row's texts, or, to leave it out, add rename: {%s: unused}"
BESIDE: dict[str, str] = {
    "system": _NOTE,
    "system_prompt": "add rename: {%s: system}",
    "system_message": "add rename: {%s: system}",
    "context": _NOTE,
    "input": "add rename: {input: context}",
    **dict.fromkeys(
        ("history", "chat_history", "messages", "conversations", "conversation", "tools", "functions"), _NOTE
    ),
}
"""Fields with a known meaning beside a prompt, and the remedy where a form has no use for one."""

INSTRUCTION, RESPONSE = ("instruction",), ("response", "output")


@dataclass(frozen=True)
class Form:
    """One way to write a row.

    known_by: fields that a row of it has, none of them null. prompt_fields, answer: names under
    which the prompt and the answer to be learnt are looked for. uses: fields of ``BESIDE`` that
    become part of the prompt.
    """

    name: str
    known_by: tuple[str, ...]
    prompt_fields: tuple[str, ...]
    answer: tuple[str, ...]
    uses: frozenset[str]


FORMS = (
    Form("pair", ("chosen", "prompt"), ("prompt",), ("chosen",), frozenset({"system", "context"})),
    Form("pair", ("chosen", "instruction"), INSTRUCTION, ("chosen",), frozenset({"system", "context"})),
    Form("dialogues", ("chosen",), (), ("chosen",), frozenset({"system"})),
    Form("instruction", INSTRUCTION, INSTRUCTION, RESPONSE, frozenset({"system", "context"})),
    Form("task", ("input",), ("input",), ("target",), frozenset({"system", "input"})),
)
UNREAD: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("messages",), "rows of messages", "write each as instruction and response, or as chosen and rejected dialogues"),
    (("conversations",), "ShareGPT's conversations", "write each as instruction and response"),
    (("conversation",), "rows of conversations", "write each as instruction and response"),
    (("prompt", "completion", "label"), "unpaired preferences", "write pairs with prompt, chosen and rejected"),
    (("prompt", "completion"), "prompts with completions", "add rename: {prompt: instruction, completion: response}"),
    (("prompt", "response"), "prompts with responses", "add rename: {prompt: instruction}"),
    (("question", "response"), "questions with responses", "add rename: {question: instruction}"),
    (("question", "answer"), "questions with answers", "add rename: {question: instruction, answer: response}"),
    (("inputs", "targets"), "FLAN's own columns", "add rename: {inputs: input, targets: target}"),
    (("text",), "plain texts", "expected an instruction and its response"),
)


def form_of(row: Fields, where: str) -> Form:
    """A row's form. Raises DataError for a row of none, naming the form where it is a known one that is not read."""
    for form in FORMS:
        if all(row.get(name) is not None for name in form.known_by):
            return form
    for form in FORMS:  # a field of it is there, but null
        if form.known_by[0] in row:
            text_in(row, form.known_by[:1], where)
    check_read(row, where)
    raise DataError(
        f"{where}: no field 'instruction' (with 'response'), 'input' (with 'target') or 'chosen'; it has"
        f" {fields_of(row)}"
    )


def check_read(row: Fields, where: str, renamed: bool = True) -> None:
    """Raises DataError for a row of a form that is known and not read. renamed: so too where other
    names are all that it takes.
    """
    for fields, name, remedy in UNREAD:
        if all(field in row for field in fields) and (renamed or "rename" not in remedy):
            raise DataError(f"{where}: {name} ({', '.join(fields)}) are not read; {remedy}")


# ------------------------------------------------------------------------------ fields


def text_in(row: Fields, names: tuple[str, ...], where: str) -> str:
    """The text in the first field of ``names`` that holds one. Raises DataError saying what is there instead."""
    text = next((row[name] for name in names if isinstance(row.get(name), str)), None)
    if text is not None:
        return str(text)
    present = next(
        (name for name in names if row.get(name) is not None), next((name for name in names if name in row), None)
    )
    if present is None:
        if names[0] in ("instruction", "response", "chosen"):
            check_read(row, where, renamed=names[0] != "chosen")
        others = f" (or {' or '.join(map(repr, names[1:]))})" if len(names) > 1 else ""
        raise DataError(f"{where}: no field '{names[0]}'{others}; it has {fields_of(row)}")
    raise DataError(f"{where}: '{present}' is {kind_of(row[present])}; expected a text: fill it in, or drop the row")


def beside(row: Fields, name: str, where: str) -> str:
    """The text of a field that a row need not have, "" without one. Raises DataError if it holds something else."""
    value = row.get(name)
    if value is None:
        return ""
    return text_in(row, (name,), where)


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, list):
        messages = value and all(isinstance(one, dict) and {"role", "from"} & set(one) for one in value)
        return "a list of messages, which is not read" if messages else "a list"
    if isinstance(value, dict):
        return "an object"
    return str(value).lower() if isinstance(value, bool) else shown(value)


def check_beside(row: Fields, where: str, uses: frozenset[str], *, prompt: str) -> None:
    """Raises DataError for a field of ``BESIDE`` outside of ``uses`` that says something ``prompt`` does not."""
    for name, remedy in BESIDE.items():
        value = row.get(name)
        if name in uses or value is None or value in ([], {}):
            continue
        if isinstance(value, str) and value.strip() in prompt:  # an empty one, or one that stands in the prompt already
            continue
        raise DataError(
            f"{where}: the field '{name}' belongs to the prompt and would be left out; {remedy.replace('%s', name)}"
        )


# ------------------------------------------------------------------------- instructions


def check_instruction(row: Fields, where: str, uses: frozenset[str] = frozenset({"system", "context"})) -> None:
    """Raises DataError for an instruction that is no text or empty, and for fields beside it that would be overlooked.

    uses: the fields of ``BESIDE`` that become part of what is asked.
    """
    if not text_in(row, INSTRUCTION, where).strip():
        raise DataError(f"{where}: the instruction is empty; drop the row or fill it in")
    for name in sorted(uses):
        beside(row, name, where)
    check_beside(row, where, uses, prompt=instruction_text(row))


def instruction_text(row: Fields) -> str:
    """Instruction and context as one text, a blank line between (as in the Evol-Instruct seeds)."""
    return _with_context(str(row["instruction"]), row.get("context") or "")


def asked_text(row: Fields) -> str:
    """All that was asked as one text, for a judge to see: the row's own system message goes before its instruction."""
    system = row.get("system")
    return f"{system}\n\n{instruction_text(row)}" if system else instruction_text(row)


def judged_text(row: Fields, names: tuple[str, ...], where: str) -> str:
    """``asked_text`` of a row that people have judged: its prompt may have other names, and
    ``input`` counts as its context.

    Raises DataError if it has none, or says more than can be shown.
    """
    context = "context" if beside(row, "context", where).strip() or not beside(row, "input", where) else "input"
    fields = {
        "instruction": text_in(row, names, where),
        "context": beside(row, context, where),
        "system": beside(row, "system", where),
    }
    check_beside(row, where, frozenset({"system", context}), prompt=asked_text(fields))
    return asked_text(fields)


def _with_context(instruction: str, context: str) -> str:
    return f"{instruction}\n\n{context}" if context else instruction


# ----------------------------------------------------------------------- what rows become


def to_example(row: Fields, where: str) -> Example:
    """The training example in a row of any form that is read.

    Raises DataError naming ``where`` and the field that is missing, is no text, or would be left out.
    """
    form = form_of(row, where)
    if "chosen" in form.answer:
        pair = to_pair(row, where)
        return Example(pair.id, pair.prompt, pair.chosen)
    prompt = to_prompt(row, where)
    return Example(_id(row, where), prompt, text_in(row, form.answer, where))


def to_prompt(row: Fields, where: str) -> tuple[Turn, ...]:
    """The turns before the answer, in a row of any form that is read; errors as ``to_example``."""
    form = form_of(row, where)
    if not form.prompt_fields or (form.name == "pair" and _whole_dialogues(row)):
        return to_pair(row, where).prompt
    instruction = text_in(row, form.prompt_fields, where)
    if not instruction.strip():
        raise DataError(f"{where}: the instruction is empty; drop the row or fill it in")
    uses = form.uses - {"context"} if is_dialogue(instruction) else form.uses
    whole = _with_context(instruction, beside(row, "context", where) if "context" in uses else "")
    check_beside(row, where, uses, prompt=whole)
    return _under_system(
        row, where, parse_prompt(instruction, where) if is_dialogue(instruction) else (Turn("user", whole),)
    )


def to_pair(row: Fields, where: str) -> Pair:
    """The preference pair in a row: whole dialogues of HH-RLHF's form, or a prompt with the two answers apart.

    A prompt may itself be such a dialogue. Raises DataError if a field is missing, no text, or
    would be left out, RowError if a dialogue is none or the two do not share their prompt.
    """
    chosen, rejected = (text_in(row, (name,), where) for name in ("chosen", "rejected"))
    id_, subset = _id(row, where), str(row.get("subset", ""))
    form = form_of(row, where)
    if form.name == "pair" and not _whole_dialogues(row):
        prompt = to_prompt(row, where)
        tidy: Callable[[str], str] = str.strip if is_dialogue(text_in(row, form.prompt_fields, where)) else str
        return Pair(id_, prompt, tidy(chosen), tidy(rejected), subset)
    for name in ("prompt", "instruction"):
        if name in row and row[name] is None and not _whole_dialogues(row):
            text_in(row, (name,), where)
    if isinstance(row.get("question"), str) and not _whole_dialogues(row):
        raise DataError(f"{where}: a 'question' with its answers apart is not read; add rename: {{question: prompt}}")
    first, second = parse_dialogue(chosen, where), parse_dialogue(rejected, where)
    if first[:-1] != second[:-1]:
        raise RowError(
            f"{where}: chosen and rejected do not share their prompt; they may differ in the last answer only",
            "chosen and rejected have different prompts",
        )
    check_beside(row, where, frozenset({"system"}), prompt=chosen)
    return Pair(id_, _under_system(row, where, first[:-1]), first[-1].content, second[-1].content, subset)


def _id(row: Fields, where: str) -> str:
    return named(row["id"]) if "id" in row else where


def _under_system(row: Fields, where: str, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns under the row's own system message; "" is one too, of no words."""
    return turns if row.get("system") is None else (Turn("system", beside(row, "system", where)), *turns)


# --------------------------------------------------------------------------- dialogues

_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_BEGINS = "\n\nHuman:"


def _whole_dialogues(row: Fields) -> bool:
    """Whether both answers of a pair are whole dialogues, prompt and all, whatever stands in ``prompt``."""
    return all(isinstance(row.get(name), str) and is_dialogue(row[name]) for name in ("chosen", "rejected"))


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
