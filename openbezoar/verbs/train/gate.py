"""What a reward model must be before the run goes on: better than the length. Reads the step's manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.errors import RunError
from openbezoar.recipe.train_steps import Choose, Reward
from openbezoar.verbs.train.result import RewardNumbers


def gate(name: str, step: Reward | Choose, folder: Path, seed: int) -> Iterator[str]:
    """A warning where the held-out pairs are too few to tell the model from the length of the answers.

    step: the one that trained it, or that chose it. Raises RunError for a model that is right about no more of them
    than the length is.
    """
    if (check := RewardNumbers.left_by(name, folder).saved) is None:
        return
    value, low, _ = check.gain
    if value <= 0 and step.beats == "length":
        raise RunError(
            f"step {name}: the reward model is right about {check.text()}: it is no better than taking answers by their"
            " length; train on more pairs or at another rate, or set beats: nothing"
        )
    if low <= 0:
        yield f"  {name}: {check.accuracy.n} pairs are too few to tell it from the length: right about {check.text()}"
