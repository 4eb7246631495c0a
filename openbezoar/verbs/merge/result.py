"""What ``merge`` leaves for others to read: the numbers of its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from openbezoar.reporting.results import Number, Result


class MergeNumbers(Result):
    """Which base was taken, and how far the merged model is from the unmerged one."""

    SINCE: ClassVar[Mapping[str, str]] = {"kl": "how far the merged model is from the unmerged one"}

    onto: str | None = None
    dtype: str | None = None
    loss_unmerged: Number | None = None  # mean negative log-likelihood of an answer token, nats
    losses: dict[str, Number] = Field(default_factory=dict)  # of the merged models that were tried, by base
    loss: Number | None = None
    kl: Number | None = None  # KL(unmerged ‖ merged) a token, nats
    max_logprob_difference: Number | None = None
    mean_logprob_difference: Number | None = None
    rows: int | None = None
    tokens: int | None = None
    generation_settings: list[str] = Field(default_factory=list)  # of the base's, what could not be saved as it was
    summary: str | None = None

    def outcome(self) -> str:
        return f"KL {self.kl:.2g}" if self.kl is not None else self.onto or ""
