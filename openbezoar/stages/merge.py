"""``merge``: adapters into their base, added in fp32 and then cast; the drift is measured.

Writes ``model/`` (safetensors, config, tokenizer) and ``model.json``. The drift compares
the unmerged model, as it was trained, with the merged one on held-out rows: mean KL of the
next-token distributions and the greatest difference of an answer token's log-probability.
"""

from __future__ import annotations

from typing import Any

import torch

from openbezoar.chat import Formatter
from openbezoar.context import StepContext
from openbezoar.forest import Scorer
from openbezoar.models import Checkpoint, write_checkpoint
from openbezoar.recipe import Dpo, Merge, Sft
from openbezoar.records import Example
from openbezoar.training.data import Renderer, split_heldout
from openbezoar.training.load import DTYPES, dequantize_nf4, free, load_base, load_for_inference, merge_into


def run(step: Merge, context: StepContext) -> dict[str, Any]:
    """Merge the adapters of another step's model."""
    checkpoint = context.checkpoint(step.merge)
    rows = _drift_rows(step, context)
    unmerged, tokenizer = load_for_inference(checkpoint)
    renderer = Renderer(Formatter(tokenizer, checkpoint.prompt, context.recipe_folder), 1024, "truncate", context.counts)
    trees = renderer.examples(rows)
    before = _distributions(unmerged, trees)
    del unmerged
    free()

    merged = _merged(step, checkpoint).to(DTYPES[step.dtype])
    merged.config.dtype = DTYPES[step.dtype]
    merged.save_pretrained(str(context.out / "model"))
    tokenizer.save_pretrained(str(context.out / "model"))
    after = _distributions(merged.eval(), trees)
    drift = _drift(before, after)
    made = Checkpoint(context.name, str(context.out / "model"), (), "none", step.dtype, checkpoint.prompt, checkpoint.licence)
    write_checkpoint(context.out, made, context.run.path, context.folder(context.name))
    del merged
    free()
    summary = f"onto {step.onto}: KL {drift['kl']:.2e}, greatest log-probability difference {drift['max_logprob_difference']:.3f} on {drift['tokens']} tokens"
    return {"onto": step.onto, "dtype": step.dtype, **drift, "summary": summary}


def _merged(step: Merge, checkpoint: Checkpoint) -> Any:
    """The base in fp32 with all adapters added, the last one onto the base that was asked for."""
    older, last = checkpoint.adapters[:-1], checkpoint.adapters[-1:]
    # What the training step quantised is the 16-bit model, so that is where NF4's values come from.
    model: Any = load_base(checkpoint, older, "none", checkpoint.dtype)
    if step.onto == "dequantized" and checkpoint.quantize == "nf4":
        dequantize_nf4(model)
    model = model.float()
    for adapter in last:
        merge_into(model, adapter)
    return model


def _drift_rows(step: Merge, context: StepContext) -> list[Example]:
    """Rows given in the recipe, or those that the training step held out."""
    if step.drift is not None:
        return context.examples(step.drift)[: step.drift_rows]
    trained = context.recipe.steps[step.merge]
    assert isinstance(trained, (Sft, Dpo))
    if trained.heldout is not None:
        return context.examples(trained.heldout)[: step.drift_rows]
    rows = context.examples(trained.sft if isinstance(trained, Sft) else trained.dpo)
    return split_heldout(rows, trained.heldout_every, step.drift_rows)[1]


@torch.no_grad()
def _distributions(model: Any, trees: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per row: log-distributions at the answer's positions [tokens, vocabulary], and the answer's ids."""
    scorer = Scorer(model)
    found = []
    for (path,) in trees:
        start = list(path.scored).index(True)
        ids = torch.tensor([path.ids], device=scorer.device)
        hidden = scorer.trunk(input_ids=ids, use_cache=False).last_hidden_state[0, start - 1 : -1]
        found.append((scorer.logits(hidden).log_softmax(-1).cpu(), ids[0, start:].cpu()))
    return found


def _drift(before: list[tuple[torch.Tensor, torch.Tensor]], after: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """Mean KL(unmerged ‖ merged) per position, and differences of the answer tokens' log-probabilities."""
    kl, tokens, greatest, total = 0.0, 0, 0.0, 0.0
    for (p, ids), (q, _) in zip(before, after, strict=True):
        kl += float((p.exp() * (p - q)).sum())
        difference = (p - q).gather(1, ids[:, None]).abs()
        greatest, total, tokens = max(greatest, float(difference.max())), total + float(difference.sum()), tokens + len(ids)
    return {"kl": kl / tokens, "max_logprob_difference": greatest, "mean_logprob_difference": total / tokens, "rows": len(before), "tokens": tokens}
