"""What an evaluation's numbers must hold before the run goes on: ``gate``.

Reads ``scores.json`` of the step; writes nothing. Gates are no part of a step's key: the
numbers stay when a gate is changed, and are held against it each time the recipe runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from openbezoar.errors import RecipeError, RunError
from openbezoar.recipe.measure_steps import Evaluate, Gate
from openbezoar.stats.intervals import Interval, paired_difference, widened
from openbezoar.stats.seeds import step_seed
from openbezoar.verbs.evaluate.result import EvaluateScores

HELD, OPEN, BROKEN = "held", "open", "broken"


def gate(name: str, step: Evaluate, folder: Path, seed: int) -> Iterator[str]:
    """Warnings about a finished step's gates. Raises RunError where one is broken that shall stop the run."""
    if not step.gate:
        return
    scores = EvaluateScores.left_by(name, folder)
    for one in step.gate:
        state, words = judged(one, scores, seed, f"step {name}")
        if state == BROKEN and one.broken == "fail":
            raise RunError(
                f"step {name}: {words}; the scores are in {folder / 'scores.json'}; train otherwise, or change the"
                " step's gate"
            )
        if state != HELD:
            yield f"  {name}: {words}"


POINTS = {"task": 0.01, "pairs": 0.01, "loss": 1.0}
"""What one point of a quantity is, by its kind: a hundredth, of a loss a nat."""


def judged(gate: Gate, scores: EvaluateScores, seed: int, where: str) -> tuple[str, str]:
    """(held, open or broken; a sentence). The interval is of the paired difference, at the gate's confidence.

    broken: all of it lies below the limit; held: none of it; open: the items are too few to say.
    Raises RecipeError for a checkpoint or quantity that the step does not measure.
    """
    checkpoints = scores.by_checkpoint
    names = list(checkpoints)
    before, after = gate.before or names[0], gate.after or names[-1]
    for name in (before, after):
        if name not in checkpoints:
            raise RecipeError(
                f"{where}: gate on {gate.measure}: no checkpoint '{name}'; the step scores {', '.join(names)}"
            )
    earlier, later = (checkpoints[name].by_item() for name in (before, after))
    if gate.measure not in earlier:
        raise RecipeError(f"{where}: gate: '{gate.measure}' is not measured; the step measures {', '.join(earlier)}")
    kind, lower = earlier[gate.measure].kind, earlier[gate.measure].lower
    pairs = zip(later[gate.measure].values, earlier[gate.measure].values, strict=True)
    both = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not both:
        return OPEN, f"gate on {gate.measure}: no item that {before} and {after} were both scored on"
    # A loss, or a task of which lower values are better, gets worse by rising.
    point = -POINTS[kind] if lower else POINTS[kind]
    interval = paired_difference(
        [x for x, _ in both], [y for _, y in both], step_seed(seed, "gate", gate.measure), level=gate.confidence
    )
    if interval[0] and interval[1] == interval[2]:
        interval = _without_spread(
            interval[0], len(both), kind != "loss" and all(0 <= value <= 1 for pair in both for value in pair)
        )
    value, low, high = (interval[0] / point, *sorted(end / point for end in interval[1:]))
    state = BROKEN if high < -gate.fall else HELD if low >= -gate.fall else OPEN
    unit = "nats" if kind == "loss" else "points"
    verdict = {HELD: "holds", OPEN: "is open: too few items to say", BROKEN: "is broken"}[state]
    change = -value if lower else value
    ends = (-high, -low) if lower else (low, high)
    return (
        state,
        (
            f"gate on {gate.measure} {verdict}: {before} → {after} {change:+.2f} {unit} ({100 * gate.confidence:g} %:"
            f" {ends[0]:+.2f} to {ends[1]:+.2f}, n={len(both)}), allowed: {'a rise' if lower else 'a fall'} of"
            f" {gate.fall:g}"
        ),
    )


def _without_spread(difference: float, n: int, shares: bool) -> Interval:
    """The interval of n differences that are all the same, which drawing again takes for certain:
    of shares by their number, otherwise anything, since it is one item.
    """
    if not shares:
        return Interval(difference, -math.inf, math.inf)
    place = (difference + 1) / 2
    _, low, high = widened(Interval(place, place, place), n)
    return Interval(difference, 2 * low - 1, 2 * high - 1)
