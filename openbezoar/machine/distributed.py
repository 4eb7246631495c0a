"""More than one process: how they meet, what they tell one another, and how they find out that one is gone.

torchrun and accelerate launch start the processes and set RANK, WORLD_SIZE, LOCAL_RANK and
where to meet; without them there is one process, and everything here does nothing. Process 0
owns the run: it alone writes files, and hears and says what goes wrong. In a training step all
of them follow the same program, optimiser step by optimiser step (``shares``); in every other
step the others wait for its orders (``models.driving``). All of them see the same recipe, data
and run folder.

There is no DistributedDataParallel around the model. It averages what every backward pass of
every process gives, so it asks for as many passes of equal weight everywhere; here a loss is
already divided by the weight of the whole step, the passes differ in number, and a process
may have none. Only the adapter is trained, some million fp32 numbers, so one sum of one flat
vector at the end of a step is all that has to be exchanged, and it is exact.

Two groups lie over the same processes. In one of them the others wait for process 0, which may
generate data for days; a process that dies is noticed there at once, by its closed connection. In
the other no message takes longer than ``patience``, so a process that hangs is noticed too. Process 0
is the judge of that, so that one line says it.

Imports torch only when used: the command line asks for the rank before anything heavy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from openbezoar.errors import RunError, shown

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

IN_STEP = timedelta(minutes=30)
PATIENCE = "OPENBEZOAR_PATIENCE"  # in its place, seconds
WAITING = timedelta(days=30)
NOT_HERE = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}

_patient: list[Any] = []  # the group in which the others wait for process 0
_prompt: list[Any] = []  # the one in which it waits for them


def world() -> int:
    """How many processes there are; 1 unless a launcher said otherwise."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def which() -> str:
    """For messages: which process speaks, nothing for the first."""
    return f" (process {rank()})" if rank() else ""


def patience() -> timedelta:
    """How long one process is waited for that lags behind. Raises RunError for a variable that is no time."""
    text = os.environ.get(PATIENCE, "")
    try:
        seconds = float(text) if text else IN_STEP.total_seconds()
        if not 0 < seconds <= WAITING.total_seconds():
            raise ValueError
    except ValueError:
        most = f"{WAITING.total_seconds():.0f}"
        raise RunError(f"{PATIENCE} is {shown(text)}; give seconds above 0, {most} at most, or leave it out") from None
    return timedelta(seconds=seconds)


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
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=patience())
        _patient.append(dist.new_group(backend="gloo", timeout=WAITING))
        _prompt.append(dist.new_group(backend="gloo", timeout=patience()))


def stop() -> None:
    """Part from the other processes."""
    if world() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _together(other: int | None = None) -> Iterator[None]:
    """What is done by all processes, or with one other; raises RunError if one is gone or hangs."""
    try:
        yield
    except RuntimeError as error:
        who = "another process of this run" if other is None else f"process {other} of this run"
        said = str(error).splitlines()[0][:120]
        if "timed out" in said.lower():
            waited = f"{patience().total_seconds():,.0f} s"
            raise RunError(
                f"{who} gave no sign of life for {waited}; if it hangs, end it and give the same command again (what"
                f" was finished is kept), if it is only slow, with a larger {PATIENCE} (seconds)"
            ) from error
        raise RunError(
            f"{who} ended ({said}); its own message says why, and the same command goes on from the last checkpoint"
        ) from error


def from_first(make: Callable[[], T]) -> T:
    """What process 0 makes, given to all; the others wait for it."""
    if world() == 1:
        return make()
    if rank():
        value: T = _told()
        return value
    made = make()
    orders([made for _ in others()])
    return made


def others() -> range:
    """The numbers of all processes but the first."""
    return range(1, world())


def order(what: Any) -> None:
    """Process 0: say to all others what to do; None: there is nothing more. They wait in ``ordered``."""
    orders([what for _ in others()])


def orders(each: Sequence[Any]) -> None:
    """Process 0: say to each other process, by rank, what to do. Raises RunError for one that does not listen."""
    import torch
    import torch.distributed as dist

    for other, what in zip(others(), each, strict=True):
        with _together(other):
            call = dist.isend(torch.zeros(1), other, group=_patient[0])
            assert call is not None
            call.wait(patience())
            dist.send_object_list([what], other, group=_prompt[0])


def _told() -> Any:
    """The other processes: what process 0 says, whenever it does."""
    import torch
    import torch.distributed as dist

    cell: list[Any] = [None]
    with _together(0):
        dist.recv(torch.zeros(1), 0, group=_patient[0])
        dist.recv_object_list(cell, 0, group=_prompt[0])
    return cell[0]


def ordered() -> Any:
    """The other processes: wait for the next order; None when there are no more, or process 0 is gone and has
    said why.
    """
    try:
        return _told()
    except RunError:
        return None


def answer(value: Any) -> None:
    """The other processes: tell process 0."""
    import torch.distributed as dist

    with _together(0):
        dist.send_object_list([value], 0, group=_prompt[0])


def answers() -> list[Any]:
    """Process 0: what each other process tells, by rank. Raises RunError naming the one that is gone or hangs."""
    import torch.distributed as dist

    told = []
    for other in others():
        cell: list[Any] = [None]
        with _together(other):
            dist.recv_object_list(cell, other, group=_prompt[0])
        told.append(cell[0])
    return told


def gathered(value: T) -> list[T]:
    """Every process's value, by rank, in all of them."""
    if rank():
        answer(value)
        return from_first(list)
    whole = [value, *answers()]
    return from_first(lambda: whole)


def agree(**values: Any) -> None:
    """Make sure that all processes begin alike. Raises RunError naming what differs."""
    if world() == 1:
        return
    everyone = gathered(values)
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
    return values if world() == 1 else added(gathered(values))


def added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Numbers by name, added up in order."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
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
