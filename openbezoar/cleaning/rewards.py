"""The rule that drops rows by the reward of their answers. Takes rewards, writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from openbezoar.cleaning.likelihood import quantiles
from openbezoar.cleaning.rules import Drop
from openbezoar.recipe.data_steps import ByReward

COLUMN = "reward_score"


class ScreenedRewards(NamedTuple):
    """drops: one a row, None for a row that stays. lowest: the least reward that was kept; None of no row."""

    drops: list[Drop | None]
    lowest: float | None


def screen_rewards(rewards: Sequence[float], settings: ByReward) -> ScreenedRewards:
    """The rows that fall below ``at_least``, then all but the ``best``, equal ones in their order."""
    left = [i for i, reward in enumerate(rewards) if settings.at_least is None or reward >= settings.at_least]
    kept = sorted(left, key=lambda i: (-rewards[i], i))[: _most(len(rewards), settings.best)]
    lowest = min((rewards[i] for i in kept), default=None)
    high_enough, chosen = set(left), set(kept)

    def drop(i: int) -> Drop | None:
        if i not in high_enough:
            return Drop("reward_too_low", f"reward {rewards[i]:.4g}, kept from {settings.at_least:g} on")
        if i not in chosen:
            return Drop("reward_too_low", f"reward {rewards[i]:.4g}, the {len(kept)} highest are from {lowest:.4g} on")
        return None

    return ScreenedRewards([drop(i) for i in range(len(rewards))], lowest)


def _most(rows: int, best: int | float | None) -> int:
    return rows if best is None else best if isinstance(best, int) else max(1, int(best * rows))


def reward_numbers(rewards: Sequence[float], screened: ScreenedRewards) -> dict[str, Any]:
    """What is told of all rows that were asked about: {rows, kept_from, quantiles}."""
    return {"rows": len(rewards), "kept_from": screened.lowest, "quantiles": quantiles(rewards)}
