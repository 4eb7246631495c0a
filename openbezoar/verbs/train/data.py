"""The rows of a training step as trees of token ids on disk, some of them held out."""

from __future__ import annotations

from openbezoar.context import StepContext
from openbezoar.recipe.blocks import DataRef
from openbezoar.recipe.train_steps import Training
from openbezoar.training.data import Renderer, Split, split_trees
from openbezoar.training.encode import Convert


def training_trees(
    step: Training,
    ref: DataRef,
    convert: Convert,
    context: StepContext,
    renderer: Renderer,
    what: str,
    processes: int | None = None,
) -> Split:
    """``split_trees`` of a step whose rows are ``ref``, on disk in the step's work folder."""
    heldout = step.heldout
    return split_trees(
        step,
        context.stream(ref),
        convert,
        renderer,
        what=what,
        folder=context.out,
        heldout=None if heldout is None else lambda: context.converted(heldout, convert, step.heldout_rows),
        processes=processes,
        say=context.progress.say,
    )
