"""WorkOrder cut into shares, one a process: who does what, and what becomes of it, the errors too.

All processes find the same division without a word. What goes wrong in one of them, and a signal
that one of them heard, comes to all with the results, so that all end alike and the first says why.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from openbezoar.errors import RunError, UserError, brief
from openbezoar.machine import distributed, extras, limits, stops

T = TypeVar("T")
R = TypeVar("R")


class SaidByFirst(RunError):
    """Process 0 knows of it and says it."""


@dataclass(frozen=True)
class ShareOutcome:
    """What came of a share: values, or an error in one line, or the signal that stopped it."""

    values: Any = None
    error: str = ""
    stop: int = 0


def share(items: Sequence[T], weight: Callable[[T], float], rank: int, world: int) -> list[int]:
    """Indices of the items that are process ``rank``'s, ascending.

    The heaviest first, each to the process with the least so far.
    """
    if world == 1:
        return list(range(len(items)))
    weights = [weight(item) for item in items]
    loads, mine = [0.0] * world, []
    for i in sorted(range(len(items)), key=lambda i: (-weights[i], i)):
        to = min(range(world), key=lambda r: (loads[r], r))
        loads[to] += weights[i]
        if to == rank:
            mine.append(i)
    return sorted(mine)


def alone(items: Sequence[T], work: Callable[[T], R], weight: Callable[[T], float]) -> list[R]:
    """As ``shared``, in this process."""
    return [work(item) for item in items]


def attempted(work: Callable[[T], R], items: Sequence[T], whole: bool = True) -> tuple[ShareOutcome, Exception | None]:
    """What ``work`` makes of each item, for others to read; and its error as it was.

    A signal is heeded between two items; not ``whole``: at once, which ends process 0. What is a bug of ours is
    printed with its traceback where it happens.
    """
    values = []
    with stops.finishing(lambda line: None, "this pass", whole) as stop:
        try:
            for item in items:
                if stop.requested:
                    return ShareOutcome(stop=stop.requested), None
                values.append(work(item))
        except stops.Stop:
            if whole or not distributed.rank():
                raise
            return ShareOutcome(stop=stop.requested), None
        except Exception as error:
            return ShareOutcome(error=_line(error)), error
    return ShareOutcome(values), None


def agreed(work: Callable[[], R]) -> list[R]:
    """What ``work`` gives in each process, by rank, in all of them; what goes wrong in one ends all alike."""
    if distributed.world() == 1:
        return [work()]
    own: Exception | None = None
    try:
        outcome = ShareOutcome(work())
    except Exception as error:
        outcome, own = ShareOutcome(error=_line(error)), error
    outcomes = distributed.gathered(outcome)
    settle(outcomes, own)
    return [one.values for one in outcomes]


def _line(error: Exception) -> str:
    refusal = error if isinstance(error, UserError) else limits.refusal(error) or extras.failed_import(error)
    if refusal is None and distributed.rank():  # the first process raises its own
        traceback.print_exception(error)
    return " ".join(str(refusal).split()) if refusal is not None else brief(error)


def settle(outcomes: Sequence[ShareOutcome], own: Exception | None) -> None:
    """Raise what came of any process's share in place of values: this one's error as it was, ``Stop``, or another's
    error as RunError, in the other processes as ``SaidByFirst``. outcomes: by rank.
    """
    if own is not None and not distributed.rank():
        raise own
    wrong = next((number for number, one in enumerate(outcomes) if one.error), None)
    if wrong is not None:
        words = f"process {wrong}: {outcomes[wrong].error}"
        if distributed.rank():
            raise SaidByFirst(words) from own
        raise RunError(words)
    if signals := [one.stop for one in outcomes if one.stop]:
        stops.ask(signals[0])
        raise stops.Stop


def shared(items: Sequence[T], work: Callable[[T], R], weight: Callable[[T], float]) -> list[R]:
    """What ``work`` makes of each item, in order: each process does its share, all get all.

    To be called by all processes with the same items. Results must lie on the CPU.
    """
    world = distributed.world()
    if world == 1:
        return alone(items, work, weight)
    parts = [share(items, weight, rank, world) for rank in range(world)]
    outcome, own = attempted(work, [items[i] for i in parts[distributed.rank()]])
    outcomes = distributed.gathered(outcome)
    settle(outcomes, own)
    results: list[Any] = [None] * len(items)
    for part, one in zip(parts, outcomes, strict=True):
        for place, value in zip(part, one.values, strict=True):
            results[place] = value
    return results


def dealt(owner: Any, method: str, items: Sequence[Any], weight: Callable[[Any], float]) -> Iterable[tuple[int, Any]]:
    """A ``forest.trunk.Deal`` for what all processes ask at the same time, each of an object of its own."""
    return enumerate(shared(items, getattr(owner, method), weight))
