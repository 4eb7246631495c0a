"""How many requests go to which server. Reads and writes nothing.

Each address has a window: how many requests may be under way at it. It grows by one an
answer until the first loss, then by one a round of answers; it halves when the server says
that it is busy (429, 503) or lets a request time out (additive increase, multiplicative
decrease, as TCP does), stands still while answers take four times as long as the fastest,
and shrinks by one beyond eight times. A server that this program started for itself alone has a queue and
nobody else to serve: its window is whole from the first. An address that cannot be reached, or fails again
and again while another one works, is left alone for a while and then tried with one request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from openbezoar.llm.side_by_side import CalledOff

START = 4  # requests under way at first
SLOW, TOO_SLOW = 4.0, 8.0  # times the fastest answer
FIRST_TOKEN = 20  # tokens that reading the prompt counts as, when times a token are compared
FAILURES = 3  # in a row, after which an address is left alone
LEFT_ALONE = 60.0  # seconds at most


class Clock:
    """Time, and waiting that ends early when the work is called off."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, off: threading.Event) -> bool:
        """Wait; True if the work was called off meanwhile."""
        return off.wait(seconds)


@dataclass(eq=False)
class Endpoint:
    """One address. most: requests under way. ours: of a server that serves nobody else."""

    url: str
    most: int
    ours: bool = False
    window: float = START
    under_way: int = 0
    failures: int = 0  # in a row
    until: float = 0.0  # nothing is sent before this time
    cut: float = -1.0  # when the window last shrank
    fastest: float = float("inf")  # seconds a token
    usual: float = 0.0  # the same, a running mean

    def __post_init__(self) -> None:
        self.window = self.most if self.ours else min(self.window, self.most)


class Endpoints:
    """All addresses of one model; safe to use from many threads."""

    def __init__(self, endpoints: Sequence[Endpoint], clock: Clock) -> None:
        self.all, self.clock = list(endpoints), clock
        self.answered = False  # whether there ever was a reply
        self.last_answer = float("-inf")  # when an answer came last
        self._free = threading.Condition()

    def take(self, off: threading.Event, avoid: Endpoint | None = None) -> Endpoint:
        """The least busy address that may be asked now, rather not ``avoid``; waits until there is one."""
        while not off.is_set():
            with self._free:
                now = self.clock.now()
                awake = [e for e in self.all if e.until <= now]
                open_ = [e for e in awake if e.under_way < int(e.window)]
                if open_:
                    chosen = min(open_, key=lambda e: (e is avoid, e.under_way / e.window))
                    chosen.under_way += 1
                    return chosen
                if awake:
                    self._free.wait(0.2)  # a moment, so that being called off is noticed
                    continue
                pause = min(e.until for e in self.all) - now
            self.clock.wait(pause, off)
        raise CalledOff

    def answer(self, endpoint: Endpoint, begun: float, tokens: int) -> float:
        """An answer came; its share of the time that passed, in seconds."""
        with self._free:
            seconds = self.clock.now() - begun
            share = seconds / max(1, sum(e.under_way for e in self.all))
            self.answered, endpoint.failures, self.last_answer = True, 0, self.clock.now()
            a_token = seconds / (tokens + FIRST_TOKEN)
            endpoint.usual = a_token if not endpoint.usual else 0.8 * endpoint.usual + 0.2 * a_token
            endpoint.fastest = min(endpoint.fastest, a_token)
            if endpoint.ours and endpoint.cut < 0:
                pass  # it answers more together by answering each more slowly
            elif endpoint.usual > TOO_SLOW * endpoint.fastest:
                self._shrink(endpoint, begun, endpoint.window - 1)
            elif endpoint.usual <= SLOW * endpoint.fastest:
                more = 1 if endpoint.cut < 0 else 1 / endpoint.window
                endpoint.window = min(endpoint.most, endpoint.window + more)
            self._release(endpoint)
        return share

    def replied(self, endpoint: Endpoint) -> None:
        """A reply came that nothing was written for, such as a refusal; it says nothing of how fast answers are."""
        with self._free:
            self.answered, endpoint.failures = True, 0
            self._release(endpoint)

    def lost(
        self, endpoint: Endpoint, begun: float, *, busy: bool = False, gone: bool = False, hold: float | None = None
    ) -> bool:
        """No answer came. busy: for want of room; gone: nobody was there; hold: seconds that the
        server wants to be left alone.

        Whether another address can be asked at once.
        """
        with self._free:
            now = self.clock.now()
            endpoint.failures += 1
            if busy:
                self._shrink(endpoint, begun, endpoint.window / 2)
            if hold is not None:
                endpoint.until = max(endpoint.until, now + hold)
            # One that only asked for a pause is worth waiting for: it must not send everybody back to where nobody is.
            others = [e for e in self.all if e is not endpoint and e.failures < FAILURES]
            if others and (gone or endpoint.failures >= FAILURES):
                endpoint.until = max(endpoint.until, now + min(LEFT_ALONE, 2.0**endpoint.failures))
                endpoint.window = 1
            self._release(endpoint)
            return any(e.until <= now for e in others)

    def _shrink(self, endpoint: Endpoint, begun: float, window: float) -> None:
        """Once for all requests that were under way together."""
        if begun > endpoint.cut:
            endpoint.window, endpoint.cut = max(1.0, window), self.clock.now()

    def _release(self, endpoint: Endpoint) -> None:
        endpoint.under_way -= 1
        self._free.notify_all()
