"""What a model folder stores, read without loading it: its JSON files, and its tensors' names, dtypes and shapes.

Of safetensors only the headers are read. Nothing here imports torch, so that ``plan`` can use it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
WEIGHTS = ("*.safetensors",)
TOKENIZER = ("vocab.txt", "merges.txt", "*.model", "*.model.v*", "*.tiktoken")
"""Tokenizers that are no JSON: WordPiece's and BPE's lists, SentencePiece's models
(tokenizer.model, spiece.model, Mistral's tokenizer.model.v3).
"""
READ = (*WEIGHTS, *TOKENIZER, "*.json", "*.jinja")
"""Files that a model is read from: these are downloaded, copied with a conversion, and part of a model's digest."""
TERMS = ("README.md", "LICEN[CS]E*", "NOTICE*", "COPYING*", "*USE_POLICY*", "*TERMS*")
"""Files that say what may be done with a model; they are downloaded and copied, but make it no other model."""
HEADER_BYTES = 100_000_000  # the most that the safetensors format allows
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of a value, by the format's words for dtypes."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file. dtype: the format's own word, such as BF16 or F8_E4M3; span: its bytes
    in the file, from and to.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    span: tuple[int, int]


def files(folder: Path, patterns: tuple[str, ...] = READ) -> list[Path]:
    """The folder's files that match, in order of their names."""
    matches = set(chain.from_iterable(folder.glob(pattern) for pattern in patterns))
    return sorted(file for file in matches if file.is_file())


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError where the file holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{file}: it cannot be read as JSON ({type(error).__name__}); fetch the model's files again"
        ) from None
    if not isinstance(content, dict):
        raise ModelError(
            f"{file}: expected a JSON object, found {type(content).__name__}; fetch the model's files again"
        )
    return content


def optional_json(file: Path) -> dict[str, Any]:
    """As ``read_json``; empty where there is no such file."""
    return read_json(file) if file.is_file() else {}


def header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. Raises ModelError for a file without a readable header.

    Format: a little-endian 64-bit length, then so many bytes of JSON
    (https://github.com/huggingface/safetensors#format).
    """
    with file.open("rb") as handle:
        length, first = file.stat().st_size, handle.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= size <= min(HEADER_BYTES, length - 8):
            raise ModelError(
                f"{file}: no safetensors header; the file is damaged or was not fetched whole, fetch it again"
            )
        try:
            content = json.loads(handle.read(size))
            tensors = {name: _stored(one, file, 8 + size) for name, one in content.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ModelError(
                f"{file}: its safetensors header cannot be read; the file is damaged, fetch it again"
            ) from None
    _check_spans(file, tensors, 8 + size, length)
    return tensors


def _stored(one: dict[str, Any], file: Path, start: int) -> Stored:
    first, last = one["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (first, last, *one["shape"])):
        raise ValueError("sizes that are none")
    return Stored(str(one["dtype"]), tuple(one["shape"]), file, (start + first, start + last))


def _check_spans(file: Path, tensors: Mapping[str, Stored], start: int, end: int) -> None:
    """Raises ModelError unless each tensor has the bytes of its shape, and all of them together are
    the rest of the file, as the format asks for.
    """
    place = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].span):
        bits = BITS.get(tensor.dtype)
        if bits is None:
            raise ModelError(
                f"{file}: tensor '{name}' is of the unknown dtype '{tensor.dtype[:20]}'; the file is damaged, or for a"
                " newer version"
            )
        if tensor.span[1] > end:
            raise ModelError(
                f"{file}: it ends before its tensor '{name}' does; it was not fetched whole, fetch it again"
            )
        if tensor.span[0] != place or 8 * (tensor.span[1] - tensor.span[0]) != bits * math.prod(tensor.shape):
            raise ModelError(
                f"{file}: the bytes of tensor '{name}' are not those of its shape, or another's too; the file is"
                " damaged, fetch it again"
            )
        place = tensor.span[1]
    if place != end:
        raise ModelError(f"{file}: {end - place:,} bytes belong to no tensor; the file is damaged, fetch it again")


def same_bytes(one: Stored, other: Stored) -> bool:
    """Whether two tensors are of one dtype and shape and hold the same bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as a, other.file.open("rb") as b:
        a.seek(one.span[0])
        b.seek(other.span[0])
        left = one.span[1] - one.span[0]
        while left > 0:
            take = min(left, 1 << 24)
            if a.read(take) != b.read(take):
                return False
            left -= take
    return True


def tensors_of(folder: Path) -> dict[str, Stored]:
    """The tensors of a model folder, by name; of one file and an index the file counts, as for transformers.

    Raises ModelError where there are no safetensors, or an index names a shard or a tensor that is not there.
    """
    if (folder / WHOLE).is_file():
        return header(folder / WHOLE)
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder}: neither {WHOLE} nor {INDEX}; expected a model folder with safetensors weights")
    named = read_json(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ModelError(f"{folder}: {INDEX} has no 'weight_map' of tensors to files; fetch it again")
    shards = sorted(set(named.values()))
    if absent := [file for file in shards if not (folder / file).is_file()]:
        raise ModelError(f"{folder}: {INDEX} names '{absent[0]}', which is not there; fetch the model's shards again")
    tensors: dict[str, Stored] = {}
    for file in shards:
        for name, tensor in header(folder / file).items():
            if name in tensors and not same_bytes(tensors[name], tensor):
                raise ModelError(
                    f"{folder}: '{tensors[name].file.name}' and '{file}' both hold a tensor '{name}', with other"
                    " values; fetch the model's shards again"
                )
            tensors.setdefault(name, tensor)
    if lost := sorted(set(named) - set(tensors)):
        raise ModelError(
            f"{folder}: {INDEX} names a tensor '{lost[0]}', which '{named[lost[0]]}' does not hold; fetch the model's"
            " shards again"
        )
    return tensors
