"""``choose``: the best of several steps that trained, by what they measured on held-out rows.

Reads their manifests and ``heldout.jsonl``. Writes ``model.json``, which is the chosen step's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from openbezoar.context import StepContext
from openbezoar.errors import RunError
from openbezoar.models.references import write_checkpoint
from openbezoar.recipe.train_steps import Choose, Measure
from openbezoar.reporting.training import HELD_OUT, TrainingNumbers
from openbezoar.stats.comparisons import correct, every_pair
from openbezoar.stats.intervals import mean_interval, proportion_interval
from openbezoar.stats.seeds import step_seed
from openbezoar.verbs.choose.result import ChooseNumbers, Tried


class Found(NamedTuple):
    """What a step measured: the number that is chosen by, and its value of each held-out row, where it has one."""

    candidate: Tried
    after: float
    rows: list[float]


def run(step: Choose, context: StepContext) -> dict[str, Any]:
    """Choose a step, and say by how much it is better than each other one."""
    found = {name: found_in(name, context.folder(name), step.by, context.seed) for name in step.choose}
    _check_rows(found)
    chosen = best({name: one.after for name, one in found.items()}, step.by)
    differences = every_pair({name: dict(enumerate(one.rows)) for name, one in found.items()}, context.seed, {})
    correct(differences)
    model = replace(context.checkpoint(chosen), name=context.name)
    write_checkpoint(context.out, model, context.run.path, published=context.folder(context.name))
    own = f"{context.name}."
    told = ", ".join(f"{name.removeprefix(own)} {one.after:.3f}" for name, one in found.items())
    about = {
        "chosen": chosen,
        "by": step.by,
        "candidates": {name: one.candidate.written() for name, one in found.items()},
        "differences": differences,
        "summary": f"{chosen.removeprefix(own)} by held-out {step.by}: {told}",
    }
    return ChooseNumbers.model_validate(about).written()


def _check_rows(found: Mapping[str, Found]) -> None:
    """Raise RunError for steps that were measured on different numbers of rows, which another tokenizer may leave."""
    first, *others = found
    for name in others:
        if (n := found[name].candidate.n) != (m := found[first].candidate.n):
            raise RunError(f"{first} was measured on {m} rows and {name} on {n}; give all the same 'heldout'")


def best(values: Mapping[str, float], by: Measure) -> str:
    """The name with the best value, the first of equals: the lowest loss, the highest of anything else."""
    return min(values, key=lambda name: values[name] if by == "loss" else -values[name])


def found_in(name: str, folder: Path, by: Measure, seed: int) -> Found:
    """What a finished step measured. Raises RunError where it has no such number."""
    numbers = TrainingNumbers.left_by(name, folder)
    before, after = (getattr(numbers, f"heldout_{by}_{when}", None) for when in ("before", "after"))
    if not isinstance(after, int | float):
        raise RunError(f"{folder}: no held-out {by}, by which is chosen; choose by another measure")
    rows = _rows(numbers, by)
    candidate = {"before": before, "after": after, "n": numbers.heldout_rows}
    if rows and by == "accuracy":
        candidate["low"], candidate["high"] = proportion_interval(round(sum(rows)), len(rows))
    elif rows:
        _, candidate["low"], candidate["high"] = mean_interval(rows, step_seed(seed, name))
    return Found(Tried.model_validate(candidate), float(after), rows)


def _rows(numbers: TrainingNumbers, by: Measure) -> list[float]:
    """The measure of each held-out row, as the step was kept; none where it is no mean of rows."""
    log = list(numbers.step.rows(HELD_OUT))
    kept = log[-1]["step"] if numbers.kept_step is None else numbers.kept_step
    values: dict[str, list[float]] = next((line.get("rows", {}) for line in log if line["step"] == kept), {})
    return [float(m > 0) for m in values.get("margin", [])] if by == "accuracy" else values.get(by, [])
