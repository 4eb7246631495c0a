"""The texts that a pairs step's judge is sent."""

from __future__ import annotations

from openbezoar.judging.ratings import TEXTS
from openbezoar.recipe.pair_steps import Pairs


def texts(step: Pairs) -> tuple[str, ...]:
    """Those of a judge that rates; none where nobody scores."""
    return TEXTS if step.by is not None else ()
