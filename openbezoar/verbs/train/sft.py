"""``sft``: QLoRA fine-tuning with loss on the answers only.

Reads rows with a prompt and an answer. Writes ``adapter/`` (PEFT; with ``lora: none`` ``model/``), ``model.json``,
``metrics.jsonl`` and ``heldout.jsonl``.
"""

from __future__ import annotations

from typing import Any

from openbezoar.context import StepContext
from openbezoar.recipe.train_steps import Sft
from openbezoar.rows.forms import to_example
from openbezoar.training.fit import Bench
from openbezoar.training.objectives import sft_objective
from openbezoar.verbs.train.data import training_trees
from openbezoar.verbs.train.fit import continued, fitted, loaded, renderer_of, resolved, suited, write_model
from openbezoar.verbs.train.result import SftNumbers
from openbezoar.verbs.train.samples import sampler_of


def run(step: Sft, context: StepContext) -> dict[str, Any]:
    """Fine-tune the step's model on its rows."""
    renderer = renderer_of(step, context, step.loss_on)
    step = suited(step, context)
    trees, heldout = training_trees(step, step.sft, to_example, context, renderer, "row")
    continues = continued(step, context)
    bench = Bench.of(loaded(step, context, continues), step, renderer)
    objective = sft_objective(bench.scorer, heldout)
    numbers = fitted(step, context, bench, trees, objective, sampler_of(step, context, bench))
    write_model(step, context, bench.model, continues)
    about = {
        "heldout_rows": len(heldout),
        "answers_end_scored": bool(bench.formatter.end_ids),
        **resolved(step, context, bench.model),
    }
    result = SftNumbers.model_validate({**numbers, **about})
    return {**result.written(), "summary": result.line()}
