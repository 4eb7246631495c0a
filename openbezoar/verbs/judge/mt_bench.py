"""Two-turn answers of checkpoints and of published models, graded by a judge: one at a time, in pairs, or both.

Reads question rows (``question_id``, ``category``, ``turns`` (two), optional ``reference``
or ``reference_gpt4``: a list of two answers, one text for the first turn, or null), the
checkpoints of other steps, and perhaps answers that other models gave. Writes
``answers.jsonl`` (one row a model and question: model, question_id, category, turns,
finish, tokens), ``scores.json``, and

- ``judgments.jsonl``, graded one at a time: a row a model, question and turn with the judge's
  text, the rating or null with the reason in ``unscored``, the mode;
- ``comparisons.jsonl``, graded in pairs: a row a pair of models, question and turn with the
  winner over both orders (a vote that ``openbezoar agreement`` reads) and both replies.

Protocol: MT-Bench's (arXiv 2306.05685), temperatures and references as in FastChat, greedy
judging; the judge's texts are this project's own unless ``judge_prompts`` names FastChat's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import combinations
from typing import Any

from openbezoar.context import StepContext
from openbezoar.errors import DataError, RecipeError
from openbezoar.judging.grading import compare, judge_sampling, rate
from openbezoar.judging.pairwise import comparison, pair_numbers
from openbezoar.judging.prompting import PAIR, SINGLE, Text, ask_pair, ask_single, official_texts, own_texts
from openbezoar.judging.questions import Question, read_answers, read_questions
from openbezoar.judging.scores import answer_numbers, rating_differences, score_table, self_preference, summary_line
from openbezoar.llm import LLM, Completion, Sampling, open_llm, recorded
from openbezoar.recipe.blocks import LocalModel, ServerModel
from openbezoar.recipe.measure_steps import MtBench
from openbezoar.rows.records import Row, Turn, write_jsonl
from openbezoar.stats.seeds import step_seed
from openbezoar.store.files import write_json


def run(step: MtBench, context: StepContext) -> dict[str, Any]:
    """Answer, grade, score; returns the numbers for the manifest."""
    questions = read_questions(context.rows(step.questions))
    texts = _texts(step, context)
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
    with closing(open_llm(step.judge, context)) as llm:
        if step.grading in ("single", "both"):
            judgments = _single(step, context, llm, texts, questions, answers)
            _write(context, "judgments", judgments)
            scores["models"] = score_table(models, answers, judgments, context.seed)
            scores["differences"] = rating_differences(models, judgments, context.seed)
            scores["self_preference"] = self_preference(judge, models, judgments, context.seed) if judge else None
            scores["summary"] = summary_line(scores["models"])
        if step.grading in ("pairwise", "both"):
            comparisons = _pairwise(step, context, llm, texts, questions, answers, models)
            _write(context, "comparisons", comparisons)
            scores["pairwise"] = pair_numbers(models, comparisons, context.seed, judge)
            scores.setdefault(
                "models", {m: {"answers": answer_numbers([a for a in answers if a["model"] == m])} for m in models}
            )
            scores.setdefault("summary", _wins_line(scores["pairwise"]))
    summary = scores.pop("summary")
    write_json(context.out / "scores.json", scores)
    return {**scores, "summary": summary}


def _check(step: MtBench, own: Sequence[str], models: Sequence[str]) -> None:
    """Names of published models are none of the recipe's, and there is something to compare."""
    if both := set(own) & set(models[len(own) :]):
        raise DataError(f"answers: '{min(both)}' is also a model of this step; rename one")
    if step.grading != "single" and len(models) < 2:
        raise RecipeError(
            f"grading: {step.grading}: one model alone cannot be compared; name another, or 'answers' of others"
        )
    if step.against is not None and step.against not in models:
        raise RecipeError(f"against: no model '{step.against}' in this step; it has {', '.join(models)}")


def _texts(step: MtBench, context: StepContext) -> dict[str, Text]:
    wanted = {**(SINGLE if step.grading != "pairwise" else {}), **(PAIR if step.grading != "single" else {})}
    if step.judge_prompts is not None:
        return official_texts(context.rows(step.judge_prompts), wanted)
    return own_texts(wanted, {name: context.path(text) for name, text in step.prompts.items()}, (*SINGLE, *PAIR))


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


def _write(context: StepContext, name: str, rows: Sequence[Row]) -> None:
    write_jsonl(context.out / f"{name}.jsonl", rows)
    for row in rows:
        if row["unscored"] is not None:
            context.counts.add(f"unscored_{row['unscored']}")


def _wins_line(numbers: dict[str, Any]) -> str:
    rates = [(m, found["win_rate"]) for m, found in numbers["models"].items()]
    parts = [
        (
            f"{m} wins {100 * r['value']:.0f} % ({100 * r['low']:.0f} to {100 * r['high']:.0f})"
            if r["n"]
            else f"{m} unscored"
        )
        for m, r in rates
    ]
    return f"{', '.join(parts)}; {numbers['unscored']} of {numbers['n'] + numbers['unscored']} comparisons unscored"


# ----------------------------------------------------------------------------- answering


def _answer(step: MtBench, context: StepContext, label: str, model: str, questions: Sequence[Question]) -> list[Row]:
    """A model's answers, in the order of the questions."""
    with closing(open_llm(model, context)) as llm:
        return context.batched(
            label,
            questions,
            step.batch,
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


# ------------------------------------------------------------------------------- judging


def _single(
    step: MtBench,
    context: StepContext,
    llm: LLM,
    texts: dict[str, Text],
    questions: Sequence[Question],
    answers: Sequence[Row],
) -> list[Row]:
    """One judgment a model, question and turn. Answers that never came are not shown to the judge."""
    by_id = {q.id: q for q in questions}
    items = [(row, turn) for row in answers for turn in (1, 2)]

    def make(_: int, batch: Sequence[tuple[Row, int]]) -> list[Row]:
        asked = [(row, turn) for row, turn in batch if _came(row, turn)]
        talks = [ask_single(texts, by_id[row["question_id"]], row["turns"], turn) for row, turn in asked]
        seeds = [step_seed(context.seed, "judge", row["model"], row["question_id"], turn) for row, turn in asked]
        graded = iter(rate(llm, talks, seeds, step.mode, judge_sampling(step)))
        return [
            {
                "model": row["model"],
                "question_id": row["question_id"],
                "category": row["category"],
                "turn": turn,
                "mode": step.mode,
                **(
                    next(graded) if _came(row, turn) else {"judgment": None, "rating": None, "unscored": "answer_error"}
                ),
            }
            for row, turn in batch
        ]

    return context.batched("judge", items, step.batch, make, unit="turns")


NO_REPLY: Row = {"judgment": None, "verdict": None, "logprobs": None, "unscored": "answer_error"}


def _pairwise(
    step: MtBench,
    context: StepContext,
    llm: LLM,
    texts: dict[str, Text],
    questions: Sequence[Question],
    answers: Sequence[Row],
    models: Sequence[str],
) -> list[Row]:
    """One comparison a pair of models, question and turn, each in both orders."""
    items = [(q, turn, a, b) for q, a, b in _pairs(step, questions, answers, models) for turn in (1, 2)]

    def make(_: int, batch: Sequence[tuple[Question, int, Row, Row]]) -> list[Row]:
        asked = [item for item in batch if _came(item[2], item[1]) and _came(item[3], item[1])]
        talks = [
            ask_pair(texts, q, x["turns"], y["turns"], turn) for q, turn, a, b in asked for x, y in ((a, b), (b, a))
        ]
        seeds = [
            step_seed(context.seed, "pair", x["model"], y["model"], q.id, turn)
            for q, turn, a, b in asked
            for x, y in ((a, b), (b, a))
        ]
        replies = iter(compare(llm, talks, seeds, step.mode, judge_sampling(step)))
        rows = []
        for q, turn, a, b in batch:
            came = _came(a, turn) and _came(b, turn)
            what = {
                "question_id": q.id,
                "category": q.category,
                "turn": turn,
                "model_a": a["model"],
                "model_b": b["model"],
                "judge": step.judge,
            }
            lengths = len(a["turns"][turn - 1]), len(b["turns"][turn - 1])
            rows.append(
                comparison(
                    {**what, "mode": step.mode},
                    lengths,
                    *((next(replies), next(replies)) if came else (NO_REPLY, NO_REPLY)),
                )
            )
        return rows

    return context.batched("compare", items, step.batch, make, unit="comparisons")


def _pairs(
    step: MtBench, questions: Sequence[Question], answers: Sequence[Row], models: Sequence[str]
) -> Iterator[tuple[Question, Row, Row]]:
    """A question and the answers of two models to it, for every two models that both have one."""
    rows = {(row["question_id"], row["model"]): row for row in answers}
    for a, b in combinations(models, 2):
        if step.against is None or step.against in (a, b):
            yield from ((q, rows[q.id, a], rows[q.id, b]) for q in questions if (q.id, a) in rows and (q.id, b) in rows)


def _came(row: Row, turn: int) -> bool:
    return bool(row["finish"][turn - 1] != "error")
