"""generate: synthetic instruction rows by one scheme.

Reads the seeds (and data that the scheme's options name); writes ``rows.jsonl``, flat rows
with id, scheme, system (null = the template's default), instruction, response, finish,
source and the scheme's provenance; with ``samples`` the ``scores`` of all answers, of which the best is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from openbezoar.cleaning.units import words
from openbezoar.context import StepContext
from openbezoar.errors import DataError, ModelError, RecipeError, named
from openbezoar.judging.answer_scores import AnswerScores
from openbezoar.judging.ratings import TEXTS
from openbezoar.llm import Sampling, open_llm
from openbezoar.recipe.blocks import DataRef, data_specs
from openbezoar.recipe.data_steps import Generate
from openbezoar.rows.fields import check_beside, text_in
from openbezoar.rows.files import ROWS
from openbezoar.rows.instructions import check_instruction
from openbezoar.rows.records import Row, write_jsonl
from openbezoar.schemes import SCHEMES
from openbezoar.schemes.work import BestOf, Work
from openbezoar.verbs.generate.key import texts as texts_of
from openbezoar.verbs.generate.result import GenerateNumbers


def run(step: Generate, context: StepContext) -> dict[str, Any]:
    """Make the rows and return the numbers for the manifest.

    Raises DataError for a seed row that lacks a field, RecipeError for a prompt name that
    the scheme does not have, ModelError if not one row came out.
    """
    scheme, texts = SCHEMES[step.generate], own_texts(step, context)
    scores = best_by(step, context, texts)
    work = Work(
        scheme=step.generate,
        context=context,
        open=lambda name: open_llm(name, context),
        teacher=step.teacher,
        seeds=seed_rows(step.seeds, scheme.seed_fields, context) if step.seeds is not None else [],
        rows=step.rows,
        sampling=Sampling(step.max_new_tokens, step.temperature, step.top_p),
        batch=step.batch,
        texts=texts,
        best=BestOf(step.samples, scores) if scores is not None else None,
    )
    try:
        rows = scheme.make(scheme.Options.model_validate(step.options), work)
    finally:
        work.close()
        if scores is not None:
            scores.close()
    if not rows:
        raise ModelError(
            f"teacher '{step.teacher}': not one of {step.rows} rows could be made ({_reasons(context)}); use a stronger"
            " teacher or more seeds"
        )
    write_jsonl(context.out / ROWS, rows)
    return numbers(rows, work)


def seed_rows(ref: DataRef, fields: Sequence[str], context: StepContext) -> list[Row]:
    """The seeds, each with non-empty text in every one of ``fields``. Raises DataError naming row and field."""
    rows: list[Row] = []
    for spec in data_specs(ref):
        for number, row in enumerate(context.rows(spec), 1):
            where = f"seeds: {spec.data}: row {named(row.get('id', number))}"
            for name in fields:
                if not text_in(row, (name,), where).strip():
                    raise DataError(f"{where}: the field '{name}' is empty; drop the row or fill it in")
            if "instruction" in fields:
                check_instruction(row, where, frozenset({"context"}))
            elif "input" in fields:
                check_beside(row, where, frozenset({"input"}), prompt=row["input"])
            rows.append(row)
    return rows


def best_by(step: Generate, context: StepContext, texts: Mapping[str, Path]) -> AnswerScores | None:
    """What scores several answers to an instruction; None where one is asked for."""
    if step.by is None:
        return None
    own = {name: file for name, file in texts.items() if name in TEXTS}
    return AnswerScores(step.by, context, step.rating, own, step.batch)


def own_texts(step: Generate, context: StepContext) -> dict[str, Path]:
    """The files that the recipe gives instead of the scheme's texts, and the judge's."""
    known = texts_of(step)
    for name in step.prompts:
        if name not in known:
            raise RecipeError(
                f"prompts.{name}: the scheme {step.generate} sends no such text; it sends {', '.join(known)}"
            )
    return {name: context.path(file) for name, file in step.prompts.items()}


def numbers(rows: Sequence[Row], work: Work) -> dict[str, Any]:
    """Counts, tokens of all replies (also those that led to no row), mean lengths in words, share
    of finished answers.
    """
    made = GenerateNumbers(
        rows=len(rows),
        wanted=work.rows,
        prompt_tokens=work.prompt_tokens,
        tokens=work.tokens,
        tokens_per_second=round(work.tokens / work.seconds, 2) if work.seconds else None,
        instruction_words=round(fmean(words(row["instruction"]) for row in rows), 1),
        response_words=round(fmean(words(row["response"]) for row in rows), 1),
        finished=round(fmean(row["finish"] == "stop" for row in rows), 4),
        summary=f"{len(rows)} rows, {work.tokens:,} tokens",
    )
    return made.model_copy(update=_gain(rows)).written()


def _gain(rows: Sequence[Row]) -> dict[str, float]:
    """Mean scores of the first and of the kept answers, over the rows whose first one has a score."""
    scored = [row["scores"] for row in rows if row.get("scores") and row["scores"][0] is not None]
    if not scored:
        return {}
    best = [max(score for score in of if score is not None) for of in scored]
    return {"first_score": round(fmean(of[0] for of in scored), 4), "best_score": round(fmean(best), 4)}


def _reasons(context: StepContext) -> str:
    return "; ".join(f"{reason}: {n}" for reason, n in context.counts.by_reason.items()) or "no reason counted"
