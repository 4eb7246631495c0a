"""Some of many, each with the same chance, at the memory of some. Reads and writes nothing."""

from __future__ import annotations

import random
from typing import Generic, TypeVar

T = TypeVar("T")


class Sample(Generic[T]):
    """Items that were drawn of those offered, at the same places for as many offers.

    passed: how many there were.
    """

    def __init__(self, most: int) -> None:
        self.most, self.passed = most, 0
        self.items: list[T] = []
        self._draw = random.Random(0)

    def offer(self, item: T) -> None:
        """One more; it may take the place of another."""
        self.passed += 1
        if len(self.items) < self.most:
            self.items.append(item)
        elif (place := self._draw.randrange(self.passed)) < self.most:
            self.items[place] = item
