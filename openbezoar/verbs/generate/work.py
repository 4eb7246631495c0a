"""generate: synthetic instruction rows by one scheme.

Reads the seeds (and data that the scheme's options name); writes ``rows.jsonl``, flat rows
with id, scheme, system (null = the template's default), instruction, response, finish,
source and the scheme's provenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from openbezoar.cleaning.units import words
from openbezoar.context import StepContext
from openbezoar.errors import DataError, ModelError, RecipeError, named
from openbezoar.llm import Sampling, open_llm
from openbezoar.recipe.blocks import DataRef, data_specs
from openbezoar.recipe.data_steps import Generate
from openbezoar.rows.fields import check_beside, text_in
from openbezoar.rows.files import ROWS
from openbezoar.rows.instructions import check_instruction
from openbezoar.rows.records import Row, write_jsonl
from openbezoar.schemes import SCHEMES, Scheme
from openbezoar.schemes.work import Work
from openbezoar.verbs.generate.result import GenerateNumbers


def run(step: Generate, context: StepContext) -> dict[str, Any]:
    """Make the rows and return the numbers for the manifest.

    Raises DataError for a seed row that lacks a field, RecipeError for a prompt name that
    the scheme does not have, ModelError if not one row came out.
    """
    scheme = SCHEMES[step.generate]
    work = Work(
        scheme=step.generate,
        context=context,
        open=lambda name: open_llm(name, context),
        teacher=step.teacher,
        seeds=seed_rows(step.seeds, scheme.seed_fields, context) if step.seeds is not None else [],
        rows=step.rows,
        sampling=Sampling(step.max_new_tokens, step.temperature, step.top_p),
        batch=step.batch,
        texts=own_texts(step, scheme, context),
    )
    try:
        rows = scheme.make(scheme.Options.model_validate(step.options), work)
    finally:
        work.close()
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


def own_texts(step: Generate, scheme: Scheme, context: StepContext) -> dict[str, Path]:
    """The files that the recipe gives instead of the scheme's texts."""
    for name in step.prompts:
        if name not in scheme.prompts:
            raise RecipeError(
                f"prompts.{name}: the scheme {step.generate} sends no such text; it sends {', '.join(scheme.prompts)}"
            )
    return {name: context.path(file) for name, file in step.prompts.items()}


def numbers(rows: Sequence[Row], work: Work) -> dict[str, Any]:
    """Counts, tokens of all replies (also those that led to no row), mean lengths in words, share
    of finished answers.
    """
    return GenerateNumbers(
        rows=len(rows),
        wanted=work.rows,
        prompt_tokens=work.prompt_tokens,
        tokens=work.tokens,
        tokens_per_second=round(work.tokens / work.seconds, 2) if work.seconds else None,
        instruction_words=round(fmean(words(row["instruction"]) for row in rows), 1),
        response_words=round(fmean(words(row["response"]) for row in rows), 1),
        finished=round(fmean(row["finish"] == "stop" for row in rows), 4),
        summary=f"{len(rows)} rows, {work.tokens:,} tokens",
    ).written()


def _reasons(context: StepContext) -> str:
    return "; ".join(f"{reason}: {n}" for reason, n in context.counts.by_reason.items()) or "no reason counted"
