"""Scaled rotary embeddings in GGUF files: Llama 3.1's factors, and what a GGUF that is read says of its scaling.

transformers reads neither, so that a Llama 3.1 from a GGUF had the frequencies of Llama 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError
from openbezoar.models.files.gguf_header import GgufHeader

FREQS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of all released Llama 3.1 to 3.3, whose 'factor' is 8 or 32 (their config.json)."""


def llama3_factors(head_dim: int, base: float, rope: Mapping[str, Any]) -> list[float]:
    """What each frequency of a head is divided by, [head_dim / 2] (meta-llama/llama-models,
    models/llama3/model.py, apply_scaling).

    A wavelength of under L / high positions is left alone, one of over L / low is divided by
    ``factor``; between them 1 / ((1 - t) / factor + t), t = (L / wavelength - low) / (high - low).
    """
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    length = float(rope["original_max_position_embeddings"])
    factors = []
    for place in range(0, head_dim, 2):
        wave = 2 * math.pi * base ** (place / head_dim)
        if wave < length / high:
            t = 1.0
        elif wave > length / low:
            t = 0.0
        else:
            t = (length / wave - low) / (high - low)
        factors.append(1 / ((1 - t) / factor + t))
    return factors


def stated_in(gguf: Path, header: GgufHeader) -> dict[str, Any] | None:
    """A GGUF's scaling in transformers' words; None where it has none. Raises ModelError for one that is not read."""
    arch = header.fields.get("general.architecture")
    kind = header.fields.get(f"{arch}.rope.scaling.type") or "none"
    factor, original = (
        header.fields.get(f"{arch}.rope.scaling.factor"),
        header.fields.get(f"{arch}.rope.scaling.original_context_length"),
    )
    if FREQS in header.tensors:
        return _llama3(gguf, header)
    if kind == "none" or factor in (None, 0, 1):
        if not any(name.startswith("rope_factors_") for name in header.tensors):
            return None
    elif kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    elif kind == "yarn" and original:
        return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": int(original)}
    raise ModelError(
        f"{gguf}: its rotary embedding is scaled in a way that is not read from a GGUF ({kind}); take the model's"
        " safetensors"
    )


def _llama3(gguf: Path, header: GgufHeader) -> dict[str, Any] | None:
    """The settings that give the factors in the file."""
    arch, info = header.fields.get("general.architecture"), header.tensors[FREQS]
    if info.kind != 0:
        raise ModelError(f"{gguf}: '{FREQS}' is not in 32 bits; take another file of the model, or its safetensors")
    with gguf.open("rb") as file:
        file.seek(header.data + info.offset)
        number = math.prod(info.shape)
        factors = struct.unpack(f"<{number}f", file.read(4 * number))
    if all(factor == 1 for factor in factors):
        return None
    rope = {"rope_type": "llama3", "factor": float(round(max(factors), 4)), **LLAMA3}
    expected = llama3_factors(2 * number, float(header.fields.get(f"{arch}.rope.freq_base", 10000.0)), rope)
    if any(abs(a - b) > 1e-4 * b for a, b in zip(factors, expected, strict=True)):
        raise ModelError(
            f"{gguf}: the factors of its rotary embedding are not those of Llama 3.1 to 3.3; take the model's"
            " safetensors"
        )
    return rope
