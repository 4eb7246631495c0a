"""Rows whose fields fit two forms at once: refused where the two say different things. Takes rows, writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openbezoar.rows.fields import ambiguous
from openbezoar.rows.known import BESIDE, Fields, Form, fitting
from openbezoar.rows.messages import texts_in
from openbezoar.rows.records import Turn


def check_one_answer(row: Fields, form: Form, where: str) -> None:
    """Raises DataError for a row with another answer, under another name of its form or of another
    form of prompt and answer, that says something else.
    """
    answer = form.answered(row)
    said = _texts(row.get(answer))
    for other in (form, *(one for one in fitting(row) if one.kind == "answer" and one is not form)):
        for name in other.answer:
            if not _texts(row.get(name)) <= said:
                raise ambiguous(where, answer or form.answer[0], name)


def check_one_prompt(row: Fields, form: Form, prompt: Sequence[Turn], where: str) -> None:
    """Raises DataError for a row that asks something else as well, in the prompt of another form that it fits."""
    asked = "\n\n".join(turn.content for turn in prompt)
    own = (*form.prompt, *form.answer, *BESIDE)
    for name in (name for other in fitting(row) for name in other.prompt if name not in own):
        if not all(text in asked for text in _texts(row.get(name))):
            raise ambiguous(where, (*form.prompt, *form.answer)[0], name)


def check_one_preference(row: Fields, where: str) -> None:
    """Raises DataError for a row that says in two ways which answer is the better one."""
    known_by = ("chosen", "overall_preference", "label")
    ways = {name for form in fitting(row) for name in known_by if name in form.known_by}
    if len(ways) > 1:
        first, second, *_ = (name for name in known_by if name in ways)
        raise ambiguous(where, first, second)


def _texts(value: Any) -> set[str]:
    """What is said in a text or in messages, without what says nothing."""
    return {text.strip() for text in texts_in(value)} - {""}
