"""What training steps leave for others to read: the numbers of their manifests, beside their logs."""

from __future__ import annotations

from openbezoar.reporting.training import PreferenceNumbers, RewardNumbers, TrainingNumbers, UnpairedNumbers


class SftNumbers(TrainingNumbers):
    """Of an sft step."""


class DpoNumbers(PreferenceNumbers):
    """Of a dpo step."""


class KtoNumbers(UnpairedNumbers):
    """Of a kto step."""


__all__ = ["DpoNumbers", "KtoNumbers", "RewardNumbers", "SftNumbers"]
