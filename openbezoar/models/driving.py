"""Other processes that hold the same model as this one and do a share of what is asked of it.

Under a launcher, outside of training steps, process 0 drives the others by four orders over the
processes' groups (``machine.distributed``): ``LoadOrder`` a model, do ``WorkOrder`` on some items with an
object made around it, ``DropOrder`` models, and the name of a step to train. A model that is loaded here
is spread by its loader (``in_all_processes``) and known to the forest (``forest.trunk.SPREAD``);
whatever deals its passes out is then shared, and nothing that asks needs to know of it.

What is dealt out are the passes that one process would make, whole, so that each gives what it
gives in one process, to the last bit. They go out in rounds of some seconds, balanced by weight:
a process that hangs is found within ``distributed.patience`` of a round's end, and one that is gone at once.

No torch at import: the engine asks for this before it knows what is installed.
"""

from __future__ import annotations

import gc
import itertools
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeVar

from openbezoar.machine import distributed
from openbezoar.machine.shares import ShareOutcome, attempted, settle, share
from openbezoar.models.references import Checkpoint

T = TypeVar("T")
ROUND = 5.0  # seconds after which rounds are long enough


class Loaded(NamedTuple):
    """A model in this process."""

    model: Any
    tokenizer: Any
    checkpoint: Checkpoint


Loader = Callable[[Checkpoint], tuple[Any, Any]]
Make = tuple[Callable[..., Any], tuple[Any, ...]]
"""What makes an object's twin, a function of a module; and its arguments, hashable, after a ``Loaded``."""


class Twinned(Protocol):
    """An object around a model whose twins in other processes can do its work."""

    def twin(self) -> Make:
        """How they are made."""


@dataclass(frozen=True)
class LoadOrder:
    """Have a model, under a number."""

    number: int
    loader: Loader
    checkpoint: Checkpoint


@dataclass(frozen=True)
class WorkOrder:
    """Call a method of an object around a model with each of some items."""

    number: int
    make: Make
    method: str
    items: Sequence[Any]


@dataclass(frozen=True)
class DropOrder:
    """Give back models."""

    numbers: tuple[int, ...]


# ------------------------------------------------------------------------------- process 0


class _Driver:
    """What process 0 knows of the models that the others hold."""

    def __init__(self) -> None:
        self.on = False
        self.held: dict[int, weakref.ref[Any]] = {}
        self.numbers = itertools.count()


_driver = _Driver()


@contextmanager
def driving() -> Iterator[None]:
    """Process 0: within, the others wait for orders. At the end they give back what they hold."""
    _driver.on = distributed.world() > 1 and distributed.rank() == 0
    try:
        yield
        _drop(tuple(_driver.held))
    finally:
        _driver.on = False
        _driver.held.clear()


def in_all_processes(fetched: Callable[[Checkpoint], Any]) -> Callable[[Loader], Loader]:
    """Decorates what loads a model: where this process drives others, they load it too, at the same time.

    fetched: sees to it that the model's files are there, which one process does.
    """

    def decorated(loader: Loader) -> Loader:
        @wraps(loader)
        def loaded(checkpoint: Checkpoint) -> tuple[Any, Any]:
            if not _driver.on:
                return loader(checkpoint)
            from openbezoar.forest.trunk import SPREAD

            release()
            fetched(checkpoint)
            number = next(_driver.numbers)
            distributed.order(LoadOrder(number, loaded, checkpoint))
            outcome, own = attempted(loader, [checkpoint], whole=False)
            settle([outcome, *distributed.answers()], own)
            model, tokenizer = outcome.values[0]
            _driver.held[number] = weakref.ref(model)
            SPREAD[model] = _Dealer(number)
            return model, tokenizer

        return loaded

    return decorated


def collect() -> None:
    """Give this process's freed memory back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def release() -> None:
    """Have the others give back the models that are gone here."""
    if _driver.on:
        _drop(tuple(number for number, model in _driver.held.items() if model() is None))


def _drop(numbers: tuple[int, ...]) -> None:
    if numbers:
        for number in numbers:
            del _driver.held[number]
        distributed.order(DropOrder(numbers))
        settle([ShareOutcome(), *distributed.answers()], None)


def is_spread(model: Any) -> bool:
    """Whether a model lies in other processes too, that wait for what it is asked."""
    from openbezoar.forest.trunk import SPREAD

    return _driver.on and model in SPREAD


def abreast(batch: int) -> int:
    """How many answers to ask for at a time, for each process to have a batch of its own."""
    return batch * distributed.world() if _driver.on else batch


def shares(items: Sequence[T], weight: Callable[[T], float]) -> list[list[int]]:
    """Indices of items in as many shares as there are processes, none of them empty."""
    world = distributed.world()
    parts = (share(items, weight, rank, world) for rank in range(world))
    return [part for part in parts if part]


@dataclass(frozen=True)
class _Dealer:
    """Deals out what is asked of a model that lies in all processes, as ``forest.trunk.Deal`` has it."""

    number: int

    def __call__(
        self, owner: Twinned, method: str, items: Sequence[Any], weight: Callable[[Any], float]
    ) -> Iterator[tuple[int, Any]]:
        work, make, world = getattr(owner, method), owner.twin(), distributed.world()
        first, size = 0, 1
        while first < len(items):
            if not _driver.on or len(items) - first == 1:
                yield first, work(items[first])
                first += 1
                continue
            due = items[first : first + size * world]
            parts = [share(due, weight, rank, world) for rank in range(world)]
            begun = time.monotonic()
            mine, *theirs = ([due[i] for i in part] for part in parts)
            distributed.orders([WorkOrder(self.number, make, method, part) for part in theirs])
            outcome, own = attempted(work, mine, whole=False)
            outcomes = [outcome, *distributed.answers()]
            settle(outcomes, own)
            for part, one in zip(parts, outcomes, strict=True):
                for place, value in zip(part, one.values, strict=True):
                    yield first + place, value
            first += len(due)
            if time.monotonic() - begun < ROUND:
                size *= 2


# ------------------------------------------------------------------------------- the others


@dataclass
class Helper:
    """Another process than the first: what it holds, and how it carries out orders."""

    models: dict[int, Loaded] = field(default_factory=dict)
    made: dict[tuple[int, Make], Any] = field(default_factory=dict)

    def obey(self, order: LoadOrder | WorkOrder | DropOrder) -> None:
        """Carry an order out and answer it; what goes wrong is in the answer."""
        if isinstance(order, LoadOrder):
            done = attempted(self._load, [order], whole=False)
        elif isinstance(order, DropOrder):
            done = attempted(self._drop, [order], whole=False)
        else:
            done = attempted(lambda item: getattr(self._twin(order), order.method)(item), order.items, whole=False)
        distributed.answer(done[0])

    def _load(self, order: LoadOrder) -> None:
        self.models[order.number] = Loaded(*order.loader(order.checkpoint), order.checkpoint)

    def _twin(self, order: WorkOrder) -> Any:
        key = order.number, order.make
        if key not in self.made:
            make, arguments = order.make
            self.made[key] = make(self.models[order.number], *arguments)
        return self.made[key]

    def _drop(self, order: DropOrder) -> None:
        for number in order.numbers:
            del self.models[number]
        self.made = {key: twin for key, twin in self.made.items() if key[0] in self.models}
        collect()
