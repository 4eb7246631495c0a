"""A model that is opened when it is first needed. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openbezoar.llm import LLM


class OnDemand:
    """Opens a model at the first call and frees it at the end of the ``with`` block.

    A step that goes on after a kill and finds all its batches done opens none.
    """

    def __init__(self, opener: Callable[[], LLM]) -> None:
        self._opener = opener
        self._llm: LLM | None = None

    def __call__(self) -> LLM:
        if self._llm is None:
            self._llm = self._opener()
        return self._llm

    def __enter__(self) -> OnDemand:
        return self

    def __exit__(self, *exc: object) -> None:
        llm, self._llm = self._llm, None
        close = getattr(llm, "close", None)
        if close is not None:
            close()
