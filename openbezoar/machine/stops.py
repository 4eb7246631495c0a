"""Stopping before the work is done: a signal (SIGINT, SIGTERM, SIGHUP), or a time limit that is near.

A request raises ``Stop`` where the program stands, as Ctrl-C does; where something shall be
finished first (``finishing``) it is only noted, and the work asks. A second signal raises in any case.
Signals and the alarm of the limit are the process's, so what is known of them is kept here, once:
``listening`` is for a program of its own, the command line. Elsewhere Ctrl-C alone is heard, while
something is being finished.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TIME_IS_UP = 75
"""The exit code of a run that its time limit ended: EX_TEMPFAIL of sysexits.h, 'try again later'."""
SAME = 1.0  # seconds within which SIGTERM and SIGHUP are one request: launchers and sessions send both, or one twice
HANGING = 3.0  # seconds after a second signal in which Python must have raised; a call of a library may never return
CALLS = 10.0  # seconds that calls under way are given, since they may be paid for
ROOM = (5.0, 60.0)  # least seconds between the end of the work and the limit: a fiftieth of it, within these


class Stop(KeyboardInterrupt):
    """Work ends here, to be gone on with later. code, words: as of when it was raised, for when listening is over."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.words = code(), words()


class Finishing:
    """Something is being finished. whole: whatever is asked; else only a time limit waits for it, and not for ever."""

    def __init__(self, say: Callable[[str], None], what: str, whole: bool) -> None:
        self.say, self.what, self.whole, self.open = say, what, whole, False

    @property
    def requested(self) -> int:
        """The signal that asked to stop, SIGALRM for the time limit; 0: none did."""
        return _state.asked

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, nothing has to be finished: a request raises, an earlier one too."""
        self.open = True
        try:
            check()
            yield
        finally:
            self.open = False


class _Requests:
    """What was asked of this process so far, and when its time is over."""

    def __init__(self) -> None:
        self.asked: int = 0  # the first request
        self.heard = 0.0  # when the first signal came
        self.program = False  # whether the process is ours
        self.begun = time.monotonic()
        self.deadline: float | None = None
        self.least = 0.0
        self.takes: dict[str, float] = {}
        self.finishing: list[Finishing] = []


_state = _Requests()


def check() -> None:
    """Raise Stop if somebody asked for it. For places where work can end; an exception that a signal raised
    may have been lost in a destructor.
    """
    if _state.asked:
        raise Stop


def code() -> int:
    """The exit code of a program that ends here: 128 and the signal's number, or ``TIME_IS_UP``."""
    return TIME_IS_UP if _state.asked == signal.SIGALRM else 128 + (_state.asked or signal.SIGINT)


def asked() -> bool:
    """Whether somebody asked to stop."""
    return bool(_state.asked)


def ask(number: int) -> None:
    """Take a request that another process of the run heard for one of this."""
    _state.asked = _state.asked or number


def words() -> str:
    """What ended the work, for a line."""
    if _state.asked in (0, signal.SIGINT):
        return "interrupted"
    if _state.asked == signal.SIGALRM:
        return "stopped before its time limit"
    return f"stopped by {signal.Signals(_state.asked).name}"


# ------------------------------------------------------------------------------- requests


def _heard(number: int, frame: Any) -> None:
    """The handler of all requests."""
    top = _state.finishing[-1] if _state.finishing and not _state.finishing[-1].open else None
    if number == signal.SIGALRM:
        if _state.asked and (top is None or top.whole or _state.asked != number):
            return  # it is being obeyed
        again, _state.asked = bool(_state.asked), number
        if top is None or again:
            raise Stop
        if top.whole:
            top.say(f"  the time limit is near: stopping after {top.what}")
        else:
            _arm(_state.least / 2)
        return
    now = time.monotonic()
    if _state.heard and not _same(number, now - _state.heard):
        raise Stop
    if _state.heard:
        return
    _state.heard, _state.asked = now, _state.asked or number
    if top is None or not top.whole:
        raise Stop
    again_by = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
    top.say(f"  stopping after {top.what}; {again_by} stops at once")


def _same(number: int, seconds: float) -> bool:
    """Whether a signal so long after the first one is part of that request."""
    return number != signal.SIGINT and seconds < SAME


@contextmanager
def finishing(say: Callable[[str], None], what: str, whole: bool = True) -> Iterator[Finishing]:
    """Inside, the first request is noted, and raises no exception. say: is told when it comes.

    what: is being finished, for that line. whole: by a signal too; without, only the time limit waits, and raises
    after all when it is very near.
    """
    own = (
        whole
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    held = Finishing(say, what, whole)
    _state.finishing.append(held)
    if own:
        signal.signal(signal.SIGINT, _heard)
    try:
        yield held
    finally:
        _state.finishing.remove(held)
        if own:  # a process that is not ours goes on, and may begin anew
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _state.asked, _state.heard = 0, 0.0


@contextmanager
def listening() -> Iterator[None]:
    """A program that keeps what it has done: all requests are heard. What was told to be ignored (nohup) stays so."""
    _state.__init__()  # type: ignore[misc]
    before: dict[int, Any] = {}
    for number in SIGNALS:
        now = signal.getsignal(number)
        if now in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, _heard)
    _state.program = True
    ended = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wake = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, ended), name="signals", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        limit(None)
        signal.set_wakeup_fd(wake)
        os.close(writing)  # which ends the thread
        for handled, handler in before.items():
            signal.signal(handled, handler)
        _state.__init__()  # type: ignore[misc]


def _watch(reading: int, ended: threading.Event) -> None:
    """End the process if a second signal finds Python within a call that does not come back, such as a
    collective operation with a process that is gone: handlers run between two instructions of Python only.
    """
    first = 0.0
    with os.fdopen(reading, "rb", buffering=0) as numbers:
        while byte := numbers.read(1):
            if byte[0] not in SIGNALS:
                continue
            now = time.monotonic()
            if not first:
                first = now
            elif not _same(byte[0], now - first):
                if not ended.wait(HANGING):
                    os._exit(128 + byte[0])
                return


# ------------------------------------------------------------------------------- a time limit


def limit(seconds: float | None) -> None:
    """So many seconds after ``listening`` began the program is to have ended; None: never."""
    _state.deadline = None
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    if seconds is not None:
        least, most = ROOM
        _state.deadline = _state.begun + seconds
        _state.least = min(max(least, seconds / 50), most, seconds / 2)
        signal.signal(signal.SIGALRM, _heard)
        _arm(_room())


def begin() -> None:
    """Another step of the run: what work takes is learnt anew. Raises Stop if somebody asked for it."""
    check()
    _state.takes.clear()
    if _state.deadline is not None:
        _arm(_room())


def takes(what: str, seconds: float) -> None:
    """Learn how long it may take to come to an end of the work, such as an optimiser step and its saving; what is
    named otherwise comes after it.
    """
    if _state.deadline is not None and not _state.asked and seconds > _state.takes.get(what, 0.0):
        _state.takes[what] = seconds
        _arm(_room())


def _room() -> float:
    return _state.least + 1.25 * sum(_state.takes.values())


def _arm(room: float) -> None:
    """Have the alarm ring so many seconds before the limit."""
    assert _state.deadline is not None
    with suppress(OSError):
        signal.setitimer(signal.ITIMER_REAL, max(_state.deadline - room - time.monotonic(), 0.001))


def grace() -> float:
    """Seconds that calls under way are given after a request."""
    if _state.asked != signal.SIGALRM or _state.deadline is None:
        return CALLS
    return max(0.0, _state.deadline - _state.least / 2 - time.monotonic())


def waits(for_what: str, seconds: float) -> None:
    """Say what an interrupted program still waits for."""
    if _state.program and seconds >= 1:
        print(
            f"  waiting up to {seconds:.0f} s for {for_what}; a second signal stops at once",
            file=sys.stderr,
            flush=True,
        )
