"""Rows of one file of any kind, one held at a time, as plain dictionaries. Reads, writes nothing."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from openbezoar.errors import DataError, brief, named
from openbezoar.machine.textfiles import check_beginning, loads
from openbezoar.rows.files import kind_of_file
from openbezoar.rows.packed import DAMAGE, check_whole, damaged, opened
from openbezoar.rows.plain import plain
from openbezoar.rows.records import HALVES, JsonLines, Row

BATCH = 256  # rows that are converted together
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
Mended = Callable[[str], None]


def rows_of(path: Path, mended: Mended | None = None) -> Iterator[Row]:
    """The rows of a file. Raises DataError naming the file, and the line or row, for what is none.

    mended: as for ``JsonLines``.
    """
    kind = kind_by_content(path)
    if kind in (".parquet", ".arrow"):
        return _arrow(path, kind)
    if kind in (".csv", ".tsv"):
        return _separated(path, "\t" if kind == ".tsv" else ",")
    if kind == ".json":
        return _json(path, mended)
    return iter(JsonLines(path, mended=mended))


def kind_by_content(path: Path) -> str:
    """A file's kind: what its first bytes say beyond doubt, else its name."""
    with path.open("rb") as begun:
        head = begun.read(8)
    if head.startswith(b"PAR1"):
        return ".parquet"
    return ".arrow" if head.startswith(b"ARROW1") else kind_of_file(path)


# -------------------------------------------------------------------- Parquet and Arrow


def _arrow(path: Path, kind: str) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(path, kind):
            for row in batch.to_pylist():
                number += 1
                yield plain(row)
    except UnicodeDecodeError:
        raise DataError(f"{path}: a text after row {number} is not UTF-8; write the file anew") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the file
            raise
        what = {".parquet": "Parquet", ".arrow": "Arrow"}[kind]
        raise DataError(f"{path}: not a whole {what} file ({brief(error)}); fetch it again, or write it anew") from None


def _batches(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    if kind == ".parquet":
        # Without its buffer a column is read page by page and not a whole row group at once.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from file.iter_batches(batch_size=BATCH)
        return
    with pa.OSFile(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:  # the stream that the hub's client writes
            file.seek(0)
            for batch in pa.ipc.open_stream(file):
                yield from _slices(batch)
            return
        for place in range(reader.num_record_batches):
            yield from _slices(reader.get_batch(place))


def _slices(batch: Any) -> Iterator[Any]:
    for first in range(0, batch.num_rows, BATCH):
        yield batch.slice(first, BATCH)


# ----------------------------------------------------------------- tables of plain text


def _separated(path: Path, separator: str) -> Iterator[Row]:
    """The rows of a file of comma- or tab-separated values, whose first line names the columns. All
    values are texts, an empty one the empty text; ``label`` may be true or false.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    line = 0
    try:
        with opened(path) as begun:
            check_beginning(begun.read(4), path)
        with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, delimiter=separator, strict=True)
            header = next(rows, [])
            _check_header(header, path)
            line = rows.line_num
            for values in rows:
                begins, line = line, rows.line_num
                if not values:
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{path}: the row in line {begins + 1} has {len(values)} values, but there"
                        f" are {len(header)} columns; put texts with a {separator!r} or a line feed in them in quotes"
                    )
                row: Row = dict(zip(header, values, strict=True))
                if row.get("label", "").strip().lower() in _TRUTH:
                    row["label"] = _TRUTH[row["label"].strip().lower()]
                yield row
    except UnicodeDecodeError as error:
        check_whole(path)
        raise DataError(f"{path}: after line {line} a text is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        check_whole(path)
        raise DataError(
            f"{path}: after line {line} the values cannot be told apart ({error}); mend the quotes"
        ) from None
    except DAMAGE as error:
        raise damaged(path, error) from None


def _check_header(header: list[str], path: Path) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two columns have the name '{named(twice[0])}'; give each its own in the first line")


# --------------------------------------------------------------------------------- JSON


def _json(path: Path, mended: Mended | None) -> Iterator[Row]:
    """The rows of a file that is one list of objects, an object that holds one such list, or JSON lines."""
    try:
        with opened(path) as raw:
            if raw.read(1 << 12).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                return _elements(path, mended)
        with opened(path) as raw:
            lines = (line.removeprefix(b"\xef\xbb\xbf").strip() for line in raw)
            line = next(filter(None, lines), b"")
            last = not any(lines)
    except DAMAGE as error:
        raise damaged(path, error) from None
    return iter(JsonLines(path, mended=mended)) if _is_row(line, last) else _member(path, mended)


def _is_row(line: bytes, last: bool) -> bool:
    """Whether the first line is a row of JSON lines, and not the beginning, or the whole, of an
    object that holds a list of rows. last: nothing follows it.
    """
    try:
        value, _ = loads(line.decode())
    except (ValueError, RecursionError):
        return not line.startswith(b"{")
    return not (last and _lists(value))


def _member(path: Path, mended: Mended | None) -> Iterator[Row]:
    """The rows of an object's only list of objects."""
    try:
        with opened(path) as raw:
            value, halves = loads(raw.read().decode("utf-8-sig"))
    except DAMAGE as error:
        raise damaged(path, error) from None
    except (ValueError, RecursionError):
        yield from JsonLines(path, mended=mended)  # which says the line that is wrong
        return
    lists = _lists(value)
    if len(lists) != 1:
        what = "no list of objects" if not lists else f"several lists ({', '.join(lists)})"
        raise DataError(f"{path}: an object with {what}; expected one list of rows, or one object a line")
    if halves and mended is not None:
        mended(HALVES)
    yield from value[lists[0]]


def _lists(value: Any) -> list[str]:
    """The names of an object's lists of objects; none of what may be a row itself, such as one of messages."""
    if not isinstance(value, dict):
        return []
    lists = [
        name
        for name, inner in value.items()
        if isinstance(inner, list) and inner and all(isinstance(one, dict) for one in inner)
    ]
    return [] if any({"role", "from"} & set(value[name][0]) for name in lists) else lists


def _elements(path: Path, mended: Mended | None) -> Iterator[Row]:
    """The objects of a file that is one list, which is never held whole."""
    number = 0
    try:
        for text in _texts(path):
            number += 1
            row, halves = loads(text)
            if not isinstance(row, dict):
                raise DataError(f"{path}: element {number} of the list is not an object; expected rows as objects")
            if halves and mended is not None:
                mended(HALVES)
            yield row
    except DAMAGE as error:
        raise damaged(path, error) from None
    except (ValueError, RecursionError) as error:
        check_whole(path)
        raise DataError(
            f"{path}: after element {number} of the list there is no JSON ({error}); expected a list of objects"
        ) from None


def _texts(path: Path) -> Iterator[str]:
    """The text of each element of a list of objects: braces are counted outside of quotes."""
    scan = json.JSONDecoder().raw_decode
    with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
        buffer, step, ended = text.read(1 << 16).lstrip()[1:], 1 << 16, False
        while True:
            buffer = buffer.lstrip()
            if buffer[:1] == "]":
                if (buffer[1:] + text.read()).strip():
                    raise ValueError("something follows the end of the list")
                return
            try:
                _, end = scan(buffer)
                whole = ended or end < len(buffer)  # a number may go on
            except ValueError:
                if ended:
                    raise
                whole = False
            if not whole:
                more = text.read(step)
                ended, buffer, step = not more, buffer + more, 2 * step  # so that a long element is not scanned often
                continue
            yield buffer[:end]
            rest = buffer[end:].lstrip()
            while not rest and not ended:
                more = text.read(1 << 16)
                ended, rest = not more, more.lstrip()
            if rest[:1] not in (",", "]"):
                raise ValueError("a comma or the end of the list is missing")
            buffer, step = (rest[1:] if rest[:1] == "," else rest), 1 << 16
