"""What ``sft``, ``dpo`` and ``kto`` leave for others to read: the numbers of their manifests, beside their logs."""

from __future__ import annotations

from openbezoar.reporting.training import PreferenceNumbers, TrainingNumbers, UnpairedNumbers


class SftNumbers(TrainingNumbers):
    """Of an sft step."""


class DpoNumbers(PreferenceNumbers):
    """Of a dpo step."""


class KtoNumbers(UnpairedNumbers):
    """Of a kto step."""
