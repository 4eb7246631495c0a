"""``sft``: QLoRA fine-tuning with loss on the answer only.

Reads rows with a prompt and an answer. Writes ``adapter/`` (PEFT), ``model.json``,
``metrics.jsonl`` and ``heldout.jsonl``.
"""

from __future__ import annotations

from typing import Any

from openbezoar.context import StepContext
from openbezoar.recipe import Sft
from openbezoar.training.data import require, split_heldout
from openbezoar.training.fit import fit, set_up, sft_objective


def run(step: Sft, context: StepContext) -> dict[str, Any]:
    """Fine-tune the step's model on its rows."""
    rows = context.examples(step.sft)
    if step.heldout is None:
        rows, held = split_heldout(rows, step.heldout_every, step.heldout_rows)
    else:
        held = context.examples(step.heldout)[: step.heldout_rows]
    bench = set_up(step, context, continues=step.adapter == "continue")
    trees, heldout = bench.renderer.examples(rows), bench.renderer.examples(held)
    require(trees, context.counts, "row")
    require(heldout, context.counts, "held-out row")
    numbers = fit(step, context, bench, trees, sft_objective(bench.scorer, heldout))
    return {
        **numbers,
        "heldout_rows": len(heldout),
        "answers_end_scored": bool(bench.formatter.end_ids),
        "summary": f"{numbers['steps']} steps on {len(trees)} rows; held-out loss {numbers['heldout_loss_before']:.3f} → {numbers['heldout_loss_after']:.3f}",
    }
