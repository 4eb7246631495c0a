"""How long a training pass takes on a card that nobody has timed it on: a cost model from first principles.

Products at the card's rate, what other kernels read and write at its bandwidth, NF4's unpacking, and the host's
launches, which a short pass waits for. Expect it to be right within a quarter or so; nothing of it was measured.
Imports no torch, so that ``plan`` can use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openbezoar.machine.cards import LINK, SPEEDS, STREAM, Speed
from openbezoar.machine.devices import Device, Dtype
from openbezoar.models.fitting import held, recomputed_layers, settled, training_memory
from openbezoar.models.memory import TrainingMemory, held_as, layer_inputs, parameters, trained_parameters
from openbezoar.recipe.blocks import Shape
from openbezoar.recipe.train_steps import Training

# Bytes that eager kernels read and write for each value, forward and backward, counted from their operations:
# a norm in 17 kernels, some in fp32; SwiGLU; rotary positions of queries and keys; the residual's sums and attention's
# copy; an adapter's masks and masked copies of its input.
NORM, SWIGLU, ROTARY, RESIDUAL, DROPOUT = 64, 32, 34, 32, 33
FORWARD = 0.39  # the share of these of a forward pass
UNPACKED = 2.5  # bytes that unpacking a weight of NF4 reads and writes
# Operations of a decoder layer other than views, as torch dispatches them, and the host's time for one: assumed.
FORWARD_OPS, BACKWARD_OPS, OP = 60, 100, 15e-6
PASS, TOKEN = 2e-3, 1e-6  # seconds of the host around a pass, and of making its layout: assumed
SCORED = 0.5  # of the tokens, which the vocabulary head is run for; as elsewhere in the plan


@dataclass(frozen=True)
class Fit:
    """What a training step comes to on a device, and what it would take. measured: whether that was ever checked."""

    device: str
    tokens: int  # of a pass, at most
    dtype: Dtype
    held: str
    recomputed: int  # decoder layers
    layers: int
    memory: TrainingMemory
    peak: int  # bytes
    tokens_per_second: float | None  # of all its cards; None where nothing is known of them
    measured: bool = False


def fit_of(shape: Shape, step: Training, device: Device, *, length: float, passes: int = 2) -> Fit:
    """A step on a device. length: tokens of a row or pair; passes: over a token, forward and backward each one (a
    reference's forward pass is a third).
    """
    step = settled(step, shape, device)
    memory = training_memory(shape, step, device)
    return Fit(
        device.name,
        step.tokens,
        step.dtype,
        held(shape, step, device),
        recomputed_layers(shape, step, device),
        shape.layers,
        memory,
        memory.peak,
        _pace(shape, step, device, length, passes),
    )


def _pace(shape: Shape, step: Training, device: Device, length: float, passes: int) -> float | None:
    """Tokens a second of optimiser steps of ``step.batch`` rows, over all cards of the device."""
    speed = SPEEDS.get(device.card)
    if speed is None or step.dtype == "float32" or length <= 0:
        return None
    mine = step.batch * length / device.count
    cut = math.ceil(mine / max(step.tokens, length))
    seconds = cut * pass_seconds(shape, step, device, speed, mine / cut, length=length / step.paths, passes=passes)
    if device.count > 1:  # each sends and is sent all gradients but its share, twice
        seconds += 2 * (1 - 1 / device.count) * 4 * trained_parameters(shape, step) / LINK
    return mine * device.count / seconds


def pass_seconds(
    shape: Shape, step: Training, device: Device, speed: Speed, tokens: float, *, length: float, passes: int
) -> float:
    """Seconds of one pass of so many tokens of a settled step, forward and backward. length: of a path."""
    linear, _ = parameters(shape)
    again = recomputed_layers(shape, step, device) / shape.layers  # of a forward pass
    forwards = passes - 1 + again
    head = shape.vocabulary * shape.hidden * SCORED * passes
    products = linear * (forwards + 1 + step.whole) + head + 3 * (0 if step.whole else trained_parameters(shape, step))
    width = shape.heads * (shape.head_dim or shape.hidden // shape.heads)
    scores = shape.layers * length * width * (forwards + 2.5)  # a causal row's; the backward pass makes them again
    busy = 2 * tokens * (products + scores) / speed.rate(tokens)
    moved = tokens * shape.layers * _elementwise(shape, step) * (FORWARD * forwards + 1 - FORWARD)
    if held_as(shape, step, device) == "nf4":
        moved += UNPACKED * linear * (forwards + 1)
    busy += moved / (STREAM * speed.bandwidth)
    launches = shape.layers * (FORWARD_OPS * forwards + BACKWARD_OPS) * OP
    return max(busy, launches) + PASS + TOKEN * tokens


def _elementwise(shape: Shape, step: Training) -> float:
    """Bytes that a token moves in a layer beside the products, forward and backward."""
    head = shape.head_dim or shape.hidden // shape.heads
    q, kv = shape.heads * head, (shape.kv_heads or shape.heads) * head
    masked = 0 if step.lora == "none" or not step.lora.dropout else sum(layer_inputs(shape, step.lora))  # type: ignore[union-attr]
    return (2 * NORM + RESIDUAL) * shape.hidden + SWIGLU * shape.mlp + ROTARY * (q + kv) + DROPOUT * masked
