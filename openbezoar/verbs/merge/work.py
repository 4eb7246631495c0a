"""``merge``: adapters into their base, added in fp32 and then cast; the drift is measured.

Writes ``model/`` (safetensors, config, tokenizer) and ``model.json``. Tensors are merged and
written one after another; then the unmerged model, as it was trained, is compared with the
one that was written, loaded again, on held-out rows: the loss of both, the mean KL of the
next-token distributions, and the greatest difference of an answer token's log-probability.
One model is in memory at a time, in 16 bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError
from openbezoar.forest import Scorer, Tree
from openbezoar.forest.head import log_distribution
from openbezoar.models import shards
from openbezoar.models.driving import in_all_processes
from openbezoar.models.load import DTYPES, device, free, load_base, load_for_inference
from openbezoar.models.references import Checkpoint, write_checkpoint
from openbezoar.models.save import save_settings
from openbezoar.recipe.order import lineage
from openbezoar.recipe.train_steps import Dpo, Kto, Merge, Sft
from openbezoar.rows.forms import to_answers
from openbezoar.rows.records import Example
from openbezoar.training.data import HeldOut, Renderer
from openbezoar.training.encode import label_of
from openbezoar.verbs.merge.result import MergeNumbers

LONGEST = 1024
"""Most tokens of a row on which the drift is measured."""


def run(step: Merge, context: StepContext) -> dict[str, Any]:
    """Merge the adapters of another step's model."""
    checkpoint = context.checkpoint(step.merge)
    rows = _drift_rows(step, context)
    unmerged, tokenizer = load_for_inference(checkpoint)
    renderer = Renderer(Formatter(tokenizer, checkpoint.prompt), LONGEST, "truncate", context.counts)
    trees = renderer.examples(rows)
    if not trees:
        raise DataError(
            f"none of the rows for the drift can be used, {LONGEST} tokens at most ({context.counts}); name others with"
            " 'drift'"
        )
    before = _Answers.of(unmerged, trees)
    unmerged_loss = before.loss()
    del unmerged
    free()

    tried: dict[str, dict[str, Any]] = {}
    for onto in (
        ("original", "dequantized")
        if step.onto == "best" and checkpoint.quantize == "nf4"
        else ("original",)
        if step.onto == "best"
        else (step.onto,)
    ):
        folder = context.out / f"model-{onto}"
        shutil.rmtree(folder, ignore_errors=True)
        mended = _write(onto, checkpoint, step, folder)
        tokenizer.save_pretrained(str(folder))
        tried[onto] = _drift(
            before, Checkpoint(onto, str(folder.resolve()), (), "none", step.dtype, checkpoint.prompt), trees
        )
        free()
        chosen = min(tried, key=lambda name: tried[name]["loss"])
        for other in tried.keys() - {chosen}:
            shutil.rmtree(context.out / f"model-{other}", ignore_errors=True)
    shutil.rmtree(context.out / "model", ignore_errors=True)
    (context.out / f"model-{chosen}").rename(context.out / "model")
    merged = Checkpoint(
        context.name,
        str(context.out / "model"),
        (),
        "none",
        step.dtype,
        checkpoint.prompt,
        checkpoint.licence,
        checkpoint.thoughts,
    )
    write_checkpoint(context.out, merged, context.run.path, published=context.folder(context.name))
    for words in mended:
        context.progress.warn(f"  {context.name}: the base's generation settings cannot be saved as they are: {words}")
    losses = ", ".join(f"{tried[name]['loss']:.3f} merged onto {name}" for name in tried)
    summary = f"held-out loss {unmerged_loss:.3f} unmerged, {losses}; KL {tried[chosen]['kl']:.2e}"
    about = {
        "onto": chosen,
        "dtype": step.dtype,
        "loss_unmerged": unmerged_loss,
        "losses": {name: d["loss"] for name, d in tried.items()},
        **tried[chosen],
        "generation_settings": mended,
        "summary": summary,
    }
    return MergeNumbers.model_validate(about).written()


def _write(onto: str, checkpoint: Checkpoint, step: Merge, folder: Path) -> list[str]:
    """The base with all adapters added, the last one onto the base that was asked for, as shards
    with their config; what was changed in its generation settings.
    """
    older, last = checkpoint.adapters[:-1], checkpoint.adapters[-1]
    source, dtype = checkpoint.folder(), DTYPES[step.dtype]
    # What the training step quantised is the 16-bit model, so that is where NF4's values come from.
    nf4 = onto == "dequantized" and checkpoint.quantize == "nf4"
    model = shards.skeleton(source)
    weights = shards.weights_of(
        source, DTYPES[checkpoint.dtype], device(), older=older, last=last, dtype=dtype, nf4=nf4
    )
    shards.write(shards.of_model(weights, model), folder)
    return save_settings(model.config, source, folder, dtype)


def _drift_rows(step: Merge, context: StepContext) -> list[Example]:
    """Rows given in the recipe, or those that the training step held out."""
    if step.drift is not None:
        return context.examples(step.drift, step.drift_rows)
    steps = context.recipe.steps
    # of a choice the first step chosen among: all of them held out the same rows (recipe.comparable)
    behind = (steps[name] for name in lineage(steps, step.merge))
    trained = next(one for one in behind if isinstance(one, (Sft, Dpo, Kto)))
    own = trained.sft if isinstance(trained, Sft) else trained.dpo if isinstance(trained, Dpo) else trained.kto
    rows, every = (own, trained.heldout_every) if trained.heldout is None else (trained.heldout, 1)
    if not isinstance(trained, Kto):
        return context.examples(rows, step.drift_rows, every)
    # Liked or not, so that they are the rows that were held out; of a pair the chosen answer.
    holds = None if trained.heldout is not None else HeldOut(trained.heldout_every, trained.heldout_rows)
    answers = context.converted(
        rows, to_answers, step.drift_rows, takes=None if holds is None else lambda one: holds.takes(label_of(one))
    )
    return [Example(one.id, one.prompt, one.answer) for one, *_ in answers]


@dataclass
class _Answers:
    """What a model says at the answers' positions, as hidden states: its head makes the
    distributions again when they are needed.

    Row by row, hidden states [tokens, hidden] and the answer's ids [tokens]. A row's
    distributions take vocabulary / hidden times as much, and all rows' can pass the model's own size.
    """

    scorer: Scorer
    rows: list[tuple[Tensor, Tensor]]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, trees: Sequence[Tree]) -> _Answers:
        scorer = Scorer(model, plain=True)
        hidden = dict(scorer.deal(scorer, "before_answer", [path for (path,) in trees], lambda path: len(path.ids)))
        rows = []
        for place, (path,) in enumerate(trees):
            ids = torch.tensor(path.ids[list(path.scored).index(True) :], device=scorer.device)
            rows.append((hidden[place].to(scorer.device), ids))
        # only the head is still needed; the rest can go
        scorer.model = scorer.trunk = scorer.base = nn.Identity()
        return cls(scorer, rows)

    @torch.no_grad()
    def distributions(self, row: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float32 log-distributions [tokens, vocabulary] and ids, a few tokens at a time."""
        hidden, ids = self.rows[row]
        for part, wanted in zip(
            torch.split(hidden, self.scorer.shaping.chunk), torch.split(ids, self.scorer.shaping.chunk), strict=True
        ):
            yield log_distribution(self.scorer.logits(part)), wanted

    def loss(self) -> float:
        """Mean negative log-likelihood of an answer token."""
        picked = torch.cat(
            [log.gather(1, ids[:, None])[:, 0] for row in range(len(self.rows)) for log, ids in self.distributions(row)]
        )
        return -float(picked.mean())


@in_all_processes(Checkpoint.folder)
def _as_written(merged: Checkpoint) -> tuple[Any, Any]:
    """The merged model, and no tokenizer."""
    return load_base(merged, (), "none", dtype=merged.dtype).eval(), None


@torch.no_grad()
def _drift(before: _Answers, merged: Checkpoint, trees: Sequence[Tree]) -> dict[str, Any]:
    """Loss of the merged model, mean KL(unmerged ‖ merged) per position, and differences of the
    answer tokens' log-probabilities.
    """
    model, _ = _as_written(merged)
    after = _Answers.of(model, trees)
    del model
    kl, tokens, greatest, total, loss = 0.0, 0, 0.0, 0.0, 0.0
    for row in range(len(trees)):
        for (p, ids), (q, _) in zip(before.distributions(row), after.distributions(row), strict=True):
            kl += float((p.exp() * (p - q)).sum())
            difference = (p - q).gather(1, ids[:, None]).abs()
            loss -= float(q.gather(1, ids[:, None]).sum())
            greatest, total, tokens = (
                max(greatest, float(difference.max())),
                total + float(difference.sum()),
                tokens + len(ids),
            )
    return {
        "loss": loss / tokens,
        "kl": kl / tokens,
        "max_logprob_difference": greatest,
        "mean_logprob_difference": total / tokens,
        "rows": len(trees),
        "tokens": tokens,
    }
