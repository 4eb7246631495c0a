"""What ``sft`` and ``dpo`` leave for others to read: the numbers of their manifests, beside their logs."""

from __future__ import annotations

from openbezoar.reporting.training import PreferenceNumbers, TrainingNumbers


class SftNumbers(TrainingNumbers):
    """Of an sft step."""


class DpoNumbers(PreferenceNumbers):
    """Of a dpo step."""
