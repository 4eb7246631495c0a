"""``merge``: adapters into their base, added in fp32 and then cast; the drift is measured.

Writes ``model/`` (safetensors, config, tokenizer) and ``model.json``. The drift compares
the unmerged model, as it was trained, with the merged one on held-out rows: the loss of
both, the mean KL of the next-token distributions, and the greatest difference of an answer
token's log-probability.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from openbezoar.chat import Formatter
from openbezoar.context import StepContext
from openbezoar.forest import Scorer, Tree
from openbezoar.models import Checkpoint, write_checkpoint
from openbezoar.recipe import Dpo, Merge, Sft
from openbezoar.records import Example
from openbezoar.training.data import Renderer
from openbezoar.training.load import DTYPES, dequantize_nf4, free, load_base, load_for_inference, merge_into


def run(step: Merge, context: StepContext) -> dict[str, Any]:
    """Merge the adapters of another step's model."""
    checkpoint = context.checkpoint(step.merge)
    rows = _drift_rows(step, context)
    unmerged, tokenizer = load_for_inference(checkpoint)
    renderer = Renderer(Formatter(tokenizer, checkpoint.prompt, context.recipe_folder), 1024, "truncate", context.counts)
    trees = renderer.examples(rows)
    before = list(_distributions(unmerged, trees))
    unmerged_loss = _loss(before)
    del unmerged
    free()

    tried: dict[str, dict[str, Any]] = {}
    for onto in ("original", "dequantized") if step.onto == "best" and checkpoint.quantize == "nf4" else ("original",) if step.onto == "best" else (step.onto,):
        merged = _merged(onto, checkpoint).to(DTYPES[step.dtype])
        tried[onto] = _drift(before, merged.eval(), trees)
        if min(tried, key=lambda name: tried[name]["loss"]) == onto:
            merged.config.dtype = DTYPES[step.dtype]
            merged.save_pretrained(str(context.out / "model"))
        del merged
        free()
    chosen = min(tried, key=lambda name: tried[name]["loss"])
    tokenizer.save_pretrained(str(context.out / "model"))
    made = Checkpoint(context.name, str(context.out / "model"), (), "none", step.dtype, checkpoint.prompt, checkpoint.licence)
    write_checkpoint(context.out, made, context.run.path, context.folder(context.name))
    losses = ", ".join(f"{tried[name]['loss']:.3f} merged onto {name}" for name in tried)
    summary = f"held-out loss {unmerged_loss:.3f} unmerged, {losses}; KL {tried[chosen]['kl']:.2e}"
    return {
        "onto": chosen,
        "dtype": step.dtype,
        "loss_unmerged": unmerged_loss,
        "losses": {name: d["loss"] for name, d in tried.items()},
        **tried[chosen],
        "summary": summary,
    }


def _merged(onto: str, checkpoint: Checkpoint) -> Any:
    """The base in fp32 with all adapters added, the last one onto the base that was asked for."""
    older, last = checkpoint.adapters[:-1], checkpoint.adapters[-1:]
    # What the training step quantised is the 16-bit model, so that is where NF4's values come from.
    model: Any = load_base(checkpoint, older, "none", checkpoint.dtype)
    if onto == "dequantized" and checkpoint.quantize == "nf4":
        dequantize_nf4(model)
    model = model.float()
    for adapter in last:
        merge_into(model, adapter)
    return model


def _drift_rows(step: Merge, context: StepContext) -> list[Example]:
    """Rows given in the recipe, or those that the training step held out."""
    if step.drift is not None:
        return context.examples(step.drift, step.drift_rows)
    trained = context.recipe.steps[step.merge]
    assert isinstance(trained, (Sft, Dpo))
    if trained.heldout is not None:
        return context.examples(trained.heldout, step.drift_rows)
    return context.examples(trained.sft if isinstance(trained, Sft) else trained.dpo, step.drift_rows, trained.heldout_every)


Distributions = Iterable[tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def _distributions(model: Any, trees: Sequence[Tree]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Row by row: float32 log-distributions at the answer's positions [tokens, vocabulary], and the answer's ids."""
    scorer = Scorer(model, plain=True)
    for (path,) in trees:
        start = list(path.scored).index(True)
        ids = torch.tensor([path.ids], device=scorer.device)
        hidden = scorer.trunk(input_ids=ids, use_cache=False).last_hidden_state[0, start - 1 : -1]
        yield scorer.logits(hidden).log_softmax(-1).cpu(), ids[0, start:].cpu()


def _loss(rows: Distributions) -> float:
    """Mean negative log-likelihood of an answer token."""
    picked = torch.cat([log.gather(1, ids[:, None])[:, 0] for log, ids in rows])
    return -float(picked.mean())


def _drift(before: Distributions, merged: Any, trees: Sequence[Tree]) -> dict[str, Any]:
    """Loss of the merged model, mean KL(unmerged ‖ merged) per position, and differences of the answer tokens' log-probabilities."""
    kl, tokens, greatest, total, loss, rows = 0.0, 0, 0.0, 0.0, 0.0, 0
    for (p, ids), (q, _) in zip(before, _distributions(merged, trees), strict=True):
        kl += float((p.exp() * (p - q)).sum())
        difference = (p - q).gather(1, ids[:, None]).abs()
        loss -= float(q.gather(1, ids[:, None]).sum())
        greatest, total, tokens, rows = max(greatest, float(difference.max())), total + float(difference.sum()), tokens + len(ids), rows + 1
    return {
        "loss": loss / tokens,
        "kl": kl / tokens,
        "max_logprob_difference": greatest,
        "mean_logprob_difference": total / tokens,
        "rows": rows,
        "tokens": tokens,
    }
