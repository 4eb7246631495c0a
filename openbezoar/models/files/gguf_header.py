"""A GGUF file's header, every count of it held against the file's size before anything is made of it.

Layout after the GGUF specification, versions 2 and 3, little-endian: magic, version, number
of tensors, number of key/value pairs, the pairs, the tensors' names, shapes, types and
offsets, then the data, aligned. A file that states 2^60 of anything is refused at once,
where libraries allocate or loop for ever. Reads the header only; needs no package.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError

VERSIONS = (2, 3)
ALIGNMENT = 32  # of the data, unless general.alignment says otherwise
MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
DEEPEST = 2  # arrays within arrays; none of the specification's keys has any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LEAST_PAIR = 8 + 4 + 1  # bytes: an empty key, its type, a value of one byte
_LEAST_TENSOR = 8 + 4 + 4 + 8  # bytes: an empty name, no dimensions, type, offset


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header tells it. shape: the fastest dimension first; kind: ggml's number of
    the type; offset: bytes into the data.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF says of itself. ``fields``: values by key, arrays as lists; ``data``: bytes
    before the tensors' data.
    """

    version: int
    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    data: int


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file. Raises ModelError for a file that is none, is cut off, or states
    more than it can hold.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(24)
        if start[:4] != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file; expected one that begins with 'GGUF'")
        if len(start) < 24:
            raise ModelError(f"{path}: it ends within its header; fetch it again")
        version, tensors, pairs = struct.unpack_from("<IQQ", start, 4)
        if version not in VERSIONS:
            other = " (of the other byte order)" if version & 0xFFFF == 0 else ""
            raise ModelError(
                f"{path}: GGUF version {version}{other}; expected {' or '.join(map(str, VERSIONS))}, little-endian:"
                " convert the model again"
            )
        reader = _Reader(path, file, size)
        if pairs * _LEAST_PAIR + tensors * _LEAST_TENSOR > size:
            raise reader.wrong(
                f"it states {pairs:,} fields and {tensors:,} tensors, more than its {size:,} bytes can hold"
            )
        fields = dict(reader.pair() for _ in range(pairs))
        infos = dict(reader.tensor() for _ in range(tensors))
        if len(fields) < pairs or len(infos) < tensors:
            raise reader.wrong("a field or a tensor stands there twice")
        alignment = fields.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise reader.wrong("general.alignment is no power of two")
        data = math.ceil(reader.place / alignment) * alignment
        if infos and data + max(info.offset for info in infos.values()) >= size:
            raise reader.wrong("it ends before its last tensor begins")
        return GgufHeader(version, fields, infos, data)


class _Reader:
    """The bytes of a header from its 24th on, never more of them than the file has."""

    def __init__(self, path: Path, file: Any, size: int) -> None:
        self._path, self._file, self._size, self.place = path, file, size, 24

    def wrong(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: a damaged GGUF file: {what}; fetch it again")

    def _take(self, n: int) -> bytes:
        if n > self._size - self.place:
            raise self.wrong(f"at byte {self.place:,} it states {n:,} bytes, {self._size - self.place:,} are left")
        self.place += n
        data: bytes = self._file.read(n)
        if len(data) < n:
            raise self.wrong("it became shorter while it was read")
        return data

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _text(self) -> str:
        return self._take(self._number("Q")).decode("utf-8", "replace")

    def pair(self) -> tuple[str, Any]:
        """One key with its value."""
        return self._text(), self._value(self._number("I"), 0)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY or depth == DEEPEST:
            raise self.wrong(
                f"at byte {self.place:,} stands a value of the unknown type {kind}"
                if kind != _ARRAY
                else "arrays within arrays within arrays"
            )
        inner, n = self._number("I"), self._number("Q")
        least = struct.calcsize(f"<{_SCALARS[inner]}") if inner in _SCALARS else 8
        if n * least > self._size - self.place:
            raise self.wrong(f"a list of {n:,} values, more than the {self._size - self.place:,} bytes left can hold")
        if inner in _SCALARS:
            return list(struct.unpack(f"<{n}{_SCALARS[inner]}", self._take(n * least)))
        return [self._value(inner, depth + 1) for _ in range(n)]

    def tensor(self) -> tuple[str, TensorInfo]:
        """One tensor's name and what is said of it."""
        name, dimensions = self._text(), self._number("I")
        if dimensions > MOST_DIMENSIONS:
            raise self.wrong(f"tensor '{name[:60]}' has {dimensions:,} dimensions, {MOST_DIMENSIONS} at most")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        return name, TensorInfo(shape, self._number("I"), self._number("Q"))
