"""Which model architectures have a GGUF form here, and what a GGUF says about one.

Reads a transformers config; writes nothing. The keys are those of the GGUF specification
(ggml-org/ggml, docs/gguf.md). What a reader of GGUF files takes for granted about an
architecture, and the file therefore cannot say, is checked here: a model that differs is
refused with one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from openbezoar.errors import ModelError
from openbezoar.gguf.ropes import ropes_of, unwritable, write_scaling

GEMMA_ACTIVATION = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Architecture:
    """How one model type is written."""

    name: str  # general.architecture
    activation: str
    paired_rope: bool = False  # rotates neighbouring features, so that rows of q and k are stored in another order
    norm_offset: float = 0.0  # added to stored norm weights: readers multiply by w, the model by 1 + w
    biases: bool = False  # on q, k and v
    check: Callable[[Any], Iterator[str]] = lambda config: iter(())


def _gemma2(config: Any) -> Iterator[str]:
    yield from _gemma(config)
    yield from _windows(config, 2)


def _gemma3(config: Any) -> Iterator[str]:
    yield from _gemma(config)
    yield from _windows(config, 6)
    if config.attn_logit_softcapping or config.final_logit_softcapping:
        yield "soft caps"
    if getattr(config, "use_bidirectional_attention", False):
        yield "bidirectional attention"


def _gemma(config: Any) -> Iterator[str]:
    if config.query_pre_attn_scalar != config.head_dim:
        yield f"query_pre_attn_scalar {config.query_pre_attn_scalar} beside head_dim {config.head_dim}"


def _windows(config: Any, every: int) -> Iterator[str]:
    expected = [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != expected:
        yield f"full attention elsewhere than on every layer of number {every}"


def _full_attention(config: Any) -> Iterator[str]:
    if getattr(config, "use_sliding_window", False):
        yield "a sliding window"


KNOWN = {
    "llama": Architecture("llama", "silu", paired_rope=True),
    "qwen2": Architecture("qwen2", "silu", biases=True, check=_full_attention),
    "qwen3": Architecture("qwen3", "silu", check=_full_attention),
    "gemma2": Architecture("gemma2", GEMMA_ACTIVATION, norm_offset=1.0, check=_gemma2),
    "gemma3_text": Architecture("gemma3", GEMMA_ACTIVATION, norm_offset=1.0, check=_gemma3),
}


def architecture_of(config: Any) -> Architecture:
    """The architecture of a transformers config. Raises ModelError, naming it and what about it has
    no GGUF form here.
    """
    architecture = KNOWN.get(config.model_type)
    if architecture is None:
        raise ModelError(
            f"no GGUF for architecture '{config.model_type}': expected one of {', '.join(KNOWN)}; the safetensors are"
            " complete"
        )
    odd = list(architecture.check(config))
    if (activation := getattr(config, "hidden_activation", None) or config.hidden_act) != architecture.activation:
        odd.append(f"activation {activation}")
    odd += unwritable(config, architecture.name)
    if not architecture.biases and (getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)):
        odd.append("biases")
    if odd:
        raise ModelError(
            f"no GGUF for this {config.model_type} model: it has {', '.join(odd)}, which the format's readers do not"
            " expect of it"
        )
    return architecture


def write_shape(writer: Any, config: Any, architecture: Architecture) -> None:
    """Put a model's sizes and constants into a ``gguf.GGUFWriter``."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    ropes = ropes_of(config)
    writer.add_rope_freq_base(float(ropes[0]["rope_theta"]))
    if len(ropes) == 2:
        writer.add_float32(f"{architecture.name}.rope.freq_base_swa", float(ropes[1]["rope_theta"]))
    write_scaling(writer, config)
    if architecture.name in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture.name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
