"""Text that a user brings: files of any kind as UTF-8, and JSON values that are safe to work with.
Reads, writes nothing.

A byte-order mark is passed over wherever one may stand. What is no UTF-8 is said by what it is and in which line.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

from openbezoar.errors import DataError, UserError

DEEPEST = 64  # levels of a value; deeper ones, which no data set has, run into limits of the programs that read them
_BEGINNINGS = {
    b"\xff\xfe\x00\x00": "UTF-32 text",
    b"\x00\x00\xfe\xff": "UTF-32 text",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"\xfd7zX": "compressed (xz)",
    b"BZh": "compressed (bzip2)",
    b"PAR1": "a Parquet file",
}


def check_beginning(head: bytes, path: Path, kind: type[UserError] = DataError) -> None:
    """Raises ``kind`` if a file's first bytes (four are enough) are those of something else than UTF-8 text."""
    what = next((name for begin, name in _BEGINNINGS.items() if head.startswith(begin)), None)
    if what is None and b"\x00" in head[:4]:
        what = "UTF-16 text" if head[1:2] == b"\x00" or head[:1] == b"\x00" else "no text"
    if what is not None:
        remedy = "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)" if what == "UTF-16 text" else "save it as UTF-8 text"
        raise kind(f"{path}: it is {what}, not UTF-8 text; {remedy}")


def decoded(data: bytes, path: Path, kind: type[UserError] = DataError) -> str:
    """A file's bytes as text, line ends as line feeds. Raises ``kind`` naming the line that is not UTF-8."""
    check_beginning(data[:4], path, kind)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise kind(
            f"{path}: line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path, kind: type[UserError] = DataError) -> str:
    """A file's text, without a byte-order mark. Raises OSError if it cannot be read, ``kind`` if it is not UTF-8."""
    return decoded(path.read_bytes(), path, kind)


# ------------------------------------------------------------------------------ JSON


def loads(text: str) -> tuple[Any, bool]:
    """The JSON value in a text, and whether halves of characters were taken out of it.

    JSON can write one half of a surrogate pair (``"\\ud83d"``), which is no character:
    tokenizers, files and databases refuse it. Raises ValueError for what is no JSON, or is
    nested more than ``DEEPEST`` levels deep, RecursionError for what is deeper still.
    """
    value = json.loads(text.removeprefix("\ufeff"))
    if text.count("[") + text.count("{") > DEEPEST and _deep(value):
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    if "\\ud" not in text and "\\uD" not in text:
        return value, False
    return without_halves(value)


def without_halves(value: Any) -> tuple[Any, bool]:
    """A value without lone surrogates, however deep, and whether there were any."""
    whole = _whole(value)
    return whole, whole != value


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside = chain.from_iterable(outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [value for value in inside if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _whole(value: Any) -> Any:
    """The value without lone surrogates, as the filter's cleaner leaves it."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "ignore").decode("utf-8")
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(inner) for name, inner in value.items()}
    return value
