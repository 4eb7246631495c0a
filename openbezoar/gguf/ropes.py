"""Rotary embeddings with scaled frequencies, as llama.cpp reads them from a GGUF.

linear and yarn are keys (GGUF specification, ARCH.rope.scaling.*). Llama 3.1's scaling is a
tensor: one divisor a frequency, ``rope_freqs.weight`` [head_dim / 2], which readers apply for
architecture llama (ggml-org/llama.cpp, conversion of Llama models and src/llama-model.cpp).
What a reader fixes and the file cannot say is refused with that reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from openbezoar.models.files.rope_scaling import llama3_factors

YARN = {"beta_fast": 32.0, "beta_slow": 1.0}  # llama.cpp's; arXiv 2309.00071, section 3.2


def ropes_of(config: Any) -> list[dict[str, Any]]:
    """The rotary embedding's parameters: of all layers, or of full attention first and sliding second."""
    stated = config.rope_parameters
    return (
        [dict(stated[kind]) for kind in ("full_attention", "sliding_attention")]
        if "full_attention" in stated
        else [dict(stated)]
    )


def kind_of(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def unwritable(config: Any, architecture: str) -> Iterator[str]:
    """Why a model's rotary embedding has no GGUF form; nothing where it has one."""
    first, *others = ropes_of(config)
    for rope in others:
        if kind_of(rope) != "default":
            yield f"a rotary embedding of type {kind_of(rope)} in its sliding layers, where readers scale nothing"
    kind = kind_of(first)
    if kind == "llama3" and architecture != "llama":
        yield "a rotary embedding of type llama3, whose factors readers apply for architecture llama only"
    elif kind == "yarn":
        odd = [
            f"{key} {first[key]:g}" for key, usual in YARN.items() if first.get(key) is not None and first[key] != usual
        ]
        odd += [f"{key} {first[key]}" for key in ("attention_factor", "mscale", "mscale_all_dim") if first.get(key)]
        odd += ["truncate false"] if first.get("truncate") is False else []
        if odd or architecture not in ("llama", "qwen2", "qwen3"):
            yield (
                f"a rotary embedding of type yarn {f'with {odd[0]}' if odd else 'in ' + architecture}, which readers"
                " compute otherwise"
            )
    elif kind == "dynamic":
        yield "a rotary embedding of type dynamic, whose base depends on the length of the text"
    elif kind not in ("default", "linear", "llama3"):
        yield f"a rotary embedding of type {kind}, which is not written here"


def write_scaling(writer: Any, config: Any) -> None:
    """Put the keys of a scaled rotary embedding into a ``gguf.GGUFWriter``; its tensor, if it has
    one, is ``frequency_factors``.
    """
    from gguf import RopeScalingType

    rope = ropes_of(config)[0]
    if kind_of(rope) == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind_of(rope) == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope.get("factor") or config.max_position_embeddings / original))
        writer.add_rope_scaling_orig_ctx_len(int(original))


def frequency_factors(config: Any) -> list[float] | None:
    """What each frequency of a head is divided by, [head_dim / 2]; None where the embedding has no such factors."""
    rope = ropes_of(config)[0]
    if kind_of(rope) != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return llama3_factors(head_dim, float(rope["rope_theta"]), rope)
