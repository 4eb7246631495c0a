"""What a model folder stores, read without loading it: its JSON files, and its tensors' names, dtypes and shapes.

Of safetensors only the headers are read. Nothing here imports torch, so that ``plan`` can use it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
WEIGHTS = ("*.safetensors",)
TOKENIZER = ("vocab.txt", "merges.txt", "*.model", "*.model.v*", "*.tiktoken")
"""Tokenizers that are no JSON: WordPiece's and BPE's lists, SentencePiece's models (tokenizer.model, spiece.model, Mistral's tokenizer.model.v3)."""
READ = (*WEIGHTS, *TOKENIZER, "*.json", "*.jinja")
"""Files that a model is read from: these are downloaded, copied with a conversion, and part of a model's digest."""
TERMS = ("README.md", "LICEN[CS]E*", "NOTICE*", "COPYING*", "*USE_POLICY*", "*TERMS*")
"""Files that say what may be done with a model; they are downloaded and copied, but make it no other model."""
HEADER_BYTES = 100_000_000  # the most that the safetensors format allows


@dataclass(frozen=True)
class Stored:
    """One tensor in a file. dtype: the format's own word, such as BF16 or F8_E4M3; span: its bytes in the file, from and to."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    span: tuple[int, int]


def files(folder: Path, patterns: tuple[str, ...] = READ) -> list[Path]:
    """The folder's files that match, in order of their names."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError where the file holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: it cannot be read as JSON ({type(error).__name__}); fetch the model's files again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(content).__name__}; fetch the model's files again")
    return content


def optional_json(file: Path) -> dict[str, Any]:
    """As ``read_json``; empty where there is no such file."""
    return read_json(file) if file.is_file() else {}


def header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. Raises ModelError for a file without a readable header.

    Format: a little-endian 64-bit length, then so many bytes of JSON (https://github.com/huggingface/safetensors#format).
    """
    with file.open("rb") as handle:
        first = handle.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= size <= min(HEADER_BYTES, file.stat().st_size - 8):
            raise ModelError(f"{file}: no safetensors header; the file is damaged, fetch it again")
        try:
            content = json.loads(handle.read(size))
            found = {name: _stored(one, file, 8 + size) for name, one in content.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ModelError(f"{file}: its safetensors header cannot be read; the file is damaged, fetch it again") from None
    return found


def _stored(one: dict[str, Any], file: Path, start: int) -> Stored:
    first, last = one["data_offsets"]
    return Stored(str(one["dtype"]), tuple(map(int, one["shape"])), file, (start + int(first), start + int(last)))


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
    found = {name: tensor for file in shards for name, tensor in header(folder / file).items()}
    if lost := sorted(set(named) - set(found)):
        raise ModelError(f"{folder}: {INDEX} names a tensor '{lost[0]}', which '{named[lost[0]]}' does not hold; fetch the model's shards again")
    return found
