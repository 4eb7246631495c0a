"""Intervals and tests for means, paired differences, shares and agreement. numpy only.

Names are imported when they are first used, so that a seed costs no numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openbezoar.stats.agreement import Vote as Vote
    from openbezoar.stats.agreement import agreement_table as agreement_table
    from openbezoar.stats.comparisons import every_pair as every_pair
    from openbezoar.stats.intervals import auc as auc
    from openbezoar.stats.intervals import holm as holm
    from openbezoar.stats.intervals import mcnemar as mcnemar
    from openbezoar.stats.intervals import mean_interval as mean_interval
    from openbezoar.stats.intervals import paired_difference as paired_difference
    from openbezoar.stats.intervals import paired_p as paired_p
    from openbezoar.stats.intervals import proportion_interval as proportion_interval
    from openbezoar.stats.intervals import random_signs as random_signs

_NAMES = {
    "openbezoar.stats.agreement": "Vote agreement_table",
    "openbezoar.stats.comparisons": "every_pair",
    "openbezoar.stats.intervals": (
        "auc holm mcnemar mean_interval paired_difference paired_p proportion_interval random_signs"
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'openbezoar.stats' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
