"""What sft and dpo have in common: load, render, train, save the adapter and ``model.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.forest import Scorer, Tree
from openbezoar.models.load import free, load_for_training, load_tokenizer
from openbezoar.models.references import Checkpoint, write_checkpoint
from openbezoar.recipe.train_steps import Training
from openbezoar.stats.seeds import step_seed
from openbezoar.training import checkpointing, distributed
from openbezoar.training.data import Renderer
from openbezoar.training.loop import Objective, train


@dataclass
class Bench:
    """A model on the bench, with what is needed to train it."""

    model: Any
    scorer: Scorer
    formatter: Formatter
    renderer: Renderer
    checkpoint: Checkpoint
    continues: bool


def renderer_of(step: Training, context: StepContext) -> Renderer:
    """What renders the step's rows: needs the model's tokenizer only, so that a mistake in the rows
    shows before the model is loaded.
    """
    checkpoint = context.checkpoint(step.model)
    # one process fetches and converts, the others find it done
    distributed.from_first(lambda: str(checkpoint.folder()))
    formatter = Formatter(load_tokenizer(checkpoint.folder()), checkpoint.prompt)
    for note in formatter.notes:
        context.progress.say(f"  {step.model}: {note}")
    return Renderer(formatter, step.max_length, step.too_long, context.counts)


def set_up(step: Training, context: StepContext, continues: bool, renderer: Renderer | None = None) -> Bench:
    """Load the step's model for training. ``continues``: go on with its last adapter where it has
    one. ``renderer``: of the same step.
    """
    checkpoint = context.checkpoint(step.model)
    continues = continues and bool(checkpoint.adapters)
    renderer = renderer or renderer_of(step, context)
    model = load_for_training(
        checkpoint, step.lora, step.quantize, step.dtype, continues, step_seed(context.seed, "adapter"), step.nf4
    )
    checkpointing.apply(model, step)
    return Bench(model, Scorer(model, step.tokens), renderer.formatter, renderer, checkpoint, continues)


def fit(
    step: Training, context: StepContext, bench: Bench, trees: Sequence[Tree], objective: Objective
) -> dict[str, Any]:
    """Train, write ``adapter/`` (PEFT's format) and ``model.json``; returns the manifest's numbers."""
    numbers = train(bench.model, bench.scorer, trees, objective, step, context.out, context.progress, context.seed)
    if distributed.rank() == 0:
        _write(step, context, bench)
    if bench.formatter.boundary_shifts:
        context.counts.add("token would span prompt and answer", bench.formatter.boundary_shifts)
    if bench.formatter.notes:
        numbers["prompt_notes"] = list(bench.formatter.notes)
    if torch.cuda.is_available():
        numbers["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    free()
    return numbers


def _write(step: Training, context: StepContext, bench: Bench) -> None:
    """The adapter and what it belongs to."""
    adapter = context.out / "adapter"
    for config in bench.model.peft_config.values():
        for name, value in vars(config).items():
            if isinstance(value, set):  # which PEFT writes in the order of this process's hashes
                setattr(config, name, sorted(value))
    bench.model.save_pretrained(str(adapter), save_embedding_layers=False)
    given = bench.checkpoint
    older = given.adapters[:-1] if bench.continues else given.adapters
    dtype = given.dtype if step.dtype == "float32" else step.dtype
    made = Checkpoint(
        context.name, given.base, (*older, adapter), step.quantize, dtype, given.prompt, given.licence, given.thoughts
    )
    write_checkpoint(context.out, made, context.run.path, context.folder(context.name))
