"""The rows of a training step as trees of token ids on disk, some of them held out."""

from __future__ import annotations

from itertools import chain

from openbezoar.context import StepContext
from openbezoar.inspection.steps import Drawn, write_look
from openbezoar.machine import distributed
from openbezoar.recipe.blocks import DataRef
from openbezoar.recipe.train_steps import Training
from openbezoar.rows.records import Example, Pair, Unpaired
from openbezoar.training.data import Renderer, Split, split_trees
from openbezoar.training.encode import Convert, each


def training_trees(
    step: Training,
    ref: DataRef,
    convert: Convert,
    context: StepContext,
    renderer: Renderer,
    what: str,
    processes: int | None = None,
) -> Split:
    """``split_trees`` of a step whose rows are ``ref``, on disk in the step's work folder; a look at
    some of them is written there.
    """
    heldout, drawn = step.heldout, Drawn()

    def held_out(rows: DataRef) -> list[Example | Pair | Unpaired]:
        converted: list[Example | Pair | tuple[Unpaired, ...]] = context.converted(rows, convert, step.heldout_rows)
        return list(chain.from_iterable(each(one) for one in converted))

    split = split_trees(
        step,
        drawn.through(context.stream(ref)),
        convert,
        renderer,
        what=what,
        folder=context.out,
        heldout=None if heldout is None else lambda: held_out(heldout),
        processes=processes,
        say=context.progress.say,
    )
    if distributed.rank() == 0:
        write_look(context.out, drawn, renderer.encoder, convert)
    return split
