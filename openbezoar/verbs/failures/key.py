"""The texts that a failures step sends to its judge."""

from __future__ import annotations

from openbezoar.judging.prompting import CHECKS
from openbezoar.recipe.measure_steps import Failures


def texts(step: Failures) -> tuple[str, ...]:
    """All of its checks."""
    return tuple(CHECKS)
