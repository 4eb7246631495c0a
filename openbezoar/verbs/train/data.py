"""The rows of a training step as trees of token ids on disk, some of them held out."""

from __future__ import annotations

from collections.abc import Sequence

from openbezoar.context import StepContext
from openbezoar.errors import DataError
from openbezoar.forest import Tree
from openbezoar.recipe.blocks import DataRef
from openbezoar.recipe.train_steps import Training
from openbezoar.rows.records import Counts, Example, Pair
from openbezoar.training.data import Renderer, T
from openbezoar.training.encode import Convert, encode_rows
from openbezoar.training.trees import TreeStore


def is_held_out(place: int, every: int, most: int) -> bool:
    """Whether row ``place`` (from 0) is held out: each ``every``-th row, ``most`` at most."""
    turn, rest = divmod(place + 1, every)
    return rest == 0 and turn <= most


def split_heldout(rows: Sequence[T], every: int, most: int) -> tuple[list[T], list[T]]:
    """(training rows, held-out rows), by ``is_held_out``."""
    held = [is_held_out(i, every, most) for i in range(len(rows))]
    return [r for r, h in zip(rows, held, strict=True) if not h], [r for r, h in zip(rows, held, strict=True) if h]


def training_trees(
    step: Training,
    ref: DataRef,
    convert: Convert,
    context: StepContext,
    renderer: Renderer,
    what: str,
    processes: int | None = None,
) -> tuple[Sequence[Tree], Sequence[Tree]]:
    """(trees to train on, held-out trees) of a step whose rows are ``ref``, on disk in the step's work folder.

    convert: ``to_example`` or ``to_pair``; what: 'row' or 'pair', for the message. Memory does
    not grow with the rows; ``processes`` as in ``encode_rows``. Raises DataError if either is empty.
    """
    stores = trained, held = TreeStore(context.out), TreeStore(context.out)
    tallies = Counts(), Counts()
    place = 0
    for outcome in encode_rows(renderer.encoder, convert, context.stream(ref), processes, context.progress.say):
        if outcome.unread is not None:
            context.counts.add(outcome.unread)
            continue
        part = step.heldout is None and is_held_out(place, step.heldout_every, step.heldout_rows)
        place += 1
        tallies[part].merge(outcome.counts)
        if outcome.ids is not None:
            stores[part].append(outcome.ids)
    heldout: Sequence[Tree] = held
    given: list[Example | Pair] = (
        [] if step.heldout is None else context.converted(step.heldout, convert, step.heldout_rows)
    )
    for tally in tallies:
        renderer.counts.merge(tally.by_reason)
    if step.heldout is not None:
        heldout = renderer.trees(given)
    require(trained, context.counts, what)
    if not heldout:
        raise DataError(
            f"no {what} is held out ({context.counts}); name rows with 'heldout', or lower heldout_every so that it is"
            f" at most the number of {what}s"
        )
    return trained, heldout


def require(trees: Sequence[Tree], counts: Counts, what: str) -> None:
    """Raise DataError with the counts if no row is left."""
    if not trees:
        raise DataError(f"no {what} is left to train on ({counts}); raise max_length or bring other rows")
