"""``dpo``: preference training of a new adapter, or of all weights; the reference is the model as given.

The model as given is held with its older adapters merged in, so that "adapter off" is the
reference exactly. Reads preference pairs. Writes ``adapter/`` (PEFT; with ``lora: none`` ``model/``), ``model.json``,
``metrics.jsonl``, ``heldout.jsonl`` and, with ``reference: cached``,
``reference.safetensors``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from openbezoar.context import StepContext
from openbezoar.errors import RecipeError
from openbezoar.forest import Scorer, Tree
from openbezoar.machine import distributed
from openbezoar.models.dropout import without_base_dropout
from openbezoar.recipe.losses import LOSSES
from openbezoar.recipe.train_steps import Dpo
from openbezoar.rows.forms import to_pair
from openbezoar.training.data import Split
from openbezoar.training.fit import Bench
from openbezoar.training.loop import Objective
from openbezoar.training.objectives import Reference, frozen_reference, preference_objective, same_pass_reference
from openbezoar.training.reference import REFERENCE, ReferenceCache, passes_of, reference_key
from openbezoar.verbs.train.data import training_trees
from openbezoar.verbs.train.fit import fitted, loaded, reference_of, renderer_of, resolved, suited, write_model
from openbezoar.verbs.train.result import DpoNumbers
from openbezoar.verbs.train.samples import sampler_of


def run(step: Dpo, context: StepContext) -> dict[str, Any]:
    """Train a new adapter on the step's pairs."""
    renderer = renderer_of(step, context)
    step = suited(step, context)
    rows = trees, heldout = training_trees(step, step.dpo, to_pair, context, renderer, "pair")
    bench = Bench.of(loaded(step, context, continues=False), step, renderer)
    row = LOSSES[step.loss]
    objective = objective_of(step, bench, rows, lambda: _reference(step, context, bench, rows))
    numbers = fitted(step, context, bench, trees, objective, sampler_of(step, context, bench))
    write_model(step, context, bench.model)
    about = {
        "heldout_rows": len(heldout),
        "loss": step.loss,
        **step.constants,
        "reference": step.reference if row.needs_reference else "none",
        "answers_end_scored": bool(bench.formatter.end_ids),
        **resolved(step, context, bench.model),
    }
    result = DpoNumbers.model_validate({**numbers, **about})
    return {**result.written(), "summary": result.line()}


def objective_of(step: Dpo, bench: Bench[Scorer], rows: Split, reference: Callable[[], Reference]) -> Objective:
    """What a preference training minimises. The bench's model loses its base's own dropout.

    reference: is asked for one where the loss has one. Raises RecipeError for a loss that wants the
    whole batch in one pass, where the settings do not give it.
    """
    without_base_dropout(bench.model)
    row = LOSSES[step.loss]
    if row.whole_batch:
        _check_one_pass(step, bench, rows.trained)
    return preference_objective(
        row,
        step.constants,
        scorer=bench.scorer,
        heldout=rows.heldout,
        reference=reference() if row.needs_reference else None,
    )


def _check_one_pass(step: Dpo, bench: Bench[Scorer], trees: Sequence[Tree]) -> None:
    """Refuse what would cut a batch into passes: a small token budget, several processes. Raises RecipeError."""
    if distributed.world() > 1:
        raise RecipeError(
            f"loss '{step.loss}' estimates a KL divergence over the whole batch, which several processes would split;"
            " run it in one process"
        )
    largest = sorted(sum(len(path.ids) for path in tree) for tree in trees)[-step.batch :]
    longest = max(len(path.ids) for tree in trees for path in tree)
    needed = 2 * len(largest) * longest if bench.scorer.plain else sum(largest)
    if needed > step.tokens:
        raise RecipeError(
            f"loss '{step.loss}' estimates a KL divergence over the whole batch, which must therefore be one pass, and"
            f" tokens is {step.tokens}; set tokens to {needed} or more, or lower batch"
        )


def _reference(step: Dpo, context: StepContext, bench: Bench[Scorer], rows: Split) -> Reference:
    """As the recipe asks: in each pass, or computed before the first and kept."""
    scorer = bench.scorer
    if step.reference == "same pass":
        return reference_of(step, context, scorer)
    # nothing is trained yet, so that a whole model is still its own reference
    as_given = frozen_reference(scorer) if step.whole else same_pass_reference(scorer)
    checkpoint = context.checkpoint(step.model)
    key = reference_key(
        checkpoint,
        bench.formatter,
        step,
        device=scorer.device,
        seed=context.seed,
        trees=rows.trained,
        heldout=rows.heldout,
    )
    cache = ReferenceCache(context.out / REFERENCE, key, context.folder(context.name) / REFERENCE)
    if cache.stale and not cache.values:
        context.progress.say(
            f"reference log-probabilities are computed anew: the kept ones differ in {', '.join(cache.stale)}"
        )

    passes = list(passes_of(*rows, scorer, step=step, seed=context.seed))
    cache.fill(passes, as_given, step.save_every, progress=context.progress)
    return lambda chosen: cache(chosen, scorer.device)
