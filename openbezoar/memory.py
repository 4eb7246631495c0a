"""How much memory a model of a given shape takes: parameters, weights as held, what a training step keeps.

From first principles: each term is a count of values times their width. The two constants
are measured and say of what. Nothing here imports torch, so that ``plan`` can use it.
"""

from __future__ import annotations

from dataclasses import dataclass

from openbezoar.recipe import Shape, Training

# The interpreter with torch, transformers, peft and bitsandbytes loaded (benchmarks/full_size.py, ``process``).
PROCESS_BYTES = 460 << 20
# Without being told, activations are kept whole where the step then stays within a 16 GB card or machine.
AUTO_BYTES = 12_000_000_000


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


def lora_parameters(shape: Shape, step: Training) -> int:
    """Trainable parameters of the step's adapter."""
    sizes = _targets(shape)
    return shape.layers * step.lora.r * sum(sum(sizes.get(t, (shape.hidden, shape.hidden))) for t in step.lora.targets)


def weight_bytes(shape: Shape, quantize: str, width: int) -> int:
    """The base as held while it is trained on: NF4 with double quantisation is 4 + 8/64 + 32/(64·256) bits a weight [QLoRA]."""
    linear, outer = parameters(shape)
    return int((linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8 if quantize == "nf4" else linear * width) + outer * width)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step at its peak, term by term."""

    process: int  # the interpreter and its libraries
    weights: int  # the base as held
    adapter: int  # fp32 values, gradients and AdamW's two moments
    kept: int  # for the backward pass, by all layers
    layer: int  # what one layer holds while it is passed backward, beyond what is kept
    scratch: int  # one weight made 16-bit again, or one chunk of the head

    @property
    def peak(self) -> int:
        return self.process + self.weights + self.adapter + self.kept + self.layer + self.scratch


def kept_of_a_layer(shape: Shape, step: Training, width: int) -> int:
    """Bytes that one token leaves in one decoder layer for its backward pass.

    Two norms (their input in fp32 and the normalised value); q, k, v before and after
    rotation; attention's output; the MLP's gate, its activation, up and their product. A
    frozen linear layer keeps nothing of its input. An adapter keeps its input in fp32, with
    dropout also the dropped-out one and its mask, and x A.
    """
    head = shape.head_dim or shape.hidden // shape.heads
    q, kv = shape.heads * head, (shape.kv_heads or shape.heads) * head
    norms = 2 * shape.hidden * (4 + 2 * width)
    attention = width * (2 * (q + kv) + kv + q)
    mlp = width * 4 * shape.mlp
    sizes = _targets(shape)
    adapters = sum(sizes.get(t, (shape.hidden, shape.hidden))[0] for t in step.lora.targets) * ((4 + 4 + 1) if step.lora.dropout else 4)
    return norms + attention + mlp + adapters


def _memory(shape: Shape, step: Training, checkpointing: bool) -> TrainingMemory:
    width = 4 if step.dtype == "float32" else 2
    tokens = max(step.tokens, step.max_length)
    a_layer = tokens * kept_of_a_layer(shape, step, width)
    boundary = tokens * shape.hidden * width
    # Gradients on the way back through the MLP: of the product, the gate, the up projection and the input.
    back = tokens * width * (3 * shape.mlp + 2 * shape.hidden)
    largest = shape.mlp * shape.hidden * width
    head_chunk = 2 * (64 << 20)
    return TrainingMemory(
        process=PROCESS_BYTES,
        weights=weight_bytes(shape, step.quantize, width),
        adapter=lora_parameters(shape, step) * 16,
        kept=shape.layers * boundary if checkpointing else shape.layers * a_layer,
        layer=(a_layer if checkpointing else 0) + back,
        scratch=max(largest if step.quantize == "nf4" else 0, head_chunk),
    )


def checkpoints(shape: Shape, step: Training) -> bool:
    """Whether the step recomputes activations: as the recipe says; with ``auto``, where keeping them would take more than 12 GB."""
    if step.checkpointing != "auto":
        return step.checkpointing
    return _memory(shape, step, checkpointing=False).peak > AUTO_BYTES


def training_memory(shape: Shape, step: Training) -> TrainingMemory:
    """The peak of a training step, for a pass of ``tokens`` tokens."""
    return _memory(shape, step, checkpoints(shape, step))


def merge_memory(shape: Shape) -> int:
    """Peak bytes of a merge: one model in 16 bits while the drift is measured; a shard in the making is less."""
    return PROCESS_BYTES + 2 * sum(parameters(shape)) + 2 * (64 << 20)
