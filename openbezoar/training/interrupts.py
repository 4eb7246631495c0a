"""Ctrl-C during training: the optimiser step under way is finished and saved, then the program ends.

Python would raise KeyboardInterrupt anywhere, between two updates of one step too. A second
Ctrl-C does just that. Other processes of a distributed run are left to their launcher.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from openbezoar.training import distributed


class StopRequest:
    """Whether the user has asked to stop."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested, self._say = False, say

    def heard(self, number: int, frame: Any) -> None:
        """The signal's handler: at the first signal take note, at the second interrupt."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._say("  stopping after this optimiser step; Ctrl-C again stops at once")


@contextmanager
def finishing_the_step(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Inside, the first SIGINT is only noted. say: is told when it comes."""
    stop = StopRequest(say)
    if (
        threading.current_thread() is not threading.main_thread()
        or distributed.world() > 1
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop.heard)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
