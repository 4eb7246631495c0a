"""What sft and dpo have in common: load, render, train, save the adapter and ``model.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openbezoar.chat import Formatter
from openbezoar.context import StepContext
from openbezoar.errors import ModelError
from openbezoar.forest import Scorer, Tree
from openbezoar.models import Checkpoint, write_checkpoint
from openbezoar.recipe import Training
from openbezoar.runs import step_seed
from openbezoar.training import checkpointing
from openbezoar.training.data import Renderer
from openbezoar.training.load import free, load_for_training
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


def set_up(step: Training, context: StepContext, continues: bool) -> Bench:
    """Load the step's model for training. ``continues``: go on with its last adapter where it has one."""
    checkpoint = context.checkpoint(step.model)
    continues = continues and bool(checkpoint.adapters)
    model, tokenizer = load_for_training(checkpoint, step.lora, step.quantize, step.dtype, continues, step_seed(context.seed, "adapter"))
    checkpointing.apply(model, step)
    formatter = Formatter(tokenizer, checkpoint.prompt, context.recipe_folder)
    renderer = Renderer(formatter, step.max_length, step.too_long, context.counts)
    return Bench(model, Scorer(model, step.tokens), formatter, renderer, checkpoint, continues)


def fit(step: Training, context: StepContext, bench: Bench, trees: Sequence[Tree], objective: Objective) -> dict[str, Any]:
    """Train, write ``adapter/`` (PEFT's format) and ``model.json``; returns the manifest's numbers."""
    numbers = train(bench.model, bench.scorer, trees, objective, step, context.out, context.progress, context.seed)
    adapter = context.out / "adapter"
    bench.model.save_pretrained(str(adapter), save_embedding_layers=False)
    given = bench.checkpoint
    older = given.adapters[:-1] if bench.continues else given.adapters
    made = Checkpoint(
        context.name, given.base, (*older, adapter), step.quantize, given.dtype if step.dtype == "float32" else step.dtype, given.prompt, given.licence
    )
    write_checkpoint(context.out, made, context.run.path, context.folder(context.name))
    if bench.formatter.boundary_shifts:
        context.counts.add("token would span prompt and answer", bench.formatter.boundary_shifts)
    if torch.cuda.is_available():
        numbers["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    free()
    return numbers


def sft_objective(scorer: Scorer, heldout: Sequence[Tree]) -> Objective:
    """Mean negative log-likelihood of the supervised tokens of an optimiser step."""

    def loss(trees: Sequence[Tree], whole: float) -> tuple[Tensor, dict[str, float]]:
        total = torch.stack([path.sum() for tree in scorer.score(trees) for path in tree]).sum()
        return -total / whole, {}

    def measure() -> dict[str, float]:
        scores = scorer.logprobs(heldout)
        tokens = sum(len(path) for tree in scores for path in tree)
        return {"loss": -float(sum(path.double().sum() for tree in scores for path in tree)) / tokens}

    def check(metrics: dict[str, float]) -> None:
        return None

    return Objective(supervised_tokens, loss, measure, check)


def supervised_tokens(tree: Tree) -> float:
    """Tokens of a tree that carry loss."""
    return float(sum(path.n_scored for path in tree))


def one(tree: Tree) -> float:
    """A pair's weight."""
    return 1.0


def checked_first_loss(expected: float, tolerance: float = 1e-3) -> Callable[[dict[str, float]], None]:
    """A check that the loss before the first update is what policy = reference gives."""

    def check(metrics: dict[str, float]) -> None:
        if abs(metrics["loss"] - expected) > tolerance:
            raise ModelError(
                f"the loss before the first update is {metrics['loss']:.6f}, where policy and reference are the same model and it must be {expected:.6f}; "
                "the reference is not the model as given (please report this)"
            )

    return check
