"""More than one process: each takes a share of a training step's trees, and their gradients are added up.

torchrun and accelerate launch start the processes and set RANK, WORLD_SIZE, LOCAL_RANK and
where to meet; without them there is one process, and everything here does nothing. Process 0
owns the run: it alone writes files and does every step that is not training. The others wait
until it announces a training step, load the same model, and follow it optimiser step by
optimiser step. All of them see the same recipe, data and run folder.

There is no DistributedDataParallel around the model. It averages what every backward pass of
every process gives, so it asks for as many passes of equal weight everywhere; here a loss is
already divided by the weight of the whole step, the passes differ in number, and a process
may have none. Only the adapter is trained, some million fp32 numbers, so one sum of one flat
vector at the end of a step is all that has to be exchanged, and it is exact.

Imports torch only when used: the command line asks for the rank before anything heavy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from openbezoar.errors import RunError

if TYPE_CHECKING:
    from torch import nn

    from openbezoar.forest import Tree

T = TypeVar("T")

# Processes meet and add up gradients within minutes of one another, but before a training step
# process 0 may generate data
# for days. One that dies is noticed at once by its closed connection.
IN_STEP = timedelta(minutes=30)
WAITING = timedelta(days=30)
NOT_HERE = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}

_patient: list[Any] = []  # the group in which the others wait for process 0


def world() -> int:
    """How many processes there are; 1 unless a launcher said otherwise."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def which() -> str:
    """For messages: which process speaks, nothing for the first."""
    return f" (process {rank()})" if rank() else ""


def start() -> None:
    """Meet the other processes, once; with a GPU take the one of this process.

    Raises RunError for more processes than GPUs, and where a sharded base (FSDP) is asked for.
    """
    if world() == 1:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    for variable, name in NOT_HERE.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise RunError(
                f"{name}: the frozen base is not split over processes here, each holds it whole; launch without {name},"
                " and use quantize: nf4 if memory is short"
            )
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", rank()))
        if local >= torch.cuda.device_count():
            raise RunError(
                f"process {rank()} has no GPU of its own ({torch.cuda.device_count()} on this machine); start one"
                " process a GPU with --nproc-per-node"
            )
        torch.cuda.set_device(local)
    with _together():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=IN_STEP)
        _patient.append(dist.new_group(backend="gloo", timeout=WAITING))


def stop() -> None:
    """Part from the other processes."""
    if world() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """What is done by all processes; raises RunError if one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"another process of this run ended ({str(error).splitlines()[0][:120]}); its own message says why, and the"
            " same command goes on from the last checkpoint"
        ) from error


def from_first(make: Callable[[], T]) -> T:
    """What process 0 makes, given to all; the others wait for it."""
    if world() == 1:
        return make()
    import torch.distributed as dist

    cell: list[Any] = [make() if rank() == 0 else None]
    with _together():
        dist.broadcast_object_list(cell, src=0, group=_patient[0])
    value: T = cell[0]
    return value


def announce(step: str | None) -> None:
    """Process 0: name the training step that all now take part in; None when there are no more."""
    from_first(lambda: step)


def announced() -> str | None:
    """The other processes: wait for the next training step; None when there are no more, or process
    0 is gone and has said why.
    """
    try:
        return from_first(lambda: None)
    except RunError:
        return None


def _gathered(value: T) -> list[T]:
    """Every process's value, by rank."""
    import torch.distributed as dist

    held: list[Any] = [None] * world()
    with _together():
        dist.all_gather_object(held, value, group=_patient[0])
    return held


def agree(**values: Any) -> None:
    """Make sure that all processes begin alike. Raises RunError naming what differs."""
    if world() == 1:
        return
    everyone = _gathered(values)
    for name, value in everyone[0].items():
        if any(other[name] != value for other in everyone):
            raise RunError(
                f"the processes differ in {name.replace('_', ' ')} ({', '.join(str(o[name]) for o in everyone)}); they"
                " must see the same recipe, data and run folder"
            )


def sum_scalars(values: dict[str, float]) -> dict[str, float]:
    """Numbers by name, added up over the processes in the order of their ranks; a name that one
    lacks counts as 0 there.
    """
    if world() == 1:
        return values
    total: dict[str, float] = {}
    for other in _gathered(values):
        for name, value in other.items():
            total[name] = total.get(name, 0.0) + value
    return total


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes; a missing one counts as zero."""
    if world() == 1:
        return
    import torch
    import torch.distributed as dist

    held = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in held])
    with _together():
        dist.all_reduce(flat)
    first = 0
    for parameter in held:
        parameter.grad = flat[first : first + parameter.numel()].view_as(parameter)
        first += parameter.numel()


def share(trees: Sequence[Tree], rank: int, world: int) -> list[int]:
    """Indices of a step's trees that are process ``rank``'s, ascending.

    The heaviest tree first, each to the process with the fewest tokens so far: all processes
    find the same division without a word. A tree weighs its tokens, a shared prompt once.
    """
    if world == 1:
        return list(range(len(trees)))
    from openbezoar.forest.layout import in_order

    weights = [in_order([tree])[0][1] for tree in trees]
    loads, mine = [0] * world, []
    for i in sorted(range(len(trees)), key=lambda i: (-weights[i], i)):
        to = min(range(world), key=lambda r: (loads[r], r))
        loads[to] += weights[i]
        if to == rank:
            mine.append(i)
    return sorted(mine)
