"""A filter judge on answers that people (or a judge they trust) have called good or bad, so that
its filter is known before it is used.

Reads rows with an instruction (or ``prompt``), perhaps ``context`` or ``input``, a
``response`` (or ``output``, ``completion``) and a label: true or false, or the share of
people who said yes. Writes ``OUT/check/verdicts.jsonl`` (a row each, with the judge's
verdict) and ``scores.json``. Every reply is in the call cache, so a killed check goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openbezoar.cleaning import funnel
from openbezoar.cleaning.units import words
from openbezoar.context import StepContext
from openbezoar.errors import DataError, fields_of, named, shown
from openbezoar.llm import open_llm
from openbezoar.llm.spoken import spoken
from openbezoar.machine import extras
from openbezoar.models import needs
from openbezoar.progress import Progress
from openbezoar.recipe.data_steps import Filter
from openbezoar.recipe.file import parse
from openbezoar.rows.forms import INSTRUCTION, RESPONSE, judged_text, text_in
from openbezoar.rows.records import Counts, Row, write_jsonl
from openbezoar.stats.intervals import Array, auc, grouped_intervals, ratio, widened
from openbezoar.stats.seeds import step_seed
from openbezoar.store.files import write_json
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.filter.judge import rate

STEP = "check"
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
    judge: dict[str, Any],
    rows: Path,
    label: str | None,
    settings: dict[str, Any],
    limit: int | None,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Ask the judge about every labelled row; returns what ``scores.json`` holds.

    judge: a model as in a recipe; settings: keys of ``filter`` such as mode and min_rating;
    limit: rows drawn by a fixed seed. Raises DataError for rows without text or label.
    """
    data = {"data": str(rows), **({"limit": limit, "shuffle": True} if limit else {})}
    recipe = parse(
        {"name": out.name, "models": {"judge": judge}, "steps": {STEP: {"filter": data, "judge": "judge", **settings}}},
        "judge check",
    )
    step, run = recipe.steps[STEP], RunFolder(out)
    assert isinstance(step, Filter)
    extras.require(*needs.of_model(recipe, "judge", Path.cwd()))
    with run.lock():
        run.step(STEP).mkdir(exist_ok=True)
        context = StepContext(STEP, recipe, Path.cwd(), run, run.step(STEP), step_seed(recipe.seed, STEP), progress)
        labelled = context.rows(step.filter)
        label = label or label_of(labelled[0])
        items = read_labelled(labelled, label, context.counts)
        left_out = dict(context.counts.by_reason)
        with closing(open_llm("judge", context)) as llm:
            verdicts = rate(llm, step, context, [(i, item.asked, item.response) for i, item in enumerate(items)], {})
        write_jsonl(
            context.out / "verdicts.jsonl",
            [{"id": item.id, "good": item.good, **verdict} for item, verdict in zip(items, verdicts, strict=True)],
        )
        numbers = {
            "judge": judge["model"],
            "mode": step.mode,
            "min_rating": step.min_rating,
            "label": label,
            "left_out": left_out,
            "calls": {reason: n for reason, n in context.counts.by_reason.items() if reason not in left_out},
            **check_numbers(items, verdicts, step.min_rating, context.seed),
        }
        write_json(context.out / "scores.json", numbers)
    return numbers


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


def check_numbers(items: Sequence[Labelled], verdicts: Sequence[Row], min_rating: float, seed: int) -> dict[str, Any]:
    """How good the judge's filter is, beside two that ask nobody.

    {n, good, unscored, instructions, filters}. A filter has ``kept``, ``precision`` (share of
    what it keeps that is good), ``recall`` (share of what is good that it keeps) and ``auc``,
    each {value, low, high} or None. Unscored rows are not kept, and have no part in the
    judge's AUC. 'length only' keeps as many rows as the judge, those with the longest
    answers. What is drawn again for the intervals is the instruction.
    """
    good, groups = [item.good for item in items], [item.asked for item in items]
    lengths = [float(words(item.response)) for item in items]
    judged = [funnel.judged({}, verdict, min_rating).bucket == "kept" for verdict in verdicts]
    rated = [i for i, verdict in enumerate(verdicts) if verdict.get("rating") is not None]
    longest = set(sorted(range(len(items)), key=lambda i: (-lengths[i], i))[: sum(judged)])
    by_length = [i in longest for i in range(len(items))]
    seeds = {name: step_seed(seed, name) for name in ("judge", "keep all", "length only")}
    whole = {"value": 1.0, "low": 1.0, "high": 1.0}
    numbers = {
        "judge": {
            **_kept(good, judged, groups, seeds["judge"]),
            "auc": _named(
                auc(
                    [verdicts[i]["rating"] for i in rated],
                    [good[i] for i in rated],
                    [groups[i] for i in rated],
                    seed=seeds["judge"],
                )
            ),
        },
        "keep all": {
            **_kept(good, [True] * len(items), groups, seeds["keep all"]),
            "recall": whole,
            "auc": {"value": 0.5, "low": 0.5, "high": 0.5},
        },
        "length only": {
            **_kept(good, by_length, groups, seeds["length only"]),
            "auc": _named(auc(lengths, good, groups, seed=seeds["length only"])),
        },
    }
    unscored = sum("unscored" in verdict for verdict in verdicts)
    return {
        "n": len(items),
        "good": sum(good),
        "unscored": unscored,
        "instructions": len(set(groups)),
        "filters": numbers,
    }


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
