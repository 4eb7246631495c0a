"""``kto``: training of a new adapter, or of all weights, on answers that were liked or not; the reference is
the model as given.

As in ``dpo``, the model as given is held with its older adapters merged in, so that "adapter off" is the
reference exactly. Reads unpaired rows, and pairs. Writes ``adapter/`` (PEFT; with ``lora: none`` ``model/``),
``model.json``, ``metrics.jsonl`` and ``heldout.jsonl``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from openbezoar.context import StepContext
from openbezoar.forest import Scorer, Tree
from openbezoar.models.dropout import without_base_dropout
from openbezoar.recipe.train_steps import Kto
from openbezoar.rows.forms import to_answers
from openbezoar.training.data import Split
from openbezoar.training.fit import Bench
from openbezoar.training.loop import Objective
from openbezoar.training.objectives import Reference
from openbezoar.training.trees import UnpairedTree
from openbezoar.training.unpaired import unpaired_objective
from openbezoar.verbs.train.data import training_trees
from openbezoar.verbs.train.fit import fitted, loaded, reference_of, renderer_of, resolved, suited, write_model
from openbezoar.verbs.train.result import KtoNumbers
from openbezoar.verbs.train.samples import sampler_of

MOST = 4 / 3  # liked answers to others, weighted


def run(step: Kto, context: StepContext) -> dict[str, Any]:
    """Train a new adapter on the step's answers."""
    renderer = renderer_of(step, context)
    step = suited(step, context)
    rows = trees, heldout = training_trees(step, step.kto, to_answers, context, renderer, "answer")
    liked = liked_among(trees)
    if line := imbalance(step, liked, len(trees) - liked):
        context.progress.say(f"  {context.name}: {line}")
    bench = Bench.of(loaded(step, context, continues=False), step, renderer)
    objective = objective_of(step, bench, rows, lambda: reference_of(step, context, bench.scorer))
    numbers = fitted(step, context, bench, trees, objective, sampler_of(step, context, bench))
    write_model(step, context, bench.model)
    about = {
        "heldout_rows": len(heldout),
        "heldout_liked": liked_among(heldout),
        "liked": liked,
        **step.constants,
        "answers_end_scored": bool(bench.formatter.end_ids),
        **resolved(step, context, bench.model),
    }
    result = KtoNumbers.model_validate({**numbers, **about})
    return {**result.written(), "summary": result.line()}


def objective_of(step: Kto, bench: Bench[Scorer], rows: Split, reference: Callable[[], Reference]) -> Objective:
    """What the training minimises. The bench's model loses its base's own dropout. reference: is asked for one."""
    without_base_dropout(bench.model)
    return unpaired_objective(
        step.constants,
        scorer=bench.scorer,
        heldout=rows.heldout,
        reference=reference(),
        max_length=step.max_length,
    )


def liked_among(trees: Sequence[Tree]) -> int:
    """How many of the trees' answers were liked."""
    return sum(cast(UnpairedTree, tree).liked for tree in trees)


def imbalance(step: Kto, liked: int, disliked: int) -> str:
    """What is said of weights that do not balance the answers; "" where they do."""
    good, bad = liked * step.desirable_weight, disliked * step.undesirable_weight
    if bad and 1 <= round(good / bad, 2) <= round(MOST, 2):
        return ""
    counted = f"{liked} liked and {disliked} other answers, weighted {good:g} : {bad:g}"
    if not liked or not disliked:
        return f"{counted}: all answers are of one kind; bring some of the other"
    low, high = disliked * step.undesirable_weight / liked, liked * step.desirable_weight / disliked
    return (
        f"{counted}; from 1:1 to 4:3 is advised: set desirable_weight from {low:.3g} to {MOST * low:.3g}, or"
        f" undesirable_weight from {high / MOST:.3g} to {high:.3g}"
    )
