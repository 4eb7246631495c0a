"""What a merge must hold before the run goes on: ``max_drift``. Reads the step's manifest; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.errors import RunError
from openbezoar.recipe.train_steps import Merge
from openbezoar.store.digests import MANIFEST
from openbezoar.store.manifests import read_object


def gate(name: str, step: Merge, folder: Path, seed: int) -> Iterator[str]:
    """A merge is meant to be the same model again: raises RunError for one that is another. A drift
    that is no number is beyond every limit.
    """
    if step.max_drift is None:
        return
    manifest = read_object(folder / MANIFEST, "a step's manifest", "delete the folder and run again")
    numbers = manifest.get("numbers") or {}
    if not {"kl", "loss", "loss_unmerged", "tokens"} <= set(numbers):  # of an older version
        return
    kl, rise = numbers["kl"], numbers["loss"] - numbers["loss_unmerged"]
    if not (kl <= step.max_drift and rise <= step.max_drift):
        raise RunError(
            f"step {name}: the merged model is not the one that was trained: loss {numbers['loss_unmerged']:.3f}"
            f" unmerged, {numbers['loss']:.3f} merged, KL divergence {kl:.3g} nats a token on {numbers['tokens']}"
            f" tokens, allowed: {step.max_drift:g}; look at the base's weights and at 'onto' and 'dtype' of the step,"
            " or raise its max_drift"
        )
    yield from ()
