"""What the step that is chosen must be before the run goes on: what its own verb asks of it. Reads manifests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.recipe.train_steps import Choose
from openbezoar.recipe.verbs import VERBS
from openbezoar.verbs.choose.result import ChooseNumbers


def gate(name: str, step: Choose, folder: Path, seed: int) -> Iterator[str]:
    """Warnings about the chosen step, by the choice's own settings. Raises RunError as its verb's gate does."""
    chosen = ChooseNumbers.left_by(name, folder).taken(folder)
    asked = None if chosen is None or chosen.verb not in VERBS else VERBS[chosen.verb].part("gate")
    if chosen is not None and asked is not None:
        yield from asked(name, step, chosen.folder, seed)
