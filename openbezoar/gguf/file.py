"""A GGUF of a released model folder, written tensor by tensor.

Reads safetensors, ``config.json``, ``tokenizer.json`` and ``chat_template.jinja``; writes one
``.gguf``. What is held at a time is one tensor as it is stored in the file, and a slice of it
in fp32. Container and quantisation are the ``gguf`` package's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import ModelError
from openbezoar.gguf.architectures import Architecture, architecture_of, write_shape
from openbezoar.gguf.ropes import frequency_factors
from openbezoar.gguf.vocabulary import read_vocabulary
from openbezoar.models.files.rope_scaling import FREQS
from openbezoar.recipe.tell_steps import GgufForm

Form = GgufForm | Literal["f32"]  # what a release writes, and what an engine may read for itself
SUFFIX: Mapping[GgufForm, str] = {"f16": "F16", "q8_0": "Q8_0"}
SLICE = 1 << 22  # elements that are converted at a time


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file. ``heads``: rows are stored for paired rotation; ``offset``: added to the values."""

    name: str
    file: Path
    source: str
    shape: tuple[int, ...]
    heads: int | None
    offset: float


def write_gguf(folder: Path, formatter: Formatter, kind: Form, *, out: Path, about: Mapping[str, str]) -> None:
    """Write the model in ``folder`` as a GGUF.

    kind: 'f32', 'f16', or 'q8_0' (blocks of 32 int8 with one fp16 scale); vectors stay in fp32 in all,
    and matrices whose rows are no multiple of 32 in fp16. about: 'name', 'license', 'base'.
    Raises ModelError, before anything is written, for a model or tokenizer that has no GGUF
    form here, and for a weight beyond fp16's range.
    """
    import gguf
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder))
    architecture = architecture_of(config)
    vocabulary = read_vocabulary(folder, config.vocab_size, formatter)
    tensors = _tensors(folder, config, architecture)
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, architecture.name)
    writer.add_name(about["name"])
    writer.add_license(about["license"])
    types = gguf.LlamaFileType
    writer.add_file_type({"f32": types.ALL_F32, "f16": types.MOSTLY_F16, "q8_0": types.MOSTLY_Q8_0}[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_shape(writer, config, architecture)
    vocabulary.write(writer)
    try:
        _write_tensors(writer, tensors, kind, frequency_factors(config))
    except ModelError:
        part.unlink(missing_ok=True)
        raise
    finally:
        writer.close()
    part.replace(out)


def _tensors(folder: Path, config: Any, architecture: Architecture) -> list[Tensor]:
    """The file's tensors, in the order of the model's own."""
    import gguf
    from safetensors import safe_open

    from openbezoar.models.shards import files_of, skeleton

    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    files = files_of(folder)
    tied = bool(config.tie_word_embeddings)
    sources = [name for name in skeleton(folder).state_dict() if not (tied and name == "lm_head.weight")]
    tensors = []
    for source in sources:
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if target is None or source not in files:
            raise ModelError(
                f"no GGUF: the tensor '{source}' is {'not in the weights' if target else 'unknown to the gguf package'}"
            )
        with safe_open(files[source], framework="pt") as stored:  # type: ignore[no-untyped-call]
            shape = tuple(stored.get_slice(source).get_shape())
        heads = (
            {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(source.split(".")[-2])
            if architecture.paired_rope
            else None
        )
        offset = architecture.norm_offset if source.endswith("norm.weight") else 0.0
        tensors.append(Tensor(target, files[source], source, shape, heads, offset))
    return tensors


def _write_tensors(writer: Any, tensors: list[Tensor], kind: Form, factors: Sequence[float] | None) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType

    divisors = None if factors is None else np.array(factors, dtype=np.float32)
    if divisors is not None:
        writer.add_tensor_info(
            FREQS, divisors.shape, divisors.dtype, divisors.nbytes, raw_dtype=GGMLQuantizationType.F32
        )
    for tensor in tensors:
        form = _form(tensor, kind)
        shape = _stored_shape(tensor, form)
        dtype = {"F32": np.float32, "F16": np.float16, "Q8_0": np.uint8}[form.name]
        writer.add_tensor_info(
            tensor.name, shape, np.dtype(dtype), int(np.prod(shape)) * np.dtype(dtype).itemsize, raw_dtype=form
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for tensor in tensors:
        writer.write_tensor_data(_values(tensor, _form(tensor, kind)))


def _form(tensor: Tensor, kind: Form) -> Any:
    """The stored type: fp32 for vectors, else ``kind`` where rows divide into its blocks."""
    from gguf import GGMLQuantizationType as Stored

    if len(tensor.shape) == 1 or kind == "f32":
        return Stored.F32
    return Stored.Q8_0 if kind == "q8_0" and tensor.shape[-1] % 32 == 0 else Stored.F16


def _stored_shape(tensor: Tensor, form: Any) -> tuple[int, ...]:
    from gguf.quants import quant_shape_to_byte_shape

    return quant_shape_to_byte_shape(tensor.shape, form) if form.name == "Q8_0" else tensor.shape


def _values(tensor: Tensor, form: Any) -> Any:
    """A tensor as stored: fp32 [n], fp16 [rows, columns] or the blocks' bytes, uint8 [rows, columns / 32 * 34]."""
    import numpy as np
    import torch
    from gguf.quants import Q8_0
    from safetensors import safe_open

    dtype = {"F32": np.float32, "F16": np.float16, "Q8_0": np.uint8}[form.name]
    out = np.empty(_stored_shape(tensor, form), dtype=dtype)
    rows = max(1, SLICE // int(np.prod(tensor.shape[1:]) or 1))
    with safe_open(tensor.file, framework="pt") as stored:  # type: ignore[no-untyped-call]
        source = stored.get_slice(tensor.source)
        for first in range(0, tensor.shape[0], rows):
            piece = source[first : first + rows].to(torch.float32) + tensor.offset
            values = piece.to(torch.float16 if form.name == "F16" else torch.float32)
            if not torch.isfinite(values).all():
                raise ModelError(
                    f"no {form.name} GGUF: the tensor '{tensor.source}' holds a value that fp16 cannot; the safetensors"
                    " are complete"
                )
            out[first : first + rows] = Q8_0.quantize_rows(values.numpy()) if form.name == "Q8_0" else values.numpy()
    return out if tensor.heads is None else out[_paired(tensor.shape[0], tensor.heads)]


def _paired(rows: int, heads: int) -> Any:
    """Order of the rows of q or k in which the features that rotate together are neighbours; they
    are half a head apart in the model.
    """
    import numpy as np

    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
