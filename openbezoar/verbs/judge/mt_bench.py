"""Two-turn answers of checkpoints and of published models, graded by a judge.

Reads question rows (``question_id``, ``category``, ``turns`` (two), optional ``reference``
or ``reference_gpt4``: a list of two answers, one text for the first turn, or null), the
checkpoints of other steps, and perhaps answers that other models gave. Writes
``answers.jsonl`` (one row a model and question: model, question_id, category, turns,
finish, tokens), ``scores.json``, and the judgments of each protocol that grades
(``verbs/judge/protocols``: ``judgments.jsonl`` one at a time, ``comparisons.jsonl`` in pairs).

Protocol: MT-Bench's (arXiv 2306.05685), temperatures and references as in FastChat, greedy
judging; the judge's texts are this project's own unless ``judge_prompts`` names FastChat's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from openbezoar.context import StepContext
from openbezoar.errors import DataError, RecipeError
from openbezoar.judging.questions import Question, read_answers, read_questions
from openbezoar.judging.scores import answer_numbers
from openbezoar.llm import LLM, Completion, Sampling, open_llm, recorded
from openbezoar.models.driving import abreast
from openbezoar.recipe.blocks import LocalModel, ServerModel
from openbezoar.recipe.measure_steps import MtBench
from openbezoar.recipe.protocols import compares
from openbezoar.rows.records import Row, Turn, write_jsonl
from openbezoar.stats.seeds import step_seed
from openbezoar.verbs.judge.protocols import Sitting, graders, texts_of
from openbezoar.verbs.judge.result import MtBenchScores


def run(step: MtBench, context: StepContext) -> dict[str, Any]:
    """Answer, grade, score; returns the numbers for the manifest."""
    questions = read_questions(context.rows(step.questions))
    texts = texts_of(step, context)
    own = list(dict.fromkeys(step.mt_bench))
    published = read_answers(context.rows(step.answers), questions, context.counts) if step.answers is not None else []
    models = [*own, *dict.fromkeys(row["model"] for row in published)]
    _check(step, own, models)
    answers: list[Row] = []
    for number, model in enumerate(own, 1):
        answers += _answer(step, context, f"answers-{number}-{model}", model, questions)
    answers += published
    write_jsonl(context.out / "answers.jsonl", answers)
    judge = judge_among(models, step.judge, context)
    scores: dict[str, Any] = {"judge": step.judge, "mode": step.mode, "questions": len(questions)}
    summaries = []
    with closing(open_llm(step.judge, context)) as llm:
        sitting = Sitting(step, context, llm, texts, questions, answers, models, judge)
        for protocol in graders(step.grading):
            judgments = protocol.grade(sitting)
            _write(context, protocol.file, judgments)
            scores |= protocol.scores(sitting, judgments)
            summaries.append(protocol.summary(scores))
    scores.setdefault(
        "models", {m: {"answers": answer_numbers([a for a in answers if a["model"] == m])} for m in models}
    )
    result = MtBenchScores.model_validate(scores)
    result.write(context.out)
    return {**result.written(), "summary": summaries[0]}


def _check(step: MtBench, own: Sequence[str], models: Sequence[str]) -> None:
    """Names of published models are none of the recipe's, and there is something to compare."""
    if both := set(own) & set(models[len(own) :]):
        raise DataError(f"answers: '{min(both)}' is also a model of this step; rename one")
    if compares(step.grading) and len(models) < 2:
        raise RecipeError(
            f"grading: {step.grading}: one model alone cannot be compared; name another, or 'answers' of others"
        )
    if step.against is not None and step.against not in models:
        raise RecipeError(f"against: no model '{step.against}' in this step; it has {', '.join(models)}")


def judge_among(models: Sequence[str], judge: str, context: StepContext) -> str | None:
    """The contestant that is the judge itself: by name, by the same weights, or by the name that
    the judge's server knows it by.
    """
    spec = context.model_spec(judge)
    for model in models:
        other = context.model_spec(model)
        same_weights = isinstance(spec, LocalModel) and isinstance(other, LocalModel) and spec.model == other.model
        same_service = isinstance(spec, ServerModel) and (
            model == spec.model or (isinstance(other, ServerModel) and other.model == spec.model)
        )
        if model == judge or same_weights or same_service:
            return model
    return None


def _write(context: StepContext, file: str, rows: Sequence[Row]) -> None:
    write_jsonl(context.out / file, rows)
    for row in rows:
        if row["unscored"] is not None:
            context.counts.add(f"unscored_{row['unscored']}")


# ----------------------------------------------------------------------------- answering


def _answer(step: MtBench, context: StepContext, label: str, model: str, questions: Sequence[Question]) -> list[Row]:
    """A model's answers, in the order of the questions."""
    with closing(open_llm(model, context)) as llm:
        return context.batched(
            label,
            questions,
            abreast(step.batch),
            lambda _, batch: _two_turns(llm, model, batch, step.max_new_tokens, context.seed),
            unit="questions",
        )


def _two_turns(llm: LLM, model: str, questions: Sequence[Question], most: int, seed: int) -> list[Row]:
    """Both turns of some questions, ``most`` tokens each. A first turn that failed has no second one."""
    drawn = [Sampling(most, q.temperature) for q in questions]
    first = _chat(
        llm, [(Turn("user", q.turns[0]),) for q in questions], drawn, [step_seed(seed, q.id, 1) for q in questions]
    )
    going = [i for i, answer in enumerate(first) if answer.finish != "error"]
    talks = [
        (Turn("user", questions[i].turns[0]), Turn("assistant", first[i].text), Turn("user", questions[i].turns[1]))
        for i in going
    ]
    second = [Completion("", "error", 0, 0)] * len(questions)
    for i, answer in zip(
        going,
        _chat(llm, talks, [drawn[i] for i in going], [step_seed(seed, questions[i].id, 2) for i in going]),
        strict=True,
    ):
        second[i] = answer
    return [
        {
            "model": model,
            "question_id": q.id,
            "category": q.category,
            "questions": list(q.turns),
            "turns": [a.text, b.text],
            "finish": [a.finish, b.finish],
            "tokens": [a.tokens, b.tokens],
            **{
                name: [found.get(name) for found in both]
                for name in ("left_out", "refused")
                if any(name in found for found in both)
            },
        }
        for q, a, b in zip(questions, first, second, strict=True)
        if (both := (recorded(a), recorded(b)))
    ]


def _chat(
    llm: LLM, talks: Sequence[Sequence[Turn]], samplings: Sequence[Sampling], seeds: Sequence[int]
) -> list[Completion]:
    return llm.chat(talks, samplings, seeds) if talks else []
