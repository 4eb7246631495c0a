"""Threads that answer calls side by side. Reads and writes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

from openbezoar.machine import stops

T = TypeVar("T")
GRACE = 60.0  # seconds that calls under way are given when another one fails: they may be paid for


class CalledOff(Exception):
    """This call was given up because another one failed."""


def side_by_side(
    n: int, one: Callable[[int, threading.Event], T], width: int, *, name: str, heard: Callable[[], None] = lambda: None
) -> list[T]:
    """What ``one(place, off)`` gives for each place from 0 to n - 1, at most ``width`` at a time.

    The first failure ends all: no further call is begun, ``off`` is set, those under way
    are waited for (seconds only if the program is to stop, until it is asked again), and the failure is raised.
    heard: called after each answer, in the caller's thread.
    """
    places, lock = iter(range(n)), threading.Lock()
    done: SimpleQueue[tuple[int, T | BaseException]] = SimpleQueue()
    off = threading.Event()

    def work() -> None:
        while not off.is_set():
            with lock:
                place = next(places, None)
            if place is None:
                return
            try:
                done.put((place, one(place, off)))
            except BaseException as error:
                done.put((place, error))

    # Threads of their own rather than a pool: a program that is interrupted does not wait for slow replies.
    threads = [threading.Thread(target=work, name=f"{name}-{number}", daemon=True) for number in range(min(width, n))]
    for thread in threads:
        thread.start()
    answers: dict[int, T] = {}
    try:
        while len(answers) < n:
            place, answer = done.get()
            if isinstance(answer, BaseException):
                raise answer
            answers[place] = answer
            heard()
    except Exception:
        off.set()
        _joined(threads, GRACE)
        raise
    except KeyboardInterrupt:
        off.set()
        if at_work := sum(thread.is_alive() for thread in threads):
            stops.waits(f"{at_work} call{'s' * (at_work > 1)} under way", stops.grace())
            _joined(threads, stops.grace())
        raise
    finally:
        off.set()
    return [answers[place] for place in range(n)]


def _joined(threads: Sequence[threading.Thread], seconds: float) -> None:
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
