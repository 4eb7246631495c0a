"""What ``choose`` leaves for others to read: the numbers of its manifest."""

from __future__ import annotations

from openbezoar.reporting.chosen import ChooseNumbers, Tried

__all__ = ["ChooseNumbers", "Tried"]
