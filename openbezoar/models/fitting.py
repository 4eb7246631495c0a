"""What a training step leaves to the device: tokens of a pass, arithmetic, how NF4 is held, layers to recompute.

None of it is part of a step's key: it changes time and memory, and of the result no more than rounding. Nothing
here imports torch, so that ``plan`` says what a run will choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from openbezoar.machine.devices import Device, Dtype, this_device
from openbezoar.models.memory import (
    SURE,
    TrainingMemory,
    held_as,
    memory_of,
    process_bytes,
    quantised,
    trained_parameters,
    weight_bytes,
)
from openbezoar.recipe.blocks import Shape
from openbezoar.recipe.train_steps import DTYPE, TOKENS, Training

# On a CPU activations are kept whole where the step then stays within an 8 GB machine.
CPU_BYTES = 7_500_000_000
# A pass of fewer leaves a GPU waiting for its launches; one of more costs memory and gains little.
PASSES = (16_384, 8_192, 4_096, 2_048, TOKENS)
ENOUGH = 4_096  # tokens of a pass from which unpacking NF4 in each of them is small beside the products

T = TypeVar("T", bound=Training)


def settled(step: T, shape: Shape | None, device: Device | None = None) -> T:
    """The step with ``tokens``, ``dtype`` and ``nf4`` as the device has them, where the recipe leaves them open.

    shape: the base's; None for one of unknown sizes, for which memory cannot be counted. device: this machine's if
    none is given. On a CPU a pass has ``TOKENS`` tokens, and NF4 stays 'auto', which is the loader's to decide.
    """
    device = device or this_device()
    given: Mapping[str, Any] = step.model_dump(include={"tokens", "dtype", "nf4"})
    dtype: Dtype = arithmetic_of(step, device)
    found = step.model_copy(update={"dtype": dtype, "tokens": TOKENS if given["tokens"] == "auto" else step.tokens})
    if device.kind == "cpu" or device.bytes is None or shape is None:
        return found
    longest = step.max_length * step.paths
    sizes = [size for size in PASSES if size <= max(TOKENS, step.batch * longest)]
    sizes = sizes if given["tokens"] == "auto" else [step.tokens]
    unpacked, packed = ({"nf4": way} for way in ("unpacked", "packed"))
    if quantised(shape, step) != "nf4" or given["nf4"] != "auto":
        unpacked = packed = {"nf4": step.nf4}

    again = shape.layers * (step.checkpointing is True)

    def largest(held: Mapping[str, Any], least: int) -> T | None:
        tries = (found.model_copy(update={**held, "tokens": size}) for size in sizes if size >= least)
        return next((one for one in tries if memory_of(shape, one, again, device).peak <= room_of(device)), None)

    return (
        largest(unpacked, min(ENOUGH, sizes[0]))
        or largest(packed, 0)
        or found.model_copy(update={**packed, "tokens": sizes[-1]})
    )


def arithmetic_of(step: Training, device: Device) -> Dtype:
    """The step's dtype; 'auto' is bfloat16, or float16 (whose loss is scaled) on a GPU that does not multiply it."""
    if step.model_dump(include={"dtype"})["dtype"] != "auto":
        return step.dtype
    return "float16" if device.kind == "cuda" and not device.bfloat16 else DTYPE


def held(shape: Shape, step: Training, device: Device) -> str:
    """In words, how a settled step holds its base."""
    if quantised(shape, step) == "none":
        return f"{8 * device.width(step.dtype)} bits a weight"
    return "NF4 packed" if held_as(shape, step, device) == "nf4" else "NF4 unpacked"


def room_of(device: Device) -> float:
    """Bytes that a step's estimate may reach before activations are recomputed."""
    return SURE * device.bytes if device.kind == "cuda" and device.bytes else CPU_BYTES


def recomputed_layers(shape: Shape, step: Training, device: Device | None = None) -> int:
    """How many decoder layers, the first ones, recompute their activations: as the recipe says, or with ``auto`` as
    few as bring the peak into the device's room; all where none do. On a CPU all or none: its room is
    a limit of choice, and one layer's recomputation costs as much there as any other's.
    """
    device = device or this_device()
    step = settled(step, shape, device)
    if step.checkpointing != "auto":
        return shape.layers * step.checkpointing
    choices = (0, shape.layers) if device.kind == "cpu" else range(shape.layers + 1)
    fits = (k for k in choices if memory_of(shape, step, k, device).peak <= room_of(device))
    return next(fits, shape.layers)


def training_memory(shape: Shape, step: Training, device: Device | None = None) -> TrainingMemory:
    """The peak of a training step, for a pass of its tokens; device: this machine's if none is given."""
    device = device or this_device()
    step = settled(step, shape, device)
    return memory_of(shape, step, recomputed_layers(shape, step, device), device)


def load_memory(shape: Shape, step: Training, device: Device | None = None) -> int:
    """Peak bytes while a base and its adapter are loaded.

    For NF4 the last large weight is still in the making beside all others: in 16 bits and in
    fp32, with the scaled values and their codes, or a product, in four bytes each.
    """
    device = device or this_device()
    step = settled(step, shape, device)
    width = device.width(step.dtype)
    making = shape.mlp * shape.hidden * (width + 12) if quantised(shape, step) == "nf4" else 0
    return (
        process_bytes(device)
        + weight_bytes(shape, held_as(shape, step, device), width)
        + 4 * (0 if step.whole else trained_parameters(shape, step))
        + making
    )


def step_memory(shape: Shape, step: Training, device: Device | None = None) -> int:
    """Peak bytes of an sft or dpo step: loading, or training."""
    device = device or this_device()
    return max(load_memory(shape, step, device), training_memory(shape, step, device).peak)
