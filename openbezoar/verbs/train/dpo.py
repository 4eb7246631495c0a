"""``dpo``: preference training of a new adapter; the reference is the model as given.

The model as given is held with its older adapters merged in, so that "adapter off" is the
reference exactly. Reads preference pairs. Writes ``adapter/`` (PEFT), ``model.json``,
``metrics.jsonl``, ``heldout.jsonl`` and, with ``reference: cached``,
``reference.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openbezoar.context import StepContext
from openbezoar.errors import RecipeError
from openbezoar.forest import Tree
from openbezoar.models.dropout import without_base_dropout
from openbezoar.recipe.train_steps import LOSS_SETTINGS, Dpo
from openbezoar.rows.forms import to_pair
from openbezoar.training import distributed
from openbezoar.training.losses import PREFERENCE_LOSSES, LossSettings
from openbezoar.training.objectives import Reference, preference_objective, same_pass_reference
from openbezoar.training.reference import REFERENCE, ReferenceCache, passes_of, reference_key
from openbezoar.verbs.train.data import training_trees
from openbezoar.verbs.train.fit import Bench, fit, renderer_of, set_up


def run(step: Dpo, context: StepContext) -> dict[str, Any]:
    """Train a new adapter on the step's pairs."""
    renderer = renderer_of(step, context)
    trees, heldout = training_trees(step, step.dpo, to_pair, context, renderer, "pair")
    bench = set_up(step, context, continues=False, renderer=renderer)
    without_base_dropout(bench.model)
    row = PREFERENCE_LOSSES[step.loss]
    if row.whole_batch:
        _check_one_pass(step, bench, trees)
    reference = _reference(step, context, bench, trees, heldout) if row.needs_reference else None
    numbers = fit(
        step, context, bench, trees, preference_objective(row, LossSettings.of(step), bench.scorer, heldout, reference)
    )
    return {
        **numbers,
        "heldout_rows": len(heldout),
        "loss": step.loss,
        **{name: getattr(step, name) for name in LOSS_SETTINGS[step.loss]},
        "reference": step.reference if row.needs_reference else "none",
        "answers_end_scored": bool(bench.formatter.end_ids),
        "summary": (
            f"{numbers['steps']} steps on {len(trees)} pairs; held-out loss {numbers['heldout_loss_before']:.3f} →"
            f" {numbers['heldout_loss_after']:.3f}, reward accuracy → {numbers['heldout_accuracy_after']:.3f}"
            f" (n={len(heldout)})"
        ),
    }


def _check_one_pass(step: Dpo, bench: Bench, trees: Sequence[Tree]) -> None:
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


def _reference(
    step: Dpo, context: StepContext, bench: Bench, trees: Sequence[Tree], heldout: Sequence[Tree]
) -> Reference:
    """As the recipe asks: in each pass, or computed before the first and kept."""
    scorer = bench.scorer
    same_pass = same_pass_reference(scorer)
    if step.reference == "same pass":
        return same_pass
    key = reference_key(bench.checkpoint, bench.formatter, step, scorer.device, context.seed, trees, heldout)
    cache = ReferenceCache(context.out / REFERENCE, key, context.folder(context.name) / REFERENCE)
    if cache.stale and not cache.values:
        context.progress.say(
            f"reference log-probabilities are computed anew: the kept ones differ in {', '.join(cache.stale)}"
        )

    def filled() -> dict[bytes, tuple[float, float]]:
        cache.fill(
            list(passes_of(trees, heldout, scorer, step, context.seed)), same_pass, step.save_every, context.progress
        )
        return cache.values

    cache.values = distributed.from_first(filled)
    return lambda chosen: cache(chosen, scorer.device)
