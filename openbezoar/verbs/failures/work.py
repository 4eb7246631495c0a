"""What checkpoints get wrong: loops, empty and endless answers, refusals, what the system prompt
changes, unsafe and unsupported answers.

Reads rows with prompts and the checkpoints of other steps. Writes ``answers.jsonl`` (a row a
model, set, system message and prompt), ``judgments.jsonl`` (what the judge said of harmless
and grounded answers) and ``scores.json`` (``result.FailuresScores``).

Answers are greedy, so that what differs between two of them is the checkpoint or the system
message.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from openbezoar.context import StepContext
from openbezoar.errors import DataError
from openbezoar.judging.failures import MEASURES, failure_differences, failure_numbers
from openbezoar.judging.grading import judge_sampling, say_yes_or_no
from openbezoar.judging.prompting import CHECKS, Text, own_texts
from openbezoar.llm import Sampling, open_llm, recorded
from openbezoar.models.driving import abreast
from openbezoar.recipe.blocks import DataRef
from openbezoar.recipe.measure_steps import TRAINED, Failures
from openbezoar.rows.fields import beside
from openbezoar.rows.forms import to_prompt
from openbezoar.rows.records import Row, Turn, write_jsonl
from openbezoar.stats.intervals import share_of
from openbezoar.stats.seeds import step_seed
from openbezoar.verbs.failures.result import ANSWERS, INSTRUCTIONS, FailuresScores

UNSAFE, UNSUPPORTED = "unsafe", "unsupported"


@dataclass(frozen=True)
class Asked:
    """One prompt of a set (instructions, harmless or grounded) under one system message."""

    set: str
    system: str
    id: str
    turns: tuple[Turn, ...]
    context: str = ""  # the text that a grounded answer must keep to
    question: str = ""


def run(step: Failures, context: StepContext) -> dict[str, Any]:
    """Ask, judge, count; returns the numbers for the manifest."""
    texts = own_texts(CHECKS, {name: context.path(text) for name, text in step.prompts.items()}, tuple(CHECKS))
    prompts = [*_read(step.instructions, INSTRUCTIONS, step, context)]
    for ref, name in ((step.harmless, "harmless"), (step.grounded, "grounded")):
        prompts += _read(ref, name, step, context) if ref is not None else []
    models = list(dict.fromkeys(step.failures))
    answers = [row for model in models for row in _answer(step, context, model, prompts)]
    write_jsonl(context.out / ANSWERS, answers)
    judgments = _judge(step, context, texts, prompts, answers)
    write_jsonl(context.out / "judgments.jsonl", judgments)
    for row in judgments:
        if row["unscored"] is not None:
            context.counts.add(f"unscored_{row['unscored']}")
    checkpoints = {
        m: _numbers([a for a in answers if a["model"] == m], [j for j in judgments if j["model"] == m], context.seed)
        for m in models
    }
    values = {
        m: _values([a for a in answers if a["model"] == m], [j for j in judgments if j["model"] == m]) for m in models
    }
    differences = failure_differences(values, context.seed)
    scores = FailuresScores.model_validate(
        {"judge": step.judge, "checkpoints": checkpoints, "differences": differences}
    )
    scores.write(context.out)
    return {**scores.written(), "summary": _summary(scores)}


def _read(ref: DataRef, name: str, step: Failures, context: StepContext) -> list[Asked]:
    """The prompts of a set; those of instructions also under every other system message."""

    def prompt(row: Row, where: str) -> Asked:
        turns = to_prompt(row, where)
        text = beside(row, "context", where)
        if name == "grounded" and not text.strip():
            raise DataError(
                f"{where}: no 'context' that could support an answer; choose rows that have one, such as where:"
                " {category: closed_qa}"
            )
        return Asked(name, TRAINED, str(row.get("id", where)), turns, text, str(row.get("instruction", "")))

    # Ids of rows need not differ; with its place in front each prompt's does.
    rows = [replace(a, id=f"{place}:{a.id}") for place, a in enumerate(context.converted(ref, prompt, step.rows), 1)]
    systems = step.systems if name == INSTRUCTIONS else {}
    return [
        *rows,
        *(
            Asked(name, key, a.id, (Turn("system", text), *_without_system(a.turns)))
            for key, text in systems.items()
            for a in rows
        ),
    ]


def _without_system(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    return turns[1:] if turns[0].role == "system" else turns


def _answer(step: Failures, context: StepContext, model: str, asked: Sequence[Asked]) -> list[Row]:
    with closing(open_llm(model, context)) as llm:

        def make(first: int, batch: Sequence[Asked]) -> list[Row]:
            seeds = [step_seed(context.seed, "answer", first + n) for n in range(len(batch))]
            answers = llm.chat([a.turns for a in batch], Sampling(step.max_new_tokens), seeds)
            return [
                {
                    "model": model,
                    "set": a.set,
                    "system": a.system,
                    "id": a.id,
                    "answer": got.text,
                    "finish": got.finish,
                    "tokens": got.tokens,
                    **recorded(got),
                }
                for a, got in zip(batch, answers, strict=True)
            ]

        return context.batched(f"answers-{model}", asked, abreast(step.batch), make, unit="answers")


def _judge(
    step: Failures, context: StepContext, texts: dict[str, Text], asked: Sequence[Asked], answers: Sequence[Row]
) -> list[Row]:
    """What the judge says of the harmless and grounded answers that came."""
    by_place = {(a.set, a.system, a.id): a for a in asked}
    items = [row for row in answers if row["set"] != INSTRUCTIONS and row["finish"] != "error"]
    if step.judge is None or not items:
        return []
    judge = step.judge
    with closing(open_llm(judge, context)) as llm:

        def make(first: int, batch: Sequence[Row]) -> list[Row]:
            talks = [_question(texts, by_place[row["set"], row["system"], row["id"]], row["answer"]) for row in batch]
            seeds = [step_seed(context.seed, "judge", first + n) for n in range(len(batch))]
            verdicts = say_yes_or_no(llm, talks, seeds, step.mode, judge_sampling(step))
            return [
                {
                    "model": row["model"],
                    "id": row["id"],
                    "what": UNSAFE if row["set"] == "harmless" else UNSUPPORTED,
                    **verdict,
                }
                for row, verdict in zip(batch, verdicts, strict=True)
            ]

        return context.batched("judge", items, step.batch, make, unit="answers")


def _question(texts: dict[str, Text], asked: Asked, answer: str) -> tuple[Turn, ...]:
    if asked.set == "grounded":
        return texts["judge_unsupported"].ask(context=asked.context, question=asked.question, answer=answer)
    conversation = "\n\n".join(f"{turn.role}: {turn.content}" for turn in asked.turns)
    return texts["judge_unsafe"].ask(conversation=conversation, answer=answer)


def _numbers(answers: Sequence[Row], judgments: Sequence[Row], seed: int) -> dict[str, Any]:
    """One checkpoint's shares; ``changed``: of answers that differ from the one under the trained system message."""
    plain = {row["id"]: row for row in answers if row["set"] == INSTRUCTIONS and row["system"] == TRAINED}
    systems: dict[str, Any] = {}
    for name in dict.fromkeys(
        row["system"] for row in answers if row["set"] == INSTRUCTIONS and row["system"] != TRAINED
    ):
        own = [row for row in answers if row["system"] == name]
        both = [row for row in own if "error" not in (row["finish"], plain[row["id"]]["finish"])]
        systems[name] = {
            **failure_numbers(own, seed),
            "changed": share_of([row["answer"] != plain[row["id"]]["answer"] for row in both])._asdict(),
        }
    checks = {what: [j["yes"] for j in judgments if j["what"] == what] for what in (UNSAFE, UNSUPPORTED)}
    return {
        "answers": failure_numbers(list(plain.values()), seed),
        "systems": systems,
        **{
            what: {**share_of([yes for yes in said if yes is not None])._asdict(), "unscored": said.count(None)}
            if said
            else None
            for what, said in checks.items()
        },
    }


def _values(answers: Sequence[Row], judgments: Sequence[Row]) -> dict[str, dict[str, float]]:
    """{measure: {item: 0 or 1}} of one checkpoint."""
    plain = [
        row for row in answers if row["set"] == INSTRUCTIONS and row["system"] == TRAINED and row["finish"] != "error"
    ]
    values = {name: {row["id"]: float(measure(row)) for row in plain} for name, measure in MEASURES.items()}
    for row in judgments:
        if row["yes"] is not None:
            values.setdefault(row["what"], {})[row["id"]] = float(row["yes"])
    return values


def _summary(scores: FailuresScores) -> str:
    parts = {
        name: (f.answers.degenerate.value, f.answers.cut_off.value)
        for name, f in scores.by_checkpoint.items()
        if f.answers.degenerate is not None and f.answers.cut_off is not None
    }
    return "; ".join(
        f"{name}: {100 * loops:.0f} % loop, {100 * cut:.0f} % cut off"
        for name, (loops, cut) in parts.items()
        if loops is not None and cut is not None
    )
