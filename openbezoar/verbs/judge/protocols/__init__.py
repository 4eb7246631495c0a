"""How a judge grades answers: one module a protocol; the rows that name them are ``recipe/protocols.py``.

A protocol's module has

- ``TEXTS``: the placeholders that each text it sends must hold, by the text's name; ``OFFICIAL``:
  what FastChat's file calls these texts, empty where it has none;
- ``FILE``: where its judgments are kept, a row each;
- ``calls(models, against)``: what it asks about a turn of a question, for ``plan``;
- ``grade(sitting)``: the judgments as rows; ``unscored`` of each is null, or why it says nothing;
- ``scores(sitting, rows)``: its part of ``scores.json``;
- ``summary(scores)``: what it found, in a line;
- ``blocks(result)``: what it found, in the report; nothing where it did not grade.

Planning imports these modules, so that numpy and the report are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from openbezoar.context import StepContext
from openbezoar.errors import RecipeError
from openbezoar.judging.prompting import Text, official_texts, own_texts
from openbezoar.judging.questions import Question
from openbezoar.llm import LLM
from openbezoar.recipe.measure_steps import MtBench
from openbezoar.recipe.protocols import GRADINGS, PROTOCOLS
from openbezoar.rows.records import Row

if TYPE_CHECKING:
    from openbezoar.reporting.document import Block
    from openbezoar.verbs.judge.result import MtBenchScores


@dataclass(frozen=True)
class Sitting:
    """Answers before a judge. answers: rows of ``answers.jsonl``; own: the contestant that is the judge itself."""

    step: MtBench
    context: StepContext
    judge: LLM
    texts: Mapping[str, Text]
    questions: Sequence[Question]
    answers: Sequence[Row]
    models: Sequence[str]
    own: str | None


class TurnCalls(NamedTuple):
    """What a protocol asks about one turn of a question: calls, and answers that these show altogether."""

    calls: int
    answers: int


@dataclass(frozen=True)
class Grader:
    """A protocol, by the names that its module gives to the parts."""

    texts: Mapping[str, tuple[str, ...]]
    official: Mapping[str, str]
    file: str
    calls: Callable[[int, str | None], TurnCalls]
    grade: Callable[[Sitting], list[Row]]
    scores: Callable[[Sitting, Sequence[Row]], dict[str, Any]]
    summary: Callable[[Mapping[str, Any]], str]
    blocks: Callable[[MtBenchScores], list[Block]]


def grader(name: str) -> Grader:
    """The protocol of that name."""
    module = import_module(PROTOCOLS[name].module)
    return Grader(
        texts=module.TEXTS,
        official=module.OFFICIAL,
        file=module.FILE,
        calls=module.calls,
        grade=module.grade,
        scores=module.scores,
        summary=module.summary,
        blocks=module.blocks,
    )


def graders(grading: str) -> list[Grader]:
    """The protocols that a step's ``grading`` stands for."""
    return [grader(name) for name in GRADINGS[grading]]


def blocks(result: MtBenchScores) -> list[Block]:
    """What all protocols that graded found, in the report."""
    return [block for name in PROTOCOLS for block in grader(name).blocks(result)]


def names_of_texts(grading: str) -> tuple[str, ...]:
    """The texts that a recipe may replace and that are part of the step's key: those of single and
    pairwise in any case, as they have always been, and those of other protocols where they grade.
    """
    names = dict.fromkeys([*GRADINGS["both"], *GRADINGS[grading]])
    return tuple(text for name in names for text in grader(name).texts)


def texts_of(step: MtBench, context: StepContext) -> dict[str, Text]:
    """The texts that the step's judge is sent: the project's, the recipe's or FastChat's.

    Raises RecipeError for FastChat's texts where it has none for the protocol, or a text that is
    none of the step's; DataError for a file of FastChat's without one.
    """
    texts: dict[str, tuple[str, ...]] = {}
    official: dict[str, str] = {}
    for protocol in graders(step.grading):
        texts |= protocol.texts
        official |= protocol.official
    if step.judge_prompts is None:
        files = {name: context.path(text) for name, text in step.prompts.items()}
        return own_texts(texts, files, names_of_texts(step.grading))
    if lacking := [name for name in texts if name not in official]:
        raise RecipeError(
            f"judge_prompts: FastChat has no text for '{lacking[0]}' of grading: {step.grading}; remove judge_prompts"
        )
    return official_texts(context.rows(step.judge_prompts), texts, official)


def calls(grading: str, models: int, against: str | None) -> TurnCalls:
    """What the protocols of a ``grading`` ask about one turn of a question. against: the model that
    all others are compared with, None for every two.
    """
    each = [protocol.calls(models, against) for protocol in graders(grading)]
    return TurnCalls(sum(some.calls for some in each), sum(some.answers for some in each))


def came(row: Row, turn: int) -> bool:
    """Whether there is an answer to grade, of a row of ``answers.jsonl``."""
    return bool(row["finish"][turn - 1] != "error")
