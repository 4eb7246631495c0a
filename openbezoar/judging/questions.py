"""Questions of two turns, and answers to them that were published elsewhere. Reads rows, writes nothing.

Temperatures by category, and which categories are graded against a reference, are
FastChat's (``fastchat/llm_judge``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openbezoar.dialogue import thoughts
from openbezoar.errors import DataError, fields_of, named, shown
from openbezoar.rows.records import Counts, Row

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
REFERENCED = ("math", "reasoning", "coding")  # in MT-Bench's other categories a reference is a note, not an answer


@dataclass(frozen=True)
class Question:
    """A question of two turns; ``references`` are answers known to be good, "" for a turn that has none."""

    id: int | str
    category: str
    turns: tuple[str, str]
    references: tuple[str, str]

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)


def read_questions(rows: Sequence[Row]) -> list[Question]:
    """Questions from rows. Raises DataError for a row without its fields, or an id met twice."""
    questions: list[Question] = []
    for number, row in enumerate(rows, 1):
        where = f"questions: row {named(row.get('question_id', number))}"
        turns = row.get("turns")
        if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(t, str) and t.strip() for t in turns):
            raise DataError(f"{where}: 'turns' is not a list of two texts; each question has two turns")
        if not isinstance(row.get("question_id"), int | str):
            raise DataError(f"{where}: no 'question_id'; give each question a number or a name of its own")
        category = str(row.get("category", "other"))
        questions.append(
            Question(row["question_id"], category, (turns[0], turns[1]), _references(row, category, where))
        )
    for id_, n in Counter(q.id for q in questions).items():
        if n > 1:
            raise DataError(f"questions: question_id {id_} occurs {n} times; give each question its own")
    return questions


def _references(row: Row, category: str, where: str) -> tuple[str, str]:
    """GPT-4's reference answers before the authors' notes, as in FastChat; empty where none is used."""
    references = row.get("reference_gpt4") or row.get("reference") or []
    if category in TEMPERATURES and category not in REFERENCED:
        return "", ""
    texts = ["" if text is None else text for text in (references if isinstance(references, list) else [references])]
    if odd := [text for text in texts if not isinstance(text, (str, int, float))]:
        raise DataError(f"{where}: a reference is {shown(odd[0])}; expected a text for each turn, or a number")
    texts = [str(text) for text in texts]
    first, second = [*texts, "", ""][:2]
    return first, second


def read_answers(rows: Sequence[Row], questions: Sequence[Question], counts: Counts) -> list[Row]:
    """Published answers as rows of ``answers.jsonl``, by model, in the order of the questions.

    A row has ``question_id``, ``model_id`` (or ``model``) and ``turns`` (two), or FastChat's
    ``choices``, of which the first counts; a step's own ``answers.jsonl`` is read whole.
    Otherwise how an answer ended is not known (``finish`` and ``tokens`` are null, whatever
    else a file may have under these names), but for FastChat's "ERROR" and a missing turn,
    which never came. An answer begins after its thoughts; one that ends in a thought was cut off.
    Counted: thoughts, answers to other questions, and questions that a model has no answer to. Raises
    DataError for a row without its fields, or a question answered twice by a model.
    """
    by_id = {str(q.id): q for q in questions}
    by_model: dict[str, dict[str, Row]] = {}
    for number, row in enumerate(rows, 1):
        where = f"answers: row {named(row.get('question_id', number))}"
        model, turns = row.get("model_id", row.get("model")), _published(row)
        if not isinstance(model, str) or turns is None:
            raise DataError(
                f"{where}: expected 'question_id', 'model_id' and 'turns', a list of two answers; it has"
                f" {fields_of(row)}"
            )
        question = by_id.get(str(row.get("question_id")))
        if question is None:
            counts.add("published answers to other questions")
            continue
        if str(question.id) in by_model.setdefault(model, {}):
            raise DataError(f"{where}: {model} answers it twice; leave one answer")
        replies = [thoughts.split(text or "") for text in turns]
        if left_out := sum(bool(reply.thoughts) for reply in replies):
            counts.add("thoughts left out of published answers", left_out)
        ends = _ends(row, turns)
        by_model[model][str(question.id)] = {
            "model": model,
            "question_id": question.id,
            "category": question.category,
            "questions": list(question.turns),
            "turns": [reply.answer for reply in replies],
            **ends,
            "finish": [end if reply.whole else "length" for end, reply in zip(ends["finish"], replies, strict=True)],
        }
    for model, answers in by_model.items():
        if len(answers) < len(questions):
            counts.add(f"{model}: questions without a published answer", len(questions) - len(answers))
    # by model, in the questions' order
    ordered = [answers.get(str(question.id)) for answers in by_model.values() for question in questions]
    return [answer for answer in ordered if answer is not None]


FAILED = "ERROR"  # what FastChat writes for an answer that could not be generated; peers grade it


def _ends(row: Row, turns: Sequence[str | None]) -> Row:
    """How the two answers ended, and their tokens, where the row says so as a step's own does; else
    what the texts tell.
    """
    finish, tokens = row.get("finish"), row.get("tokens")
    if (
        isinstance(finish, list)
        and isinstance(tokens, list)
        and len(finish) == len(tokens) == 2
        and all(map(_is_an_end, finish, tokens))
    ):
        return {"finish": finish, "tokens": tokens}
    return {"finish": ["error" if text is None or text == FAILED else None for text in turns], "tokens": [None, None]}


def _is_an_end(finish: Any, tokens: Any) -> bool:
    return finish in (None, "error") or (finish in ("stop", "length") and isinstance(tokens, int))


def _published(row: Row) -> list[str | None] | None:
    turns: Any = row.get("turns")
    choices = row.get("choices")
    if turns is None and isinstance(choices, list) and choices and isinstance(choices[0], dict):
        turns = choices[0].get("turns")
    if not isinstance(turns, list) or not 1 <= len(turns) <= 2 or not all(isinstance(t, str) for t in turns):
        return None
    return [*turns, None][:2]
