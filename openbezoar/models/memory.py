"""How much memory a model of a given shape takes: parameters, weights as held, what a training step keeps.

From first principles: each term is a count of values times their width. The two constants
are measured and say of what. Nothing here imports torch, so that ``plan`` can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openbezoar.machine.devices import Device, Dtype, this_device
from openbezoar.recipe.blocks import Shape
from openbezoar.recipe.train_steps import ALL_LINEAR, Lora, Training

# The interpreter with torch, transformers, peft and bitsandbytes loaded (benchmarks/full_size.py, ``process``).
PROCESS_BYTES = 460 << 20
SURE = 0.85  # of a device's memory that estimates may fill; they are good to some 15 %
# A GPU's own share: CUDA's context and cuBLAS's workspace. A rough figure of common knowledge, not measured here.
CUDA_BYTES = 600_000_000
# Graphs and workspaces of an engine on a GPU, beside weights, keys and values. A rough figure, not measured here.
ENGINE_BYTES = 1_500_000_000
# Parameters of a base from which 'quantize: auto' takes NF4; what it costs a smaller one is in docs/results.md.
LARGE = 1_500_000_000


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape in a model's config, as in config.json. Raises KeyError for one of another kind of model."""
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"),
        mlp=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        tied_head=config.get("tie_word_embeddings", False),
    )


def shape_in(model: Any) -> Shape | None:
    """The shape of a model of transformers, bare or wrapped by PEFT; None for one whose sizes have other names."""
    try:
        return shape_of(model.config.get_text_config().to_dict())
    except KeyError:
        return None


def parameters(shape: Shape) -> tuple[int, int]:
    """(parameters of the linear layers inside the trunk, parameters of embeddings and head)."""
    head = shape.head_dim or shape.hidden // shape.heads
    kv = (shape.kv_heads or shape.heads) * head
    layer = shape.hidden * (2 * shape.heads * head + 2 * kv) + 3 * shape.hidden * shape.mlp
    return shape.layers * layer, (1 if shape.tied_head else 2) * shape.vocabulary * shape.hidden


def _targets(shape: Shape) -> dict[str, tuple[int, int]]:
    """(values in, values out) of each linear layer that can carry an adapter."""
    head = shape.head_dim or shape.hidden // shape.heads
    q, kv = shape.heads * head, (shape.kv_heads or shape.heads) * head
    return {
        "q_proj": (shape.hidden, q),
        "k_proj": (shape.hidden, kv),
        "v_proj": (shape.hidden, kv),
        "o_proj": (q, shape.hidden),
        "gate_proj": (shape.hidden, shape.mlp),
        "up_proj": (shape.hidden, shape.mlp),
        "down_proj": (shape.mlp, shape.hidden),
    }


def _sizes(shape: Shape, lora: Lora) -> dict[str, tuple[int, int]]:
    """(values in, values out) of the layers inside the trunk that carry the adapter."""
    sizes = _targets(shape)
    names = list(sizes) if lora.targets == ALL_LINEAR else [name for name in lora.targets if name != HEAD]
    return {name: sizes.get(name, (shape.hidden, shape.hidden)) for name in names}


def layer_inputs(shape: Shape, lora: Lora) -> list[int]:
    """Values that go into each layer of a decoder layer which carries the adapter."""
    return [given for given, _ in _sizes(shape, lora).values()]


def trained_parameters(shape: Shape, step: Training) -> int:
    """Trainable parameters of the step: its adapter's, or all."""
    lora = step.lora
    if not isinstance(lora, Lora):
        return sum(parameters(shape))
    a_layer = sum(map(sum, _sizes(shape, lora).values()))
    return lora.r * (shape.layers * a_layer + (shape.hidden + shape.vocabulary) * (HEAD in lora.targets))


def trained_bytes(shape: Shape, step: Training) -> int:
    """Of what is trained, beside the weights as held: fp32 values (which a whole model in fp32 is itself), their
    gradients, and AdamW's two moments, in 8 bits each with a block's fp32 scale for 256 of them (arXiv 2110.02861).
    """
    moments = 8 if step.optimizer == "adamw" else 2 * (1 + 4 / 256)
    values = 0 if step.whole and step.dtype == "float32" else 4
    return int(trained_parameters(shape, step) * (values + 4 + moments))


def quantisation(asked: Literal["nf4", "none", "auto"], values: int) -> Literal["nf4", "none"]:
    """How a base of so many parameters is held. A function of the base alone: a step's key and its result
    do not depend on the machine's memory.
    """
    if asked == "auto":
        return "none" if values < LARGE else "nf4"
    return asked


def quantised(shape: Shape, step: Training) -> Literal["nf4", "none"]:
    """How a step holds a base of this shape."""
    return quantisation(step.quantize, sum(parameters(shape)))


def weight_bytes(shape: Shape, quantize: str, width: int) -> int:
    """The base as held while it is trained on: NF4 with double quantisation is 4 + 8/64 +
    32/(64·256) bits a weight [QLoRA].
    """
    linear, outer = parameters(shape)
    return int((linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8 if quantize == "nf4" else linear * width) + outer * width)


def unpacks(in_16_bits: int, nf4: str, dtype: Dtype, device: Device | None = None) -> bool:
    """Whether an NF4 base, of so many bytes in 16 bits, is held unpacked: as asked for, or by the
    free memory of a machine without a GPU. (For a GPU ``fitting.settled`` has chosen.)
    """
    if nf4 != "auto":
        return nf4 == "unpacked"
    device = device or this_device()
    return device.kind == "cpu" and in_16_bits * device.width(dtype) // 2 <= (device.bytes or 0) / 4


def stays_packed(in_16_bits: int, dtype: Dtype, device: Device | None = None) -> bool:
    """Whether an NF4 base that only answers stays packed: on a GPU that cannot hold it in 16 bits."""
    device = device or this_device()
    room = SURE * device.bytes - CUDA_BYTES if device.bytes else float("inf")
    return device.kind == "cuda" and in_16_bits * device.width(dtype) // 2 > room


def held_as(shape: Shape, step: Training, device: Device) -> Literal["nf4", "none"]:
    """'nf4' if the base lies packed in memory."""
    if quantised(shape, step) == "nf4" and unpacks(2 * sum(parameters(shape)), step.nf4, step.dtype, device):
        return "none"
    return quantised(shape, step)


def process_bytes(device: Device) -> int:
    """What is taken on the device before any model is there."""
    return PROCESS_BYTES if device.kind == "cpu" else CUDA_BYTES


def engine_bytes(shape: Shape, width: int, tokens: float, device: Device) -> int:
    """An engine that answers: its process and what it starts with, weights, and keys and values of so many tokens."""
    started = 0 if device.kind == "cpu" else ENGINE_BYTES
    return process_bytes(device) + started + width * sum(parameters(shape)) + cache_bytes(shape, tokens)


def cache_bytes(shape: Shape, tokens: float) -> int:
    """Keys and values of so many tokens, in 16 bits."""
    head = shape.head_dim or shape.hidden // shape.heads
    return int(tokens * shape.layers * 2 * (shape.kv_heads or shape.heads) * head * 2)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step at its peak, term by term."""

    process: int  # the interpreter and its libraries, or CUDA's
    weights: int  # the base as held
    reference: int  # a second copy of the weights
    adapter: int  # or all that is trained: fp32 values, gradients and AdamW's two moments
    activations: int  # for the backward pass, by all layers
    layer: int  # what one layer holds while it is passed backward, beyond what is kept

    @property
    def peak(self) -> int:
        return self.process + self.weights + self.reference + self.adapter + self.activations + self.layer


def activations_of_a_layer(shape: Shape, step: Training, width: int) -> int:
    """Bytes that one token leaves in one decoder layer for its backward pass.

    The two norms' inputs; q, k, v and attention's output; the MLP's gate and up projection
    (training/layers.py, forest/attention.py). A frozen linear layer keeps nothing of its input;
    an adapter does, once for those that share it, and with dropout a byte a value for its own mask. A trained layer
    keeps its input as an adapter does; a trained norm, which is transformers' own, its input in fp32 and what came
    of it, six bytes a value more.
    """
    head = shape.head_dim or shape.hidden // shape.heads
    q, kv = shape.heads * head, (shape.kv_heads or shape.heads) * head
    norms = width * 2 * shape.hidden
    attention = width * (2 * q + 2 * kv)
    mlp = width * 2 * shape.mlp
    lora = step.lora if isinstance(step.lora, Lora) else Lora(targets=ALL_LINEAR, dropout=0.0)
    taken = {name: size for name, (size, _) in _sizes(shape, lora).items()}
    inputs = {INPUTS.get(name, name): size for name, size in taken.items()}
    masks = sum(taken.values()) if lora.dropout else 0
    norms += 2 * 6 * shape.hidden if step.whole else 0
    return norms + attention + mlp + width * sum(inputs.values()) + masks


HEAD = "lm_head"
"""The vocabulary head, one for all layers."""
INPUTS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}
"""Linear layers that are given the same tensor."""


def memory_of(shape: Shape, step: Training, recomputed: int, device: Device) -> TrainingMemory:
    """The peak of a settled step (``fitting.settled``) for a pass of its tokens, with so many layers recomputed."""
    width, held = device.width(step.dtype), held_as(shape, step, device)
    tokens = max(step.tokens, step.max_length * step.paths)  # a pair is one tree of two paths
    a_layer = tokens * activations_of_a_layer(shape, step, width)
    # On the way back through the MLP: gradients of its product, gate and up projection; or of the product, beside
    # the down projection's weight made 16-bit again.
    wide, weight = tokens * shape.mlp * width, shape.mlp * shape.hidden * width
    back = max(3 * wide, wide + (weight if held == "nf4" else 0)) + 2 * tokens * shape.hidden * width
    return TrainingMemory(
        process=process_bytes(device),
        weights=weight_bytes(shape, held, width),
        reference=weight_bytes(shape, held, width) if step.second_copy else 0,
        adapter=trained_bytes(shape, step),
        activations=recomputed * tokens * shape.hidden * width + (shape.layers - recomputed) * a_layer,
        layer=(a_layer if recomputed else 0) + back,
    )


def merge_memory(shape: Shape, device: Device | None = None) -> int:
    """Peak bytes of a merge: the unmerged model in 16 bits, or what the device holds those in, and its last
    large weight in the making; the shards are written with less.
    """
    device = device or this_device()
    width = device.width("bfloat16")  # of the merged model, whose drift is measured; the files take two bytes
    return process_bytes(device) + width * sum(parameters(shape)) + shape.mlp * shape.hidden * (2 + 12)
