"""What a merge must hold before the run goes on: ``max_drift``. Reads the step's manifest; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.errors import RunError
from openbezoar.recipe.train_steps import Merge
from openbezoar.verbs.merge.result import MergeNumbers


def gate(name: str, step: Merge, folder: Path, seed: int) -> Iterator[str]:
    """A merge is meant to be the same model again: raises RunError for one that is another. A drift
    that is no number is beyond every limit.
    """
    if step.max_drift is None:
        return
    n = MergeNumbers.left_by(name, folder)
    if n.kl is None or n.loss is None or n.loss_unmerged is None or n.tokens is None:  # of an older version
        return
    if not (n.kl <= step.max_drift and n.loss - n.loss_unmerged <= step.max_drift):
        raise RunError(
            f"step {name}: the merged model is not the one that was trained: loss {n.loss_unmerged:.3f} unmerged,"
            f" {n.loss:.3f} merged, KL divergence {n.kl:.3g} nats a token on {n.tokens} tokens, allowed:"
            f" {step.max_drift:g}; look at the base's weights and at 'onto' and 'dtype' of the step, or raise its"
            " max_drift"
        )
    yield from ()
