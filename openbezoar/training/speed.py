"""How fast this machine multiplies matrices, and what part of that a training step uses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from openbezoar.forest import Tree
from openbezoar.forest.layout import in_order
from openbezoar.forest.trunk import Trunk

ENOUGH = 0.01  # seconds of a product; one of the next size takes eight times as long


@dataclass
class Throughput:
    """What a training has got through in this process's life: tokens written out, operations, and
    seconds of optimiser steps.

    rate: operations per second that the machine is measured to be capable of.
    """

    rate: float
    tokens: float = 0.0
    work: float = 0.0
    seconds: float = 0.0

    def count(self, tokens: float, work: float, seconds: float) -> None:
        """Add an optimiser step."""
        self.tokens, self.work, self.seconds = self.tokens + tokens, self.work + work, self.seconds + seconds

    @property
    def tokens_per_second(self) -> float | None:
        """None before the first step."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def fraction(self) -> float | None:
        """Of the machine's rate."""
        return self.work / self.seconds / self.rate if self.seconds else None


@cache
def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of square matrix products, the best size's best of three.

    Measured once a process, in about a third of a second or less: sizes double until a
    product takes long enough. A size's first product prepares its kernel, and all write to the
    same pages, so that neither is taken for arithmetic.
    """

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    best, size, seconds = 0.0, 1024, 0.0
    while size <= 8192 and seconds < ENOUGH:
        a = torch.ones(size, size, dtype=dtype, device=device)
        product = a @ a
        times = []
        for _ in range(3):
            wait()
            before = time.perf_counter()
            torch.mm(a, a, out=product)
            wait()
            times.append(time.perf_counter() - before)
        seconds = min(times)
        best = max(best, 2 * size**3 / seconds)
        size *= 2
    return best


def work(scorer: Trunk) -> tuple[float, float]:
    """Floating-point operations of a training pass: (per token that is forwarded, per token that is scored).

    A frozen matrix of n weights takes part in two products, forward and for the gradient of
    its input, 4n operations; a trainable one also in that for its own gradient, 6n. The
    attention's own products and reference passes are not counted.
    """
    layers = [m for m in scorer.trunk.modules() if isinstance(m, nn.Linear)]
    token = sum((6.0 if m.weight.requires_grad else 4.0) * m.in_features * m.out_features for m in layers)
    return token, scorer.head_work


def work_of(trees: Sequence[Tree], scorer: Trunk, each: tuple[float, float]) -> float:
    """Floating-point operations of one training pass over some trees; ``each`` from ``work``."""
    forwarded = (
        sum(len(path.ids) for tree in trees for path in tree)
        if scorer.plain
        else sum(cost for _, cost in in_order(trees))
    )
    return each[0] * forwarded + each[1] * sum(path.n_scored for tree in trees for path in tree)
