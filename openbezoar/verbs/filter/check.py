"""A filter judge, or a model's likelihood, on answers that people (or a judge they trust) have called
good or bad, so that its filter is known before it is used.

Reads rows with an instruction (or ``prompt``), perhaps ``context`` or ``input``, a
``response`` (or ``output``, ``completion``) and a label: true or false, or the share of
people who said yes. Writes ``OUT/check/verdicts.jsonl`` (a row each, with the judge's
verdict and likelihood) and ``scores.json``. Every reply is in the call cache and every likelihood
in ``likelihood.jsonl``, so a killed check goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openbezoar.cleaning import funnel
from openbezoar.cleaning.likelihood import Scored, screen
from openbezoar.cleaning.units import words
from openbezoar.context import StepContext
from openbezoar.errors import DataError, fields_of, named, shown
from openbezoar.judging.ratings import rate
from openbezoar.llm import open_llm
from openbezoar.llm.spoken import spoken
from openbezoar.machine import extras
from openbezoar.models import needs
from openbezoar.progress import Progress
from openbezoar.recipe.data_steps import Filter, Likelihood
from openbezoar.recipe.file import parse
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.fields import text_in
from openbezoar.rows.instructions import judged_text
from openbezoar.rows.known import INSTRUCTION, RESPONSE
from openbezoar.rows.records import Counts, Example, Row, Turn, write_jsonl
from openbezoar.stats.intervals import Array, auc, grouped_intervals, ratio, widened
from openbezoar.stats.seeds import step_seed
from openbezoar.store.files import write_json
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.filter.likelihood import likelihoods

STEP = "check"
BY_LIKELIHOOD: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("IFD", "ifd", {"below": 1.0}),
    ("perplexity", "perplexity", {"between": [0.05, 0.95]}),
)
"""The rules of ``likelihood`` that are checked, each by itself: what they are called, and their settings."""
LABELS = ("acceptable", "accept", "label")
"""Names under which a label is looked for, where none is given."""
ASKED, ANSWERED = (*INSTRUCTION, "prompt"), (*RESPONSE, "completion")


@dataclass(frozen=True)
class Labelled:
    """An answer to what was asked, and whether it is good."""

    id: str
    asked: str
    response: str
    good: bool


def check(
    models: Mapping[str, dict[str, Any]],
    rows: Path,
    label: str | None,
    settings: dict[str, Any],
    limit: int | None,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Ask the judge about every labelled row, take a model's likelihood of every answer, or both;
    returns what ``scores.json`` holds.

    models: as in a recipe, 'judge', 'likelihood' or both; settings: keys of ``filter`` such as mode and
    min_rating; limit: rows drawn by a fixed seed. Raises DataError for rows without text or label.
    """
    step, recipe = _recipe(models, rows, settings, limit, out)
    run = RunFolder(out)
    extras.require(*(package for name in models for package in needs.of_model(recipe, name, Path.cwd())))
    with run.lock():
        run.step(STEP).mkdir(exist_ok=True)
        context = StepContext(STEP, recipe, Path.cwd(), run, run.step(STEP), step_seed(recipe.seed, STEP), progress)
        labelled = context.rows(step.filter)
        label = label or label_of(labelled[0])
        items = read_labelled(labelled, label, context.counts)
        left_out = dict(context.counts.by_reason)
        verdicts = _verdicts(step, context, items)
        scores = _likelihoods(step, context, items)
        told: list[Row] = [{"id": item.id, "good": item.good} for item in items]
        for row, verdict in zip(told, verdicts or [{}] * len(told), strict=True):
            row |= verdict
        for row, score in zip(told, scores or (), strict=scores is not None):
            row |= score.as_row()
        write_jsonl(context.out / "verdicts.jsonl", told)
        numbers = {
            **{name: spec["model"] for name, spec in models.items()},
            "mode": step.mode,
            "min_rating": step.min_rating,
            "label": label,
            "left_out": left_out,
            "calls": {reason: n for reason, n in context.counts.by_reason.items() if reason not in left_out},
            **check_numbers(items, verdicts, step.min_rating, context.seed, scores),
        }
        write_json(context.out / "scores.json", numbers)
    return numbers


def _recipe(
    models: Mapping[str, dict[str, Any]], rows: Path, settings: dict[str, Any], limit: int | None, out: Path
) -> tuple[Filter, Recipe]:
    """A recipe of one filter, and its step."""
    data = {"data": str(rows), **({"limit": limit, "shuffle": True} if limit else {})}
    asked: dict[str, Any] = {"judge": "judge"} if "judge" in models else {}
    if "likelihood" in models:
        asked["likelihood"] = {"model": "likelihood", **{rule: own for _, rule, own in BY_LIKELIHOOD}}
    step = {"filter": data, **asked, **settings}
    recipe = parse({"name": out.name, "models": dict(models), "steps": {STEP: step}}, "judge check")
    checked = recipe.steps[STEP]
    assert isinstance(checked, Filter)
    return checked, recipe


def _verdicts(step: Filter, context: StepContext, items: Sequence[Labelled]) -> list[Row] | None:
    if step.judge is None:
        return None
    with closing(open_llm(step.judge, context)) as llm:
        asked = [(i, item.asked, item.response) for i, item in enumerate(items)]
        return rate(llm, step.rating, context, asked, batch=step.batch, min_rating=step.min_rating, files={})


def _likelihoods(step: Filter, context: StepContext, items: Sequence[Labelled]) -> list[Scored] | None:
    if step.likelihood is None:
        return None
    examples = [Example(item.id, (Turn("user", item.asked),), item.response) for item in items]
    return likelihoods(step.likelihood, context, examples)


def label_of(row: Row) -> str:
    """The field of a row that is its label. Raises DataError where there is none, or where it could be several."""
    known = [name for name in LABELS if name in row] or [name for name, value in row.items() if isinstance(value, bool)]
    if len(known) != 1:
        fields = f"one of {', '.join(known)}" if known else f"the field that says it, of {fields_of(row)}"
        raise DataError(f"rows: which field says that an answer is good? Name {fields} with --label")
    return known[0]


def read_labelled(rows: Sequence[Row], label: str, counts: Counts) -> list[Labelled]:
    """Rows with their labels; those on which people were split, or without a label, are counted and left out."""
    items = []
    for number, row in enumerate(rows, 1):
        where = f"rows: row {named(row.get('id', number))}"
        instruction, response = judged_text(row, ASKED, where), spoken(text_in(row, ANSWERED, where), counts)
        if label not in row:
            raise DataError(f"{where}: no field '{label}', which is to be the label; it has {fields_of(row)}")
        share = row[label]
        if share is None:
            counts.add("without a label")
            continue
        if not isinstance(share, bool | int | float) or not 0 <= share <= 1:
            raise DataError(
                f"{where}: the label '{label}' is {shown(share)}; expected true, false or a share from 0 to 1"
            )
        if share == 0.5:
            counts.add("people were split")
            continue
        items.append(Labelled(str(row.get("id", number)), instruction, response, share > 0.5))
    if not items:
        raise DataError(f"rows: none of {len(rows)} has a label ({counts})")
    return items


# ----------------------------------------------------------------------------- numbers


class Sieve(NamedTuple):
    """A filter on labelled answers. kept: of each whether it is kept; scores: of each how good it is to the
    filter, None where it cannot say.
    """

    kept: list[bool]
    scores: list[float | None]


def check_numbers(
    items: Sequence[Labelled],
    verdicts: Sequence[Row] | None,
    min_rating: float,
    seed: int,
    likely: Sequence[Scored] | None = None,
) -> dict[str, Any]:
    """How good the filters of a judge and of a model's likelihood are, beside two that ask nobody.

    {n, good, unscored, instructions, filters}. A filter has ``kept``, ``precision`` (share of
    what it keeps that is good), ``recall`` (share of what is good that it keeps) and ``auc``,
    each {value, low, high} or None. Rows that a filter has no score of have no part in its AUC, and
    are not kept. 'IFD' keeps those below 1 and ranks by IFD, those from 1 on after all others;
    'perplexity' keeps the middle nine tenths and ranks the likeliest first. 'length only' keeps as many rows
    as the first filter, those with the longest answers. What is drawn again for the intervals is
    the instruction.
    """
    good, groups = [item.good for item in items], [item.asked for item in items]
    sieves = {
        **({"judge": _judge_sieve(verdicts, min_rating)} if verdicts is not None else {}),
        **(_likelihood_sieves(likely) if likely is not None else {}),
    }
    lengths: list[float | None] = [float(words(item.response)) for item in items]
    most = sum(next(iter(sieves.values())).kept)
    longest = set(sorted(range(len(items)), key=lambda i: (-(lengths[i] or 0), i))[:most])
    whole = {"value": 1.0, "low": 1.0, "high": 1.0}
    numbers = {name: _numbers(sieve, good, groups, step_seed(seed, name)) for name, sieve in sieves.items()}
    numbers["keep all"] = {
        **_kept(good, [True] * len(items), groups, step_seed(seed, "keep all")),
        "recall": whole,
        "auc": {"value": 0.5, "low": 0.5, "high": 0.5},
    }
    by_length = Sieve([i in longest for i in range(len(items))], lengths)
    numbers["length only"] = _numbers(by_length, good, groups, step_seed(seed, "length only"))
    return {
        "n": len(items),
        "good": sum(good),
        "unscored": sum("unscored" in verdict for verdict in verdicts or ()),
        "instructions": len(set(groups)),
        "filters": numbers,
    }


def _judge_sieve(verdicts: Sequence[Row], min_rating: float) -> Sieve:
    kept = [funnel.judged({}, verdict, min_rating).bucket == "kept" for verdict in verdicts]
    return Sieve(kept, [verdict.get("rating") for verdict in verdicts])


def _likelihood_sieves(scores: Sequence[Scored]) -> dict[str, Sieve]:
    """By each of the two rules alone, with the settings of ``BY_LIKELIHOOD``."""
    ranks: dict[str, list[float | None]] = {
        "ifd": [None if s.ifd is None else s.ifd if s.ifd < 1 else -s.ifd for s in scores],
        "perplexity": [None if s.given is None else -s.given for s in scores],
    }
    return {
        name: Sieve(
            [drop is None for drop in screen(scores, Likelihood.model_validate({"model": "", rule: own})).drops],
            ranks[rule],
        )
        for name, rule, own in BY_LIKELIHOOD
    }


def _numbers(sieve: Sieve, good: Sequence[bool], groups: Sequence[str], seed: int) -> dict[str, Any]:
    rated = [i for i, score in enumerate(sieve.scores) if score is not None]
    scores = [score for score in sieve.scores if score is not None]
    area = auc(scores, [good[i] for i in rated], [groups[i] for i in rated], seed=seed)
    return {**_kept(good, sieve.kept, groups, seed), "auc": _named(area)}


def _kept(good: Sequence[bool], kept: Sequence[bool], groups: Sequence[str], seed: int) -> dict[str, Any]:
    """How many rows are kept, with precision and recall."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    tables = np.zeros((len(numbers), 2, 2))  # by instruction: bad or good, dropped or kept
    for g, k, group in zip(good, kept, groups, strict=True):
        tables[numbers[group], int(g), int(k)] += 1
    precision, recall = grouped_intervals(tables, [_precision, _recall], seed)
    return {
        "kept": sum(kept),
        "precision": _named(precision and widened(precision, int((tables[:, :, 1].sum(axis=1) > 0).sum()))),
        "recall": _named(recall and widened(recall, int((tables[:, 1].sum(axis=1) > 0).sum()))),
    }


def _precision(tables: Array) -> Array:
    return ratio(tables[:, 1, 1], tables[:, :, 1].sum(axis=1))


def _recall(tables: Array) -> Array:
    return ratio(tables[:, 1, 1], tables[:, 1].sum(axis=1))


def _named(found: tuple[float, float, float] | None) -> dict[str, float] | None:
    return None if found is None else dict(zip(("value", "low", "high"), found, strict=True))
