"""Files that may be packed with gzip or zstd, read as their bytes. Zstd needs pyarrow, before Python 3.14."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO

from openbezoar.errors import DataError

PACKED = (".gz", ".zst")
DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a damaged file raises; of zstd it is an OSError, which ``opened`` turns into EOFError."""


def is_packed(path: Path) -> bool:
    """Whether a file is to be unpacked: by its name, unless it begins as text of JSON does, because
    it was unpacked on its way.
    """
    if path.suffix not in PACKED:
        return False
    with path.open("rb") as begun:
        return not begun.read(4).removeprefix(b"\xef\xbb\xbf").startswith((b"{", b"["))


def opened(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked. What reading them raises where they are damaged is in ``DAMAGE``."""
    if not is_packed(path):
        return path.open("rb")
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return _zstd(path)


def _zstd(path: Path) -> IO[bytes]:
    import io

    import pyarrow as pa

    class ZstdBytes(io.RawIOBase):
        """pyarrow's stream, whose errors tell damage from a disk that cannot be read."""

        def __init__(self) -> None:
            self.file = path.open("rb")
            self.stream = pa.CompressedInputStream(self.file, "zstd")

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            view = memoryview(buffer)  # type: ignore[arg-type]
            try:
                data = self.stream.read(len(view))
            except OSError as error:
                raise EOFError(" ".join(str(error).split())) from None
            view[: len(data)] = data
            return len(data)

        def close(self) -> None:
            self.file.close()
            super().close()

    return io.BufferedReader(ZstdBytes(), 1 << 20)


def damaged(path: Path, error: Exception) -> DataError:
    """The error for a packed file that is not whole."""
    kind = "zstd" if path.suffix == ".zst" else "gzip"
    return DataError(f"{path}: not a whole {kind} file ({error}); fetch it again")


def check_whole(path: Path) -> None:
    """Raises DataError for a packed file that is damaged: its text may be wrong long before that can be known."""
    try:
        with opened(path) as content:
            while content.read(1 << 20):
                pass
    except DAMAGE as error:
        raise damaged(path, error) from None
