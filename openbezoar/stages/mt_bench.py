"""Two-turn answers to a set of questions, graded from 1 to 10 by a judge.

Reads question rows (``question_id``, ``category``, ``turns`` (two), optional ``reference``
or ``reference_gpt4``: a list of two answers, one text for the first turn, or null) and the
checkpoints of other steps. Writes ``answers.jsonl`` (one row a model and question: model,
question_id, category, turns, finish, tokens), ``judgments.jsonl`` (one row a model,
question and turn: the judge's text, the rating or null with the reason in ``unscored``,
the mode) and ``scores.json``.

Protocol: single-answer grading of MT-Bench (arXiv 2306.05685). Temperatures by category,
which categories are graded against a reference, and greedy judging are FastChat's
(``fastchat/llm_judge``); the judge's texts are this project's own. Placeholders in them are
those of FastChat's, so that a recipe may name a file with the original wording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openbezoar.context import StepContext
from openbezoar.errors import DataError
from openbezoar.judging.on_demand import OnDemand
from openbezoar.judging.parsers import parse_rating
from openbezoar.judging.prompting import RATING_CHOICES, RATING_PREFIX, UNSCORED, ask, expected_rating, judge_texts
from openbezoar.judging.scores import score_table, summary_line
from openbezoar.llm import Completion, Sampling, open_llm
from openbezoar.recipe import MtBench
from openbezoar.records import Row, Turn, write_jsonl
from openbezoar.runs import step_seed, write_json

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

PROMPTS = {
    "judge_single": ("question", "answer"),
    "judge_single_reference": ("question", "ref_answer_1", "answer"),
    "judge_single_turn2": ("question_1", "answer_1", "question_2", "answer_2"),
    "judge_single_turn2_reference": ("question_1", "ref_answer_1", "question_2", "ref_answer_2", "answer_1", "answer_2"),
}


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


def run(step: MtBench, context: StepContext) -> dict[str, Any]:
    """Answer, grade, score; returns the numbers for the manifest."""
    questions = read_questions(context.rows(step.questions))
    files = {name: context.path(text) for name, text in step.prompts.items()}
    texts = judge_texts(PROMPTS, files, tuple(PROMPTS))
    answers: list[Row] = []
    models = list(dict.fromkeys(step.mt_bench))
    for number, model in enumerate(models, 1):
        answers += _answer(step, context, f"answers-{number}-{model}", model, questions)
    write_jsonl(context.out / "answers.jsonl", answers)
    judgments = _judge(step, context, texts, questions, answers)
    write_jsonl(context.out / "judgments.jsonl", judgments)
    for row in judgments:
        if row["unscored"] is not None:
            context.counts.add(f"unscored_{row['unscored']}")
    table = score_table(models, answers, judgments, context.seed)
    head = {"judge": step.judge, "mode": step.mode, "questions": len(questions)}
    write_json(context.out / "scores.json", {**head, "models": table})
    return {**head, "models": table, "summary": summary_line(table)}


def read_questions(rows: Sequence[Row]) -> list[Question]:
    """Questions from rows. Raises DataError for a row without its fields, or an id met twice."""
    questions: list[Question] = []
    for number, row in enumerate(rows, 1):
        where = f"questions: row {row.get('question_id', number)}"
        turns = row.get("turns")
        if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(t, str) and t.strip() for t in turns):
            raise DataError(f"{where}: 'turns' is not a list of two texts; each question has two turns")
        if not isinstance(row.get("question_id"), int | str):
            raise DataError(f"{where}: no 'question_id'; give each question a number or a name of its own")
        category = str(row.get("category", "other"))
        questions.append(Question(row["question_id"], category, (turns[0], turns[1]), _references(row, category)))
    for id_, n in Counter(q.id for q in questions).items():
        if n > 1:
            raise DataError(f"questions: question_id {id_} occurs {n} times; give each question its own")
    return questions


def _references(row: Row, category: str) -> tuple[str, str]:
    """GPT-4's reference answers before the authors' notes, as in FastChat; empty where none is used."""
    given = row.get("reference_gpt4") or row.get("reference") or []
    if category in TEMPERATURES and category not in REFERENCED:
        return "", ""
    texts = [str(text or "") for text in ([given] if isinstance(given, str) else list(given))]
    first, second = [*texts, "", ""][:2]
    return first, second


# ----------------------------------------------------------------------------- answering


def _answer(step: MtBench, context: StepContext, label: str, model: str, questions: Sequence[Question]) -> list[Row]:
    """A model's answers, in the order of the questions."""
    with OnDemand(lambda: open_llm(model, context)) as llm:
        return context.batched(
            label, questions, step.batch, lambda _, batch: _two_turns(llm, model, batch, step.max_new_tokens, context.seed), unit="questions"
        )


def _two_turns(llm: OnDemand, model: str, questions: Sequence[Question], most: int, seed: int) -> list[Row]:
    """Both turns of some questions, ``most`` tokens each. A first turn that failed has no second one."""
    drawn = [Sampling(most, q.temperature) for q in questions]
    first = _chat(llm, [(Turn("user", q.turns[0]),) for q in questions], drawn, [step_seed(seed, q.id, 1) for q in questions])
    going = [i for i, answer in enumerate(first) if answer.finish != "error"]
    talks = [(Turn("user", questions[i].turns[0]), Turn("assistant", first[i].text), Turn("user", questions[i].turns[1])) for i in going]
    second = [Completion("", "error", 0, 0)] * len(questions)
    for i, answer in zip(going, _chat(llm, talks, [drawn[i] for i in going], [step_seed(seed, questions[i].id, 2) for i in going]), strict=True):
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
        }
        for q, a, b in zip(questions, first, second, strict=True)
    ]


def _chat(llm: OnDemand, talks: Sequence[Sequence[Turn]], samplings: Sequence[Sampling], seeds: Sequence[int]) -> list[Completion]:
    return llm().chat(talks, samplings, seeds) if talks else []


# ------------------------------------------------------------------------------- judging


def judge_conversation(texts: dict[str, str], question: Question, answers: Sequence[str], turn: int) -> tuple[Turn, ...]:
    """What the judge is asked about turn 1 or 2; against a reference if the question has one for that turn."""
    (r1, r2), (q1, q2) = question.references, question.turns
    if turn == 1 and r1:
        return ask(texts["judge_single_reference"], question=q1, ref_answer_1=r1, answer=answers[0])
    if turn == 1:
        return ask(texts["judge_single"], question=q1, answer=answers[0])
    talk = {"question_1": q1, "answer_1": answers[0], "question_2": q2, "answer_2": answers[1]}
    if r2:
        return ask(texts["judge_single_turn2_reference"], ref_answer_1=r1 or "(none)", ref_answer_2=r2, **talk)
    return ask(texts["judge_single_turn2"], **talk)


def _judge(step: MtBench, context: StepContext, texts: dict[str, str], questions: Sequence[Question], answers: Sequence[Row]) -> list[Row]:
    """One judgment a model, question and turn. Answers that never came are not shown to the judge."""
    by_id = {q.id: q for q in questions}
    items = [(row, turn) for row in answers for turn in (1, 2)]
    with OnDemand(lambda: open_llm(step.judge, context)) as llm:

        def make(_: int, batch: Sequence[tuple[Row, int]]) -> list[Row]:
            asked = [(row, turn) for row, turn in batch if row["finish"][turn - 1] != "error"]
            talks = [judge_conversation(texts, by_id[row["question_id"]], row["turns"], turn) for row, turn in asked]
            seeds = [step_seed(context.seed, "judge", row["model"], row["question_id"], turn) for row, turn in asked]
            graded = iter(_grade(step, llm, talks, seeds))
            return [
                {
                    "model": row["model"],
                    "question_id": row["question_id"],
                    "category": row["category"],
                    "turn": turn,
                    "mode": step.mode,
                    **(next(graded) if row["finish"][turn - 1] != "error" else {"judgment": None, "rating": None, "unscored": "answer_error"}),
                }
                for row, turn in batch
            ]

        return context.batched("judge", items, step.batch, make, unit="turns")


def _grade(step: MtBench, llm: OnDemand, talks: Sequence[Sequence[Turn]], seeds: Sequence[int]) -> list[Row]:
    """Judgment, rating, and why there is no rating, one a conversation."""
    if not talks:
        return []
    if step.mode == "probability":
        ratings = [expected_rating(logprobs) for logprobs in llm().choice_logprobs(talks, RATING_PREFIX, RATING_CHOICES)]
        return [{"judgment": None, "rating": r, "unscored": "no_probability" if r is None else None} for r in ratings]
    rows: list[Row] = []
    for reply in llm().chat(talks, Sampling(step.judge_max_new_tokens), seeds):
        rating = None if reply.finish == "error" else parse_rating(reply.text)
        rows.append({"judgment": reply.text, "rating": rating, "unscored": UNSCORED[reply.finish] if rating is None else None})
    return rows
