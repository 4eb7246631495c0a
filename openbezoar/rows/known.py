"""The forms that a row of data may have, as a table: how each is known, what it is used by, an example.
Takes rows, writes nothing.

``FORMS`` is the table, from which that of docs/data.md is made; ``BESIDE`` has the fields that
belong to a prompt wherever they stand. What a row of a form becomes is read by ``forms``. To add
a form: a line here, a branch there for its turns, and its example is a row of
``tests/test_forms.py`` at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from openbezoar.errors import DataError, fields_of

Fields = Mapping[str, Any]
Kind = Literal["answer", "conversation", "pair", "unpaired"]

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

SYSTEM = ("system", "system_prompt", "system_message")
CONTEXT = ("context", "input")
INSTRUCTION, RESPONSE = ("instruction",), ("response", "output")

_ANY_SYSTEM = frozenset(SYSTEM)
_CONTEXT = _ANY_SYSTEM | frozenset(CONTEXT)
_TRAINED = ("`sft`", "held-out losses", "`filter`")
_AS_PAIRS = ("`dpo`", "`kto`", "`sft` on the chosen answers")


@dataclass(frozen=True)
class Form:
    """One way to write a row.

    kind: what it holds. known_by: fields that a row of it has, none of them null. prompt, answer:
    names under which the prompt and the answer to be learnt are looked for. uses: fields of
    ``BESIDE`` that become part of the prompt. used_by: of a recipe's steps and their settings.
    about: what its fields may be, for docs/data.md. example: a row of it. instead: what to do
    where rows of instructions alone are read.
    """

    name: str
    kind: Kind
    known_by: tuple[str, ...]
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    uses: frozenset[str]
    used_by: tuple[str, ...]
    about: str
    example: Fields
    instead: str = "write each as instruction and response"

    def answered(self, row: Fields) -> str:
        """The field that holds a row's answer, of a conversation a list that is not empty; "" if none does."""
        holds = _is_list if self.kind == "conversation" else _is_there
        return next((name for name in self.answer if holds(row.get(name))), "")


def _is_there(value: Any) -> bool:
    return value is not None


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


_SEA = [{"role": "user", "content": "Name a sea."}]
_BALTIC = [{"role": "assistant", "content": "The Baltic."}]
_NO = [{"role": "assistant", "content": "No."}]
_LIST = (
    "a list of messages, each `role` and `content` (or ShareGPT's `from` and `value`), or texts of "
    "user and assistant in turn; `system` if there is one"
)

FORMS = (
    Form(
        "ranked answers",
        "pair",
        ("response1", "response2", "overall_preference"),
        ("context", "prompt"),
        (),
        _ANY_SYSTEM | {"context"},
        _AS_PAIRS,
        (
            "HelpSteer3: `context` (messages or a text) with two answers; below 0 the first is preferred, "
            "above 0 the second, 0 is no preference and left out"
        ),
        {"context": _SEA, "response1": "The Baltic.", "response2": "No.", "overall_preference": -2},
    ),
    Form(
        "pair",
        "pair",
        ("chosen", "prompt"),
        ("prompt",),
        ("chosen",),
        _CONTEXT,
        _AS_PAIRS,
        (
            "a prompt (a text, HH-RLHF's dialogue that ends with an empty turn, or messages) and two "
            "answers (texts, last messages, or whole lists of messages)"
        ),
        {"prompt": "Name a sea.", "chosen": "The Baltic.", "rejected": "No."},
    ),
    Form(
        "pair of an instruction",
        "pair",
        ("chosen", "instruction"),
        INSTRUCTION,
        ("chosen",),
        _CONTEXT,
        _AS_PAIRS,
        "the same with an instruction; `context` (or `input`) and `system` if there are any",
        {"instruction": "Name a sea.", "context": "Of Europe.", "chosen": "The Baltic.", "rejected": "No."},
    ),
    Form(
        "pair of a question",
        "pair",
        ("chosen", "question"),
        ("question",),
        ("chosen",),
        _CONTEXT,
        _AS_PAIRS,
        "as in orca_dpo_pairs; `system` if there is one",
        {"system": "Be brief.", "question": "Name a sea.", "chosen": "The Baltic.", "rejected": "No."},
    ),
    Form(
        "pair of an input",
        "pair",
        ("chosen", "input"),
        ("input",),
        ("chosen",),
        _ANY_SYSTEM | {"input"},
        _AS_PAIRS,
        "as in Argilla's sets; `system` if there is one",
        {"system": "Be brief.", "input": "Name a sea.", "chosen": "The Baltic.", "rejected": "No."},
    ),
    Form(
        "whole pair",
        "pair",
        ("chosen",),
        (),
        ("chosen",),
        _ANY_SYSTEM,
        _AS_PAIRS,
        (
            "two whole conversations that differ in the last answer: lists of messages, or HH-RLHF's text, "
            '"\\n\\nHuman: …\\n\\nAssistant: …"'
        ),
        {"chosen": [*_SEA, *_BALTIC], "rejected": [*_SEA, *_NO]},
    ),
    Form(
        "unpaired preference",
        "unpaired",
        ("prompt", "completion", "label"),
        ("prompt",),
        ("completion",),
        _CONTEXT - {"input"},
        ("`kto`", "`sft` on the liked answers"),
        "`label`: true or false, or 1 or 0; prompt and completion as texts or messages",
        {"prompt": "Name a sea.", "completion": "The Baltic.", "label": True},
    ),
    *(
        Form(
            name,
            "conversation",
            (field,),
            (field,),
            (field,),
            _ANY_SYSTEM,
            _TRAINED,
            about,
            {field: example},
        )
        for name, field, about, example in (
            ("messages", "messages", _LIST, [*_SEA, *_BALTIC]),
            (
                "conversations",
                "conversations",
                _LIST,
                [{"from": "human", "value": "Name a sea."}, {"from": "gpt", "value": "The Baltic."}],
            ),
            ("conversation", "conversation", _LIST, ["Name a sea.", "The Baltic."]),
        )
    ),
    Form(
        "instruction",
        "answer",
        INSTRUCTION,
        INSTRUCTION,
        RESPONSE,
        _CONTEXT,
        (*_TRAINED, "seeds of `lamini` and `evol_instruct` (no answer needed, no `system` used)"),
        "`context` (or Alpaca's `input`) and `system` if there are any",
        {"instruction": "Name a sea.", "input": "Of Europe.", "output": "The Baltic."},
    ),
    Form(
        "prompt and completion",
        "answer",
        ("prompt",),
        ("prompt",),
        ("completion", "response"),
        _CONTEXT - {"input"},
        _TRAINED,
        "each a text; prompt and completion also lists of messages; `context` and `system` if there are any",
        {"prompt": _SEA, "completion": _BALTIC},
        "add rename: {prompt: instruction, completion: response}",
    ),
    Form(
        "question and answer",
        "answer",
        ("question",),
        ("question",),
        ("answer", "response"),
        _CONTEXT - {"input"},
        _TRAINED,
        "as in OpenOrca; `context` and `system` (or `system_prompt`) if there are any",
        {"system_prompt": "Be brief.", "question": "Name a sea.", "response": "The Baltic."},
        "add rename: {question: instruction, answer: response}",
    ),
    Form(
        "task",
        "answer",
        ("input",),
        ("input",),
        ("target",),
        _ANY_SYSTEM | {"input"},
        (*_TRAINED, "seeds of `orca`"),
        (
            "`system` if there is one; as a seed also `task` and `submix` (`cot`, `niv2`, `t0`, "
            "`flan2021`), and `multiple_choice` and FLAN's `template_type` (`fs_…` is few-shot and left "
            "out) if known"
        ),
        {"input": "Name a sea.", "target": "The Baltic."},
    ),
    Form(
        "FLAN's task",
        "answer",
        ("inputs",),
        ("inputs",),
        ("targets",),
        _ANY_SYSTEM,
        _TRAINED,
        "FLAN's own columns",
        {"inputs": "Name a sea.", "targets": "The Baltic."},
        "add rename: {inputs: input, targets: target}",
    ),
)


def page_table() -> Iterator[str]:
    """The table in Markdown, for docs/data.md."""
    yield "| rows | fields | what they are | an example | used by |\n| --- | --- | --- | --- | --- |"
    for form in FORMS:
        answers = " or ".join(f"`{name}`" for name in form.answer if name not in form.known_by)
        rejected = ["`rejected`"] if "chosen" in form.known_by else []
        names = ", ".join(filter(None, [*(f"`{name}`" for name in form.known_by), *rejected, answers]))
        example = json.dumps(form.example, ensure_ascii=False).replace("|", "\\|")
        yield f"| {form.name} | {names} | {form.about} | `{example}` | {', '.join(form.used_by)} |"


_NAMES = tuple(dict.fromkeys(name for form in FORMS for name in (*form.known_by, *form.answer)))
_LISTS = tuple(form.answer[0] for form in FORMS if form.kind == "conversation")


def fitting(row: Fields) -> Sequence[Form]:
    """The forms that a row's fields fit, first those that it has an answer of."""
    there = tuple(name for name in _NAMES if row.get(name) is not None)
    empty = tuple(name for name in _LISTS if name in there and not _is_list(row[name]))
    return _fitting(there, empty)


@lru_cache
def _fitting(there: tuple[str, ...], empty: tuple[str, ...]) -> Sequence[Form]:
    row: Fields = {name: [] if name in empty else [True] for name in there}
    fit = [form for form in FORMS if set(form.known_by) <= set(there)]
    return sorted(fit, key=lambda form: form.kind not in ("pair", "unpaired") and not form.answered(row))


class OneKind:
    """Sees to it that the rows of one file are of one kind: answers, conversations, pairs, or answers liked or not."""

    def __init__(self) -> None:
        self.first: tuple[Form, str] | None = None

    def check(self, row: Fields, where: str) -> None:
        """Raises DataError for a row of another kind than the first one that is of any."""
        form = next(iter(fitting(row)), None)
        if form is None:
            return
        first, place = self.first = self.first or (form, where)
        if form.kind != first.kind:
            names, others = (", ".join(one.known_by) for one in (form, first))
            raise DataError(
                f"{where}: it is of the form '{form.name}' ({names}), and {place.rpartition(': ')[2]} of the form"
                f" '{first.name}' ({others}); put rows of one form into a file of their own, and name both files"
            )


def form_of(row: Fields, where: str) -> Form:
    """A row's form. Raises DataError for a row of none."""
    form = next(iter(fitting(row)), None)
    if form is not None and (form.kind in ("pair", "unpaired") or form.answered(row) or "chosen" not in row):
        return form
    firsts = ("chosen", *(name for form in FORMS for name in form.known_by[:1]))
    null = next((name for name in firsts if name in row and row[name] is None), None)
    if null is not None:
        raise DataError(f"{where}: '{null}' is null; expected a text: fill it in, or drop the row")
    hint = "; rows with a 'text' alone have no prompt" if "text" in row else ""
    raise DataError(
        f"{where}: no field 'instruction' (with 'response'), 'messages', 'prompt' (with 'completion') or 'chosen'; it"
        f" has {fields_of(row)}{hint}"
    )


def check_instructed(row: Fields, where: str) -> None:
    """Raises DataError for a row of another form than instructions, where those alone are read; says what to do."""
    form = next((form for form in FORMS if all(name in row for name in form.known_by)), None)
    if form is not None and "instruction" not in form.known_by:
        names = ", ".join((*form.known_by, *filter(None, [form.answered(row)] if form.kind == "answer" else [])))
        raise DataError(f"{where}: rows of the form '{form.name}' ({names}) are not read here; {form.instead}")
