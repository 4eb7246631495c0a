"""The rows that cross a step border, and JSON lines in and out. What a row means is read by ``forms``."""

from __future__ import annotations

import io
import json
import random
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from openbezoar.errors import DataError
from openbezoar.machine.textfiles import check_beginning, loads
from openbezoar.rows.packed import DAMAGE, check_whole, damaged, is_packed, opened

Row = dict[str, Any]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt (turns, the last one the user's) and the answer that is to be learnt.

    earlier: places in the prompt of those answers of a conversation that are to be learnt as well.
    notes: what was changed to make it, each a reason to be counted under.
    """

    id: str
    prompt: tuple[Turn, ...]
    answer: str
    earlier: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def learnt(self) -> Iterator[tuple[tuple[Turn, ...], str]]:
        """Each answer that is to be learnt, in order, after the turns before it."""
        for place in self.earlier:
            yield self.prompt[:place], self.prompt[place].content
        yield self.prompt, self.answer


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a preferred and a rejected answer. notes: as an example's. cut: the rejected answer is one that
    a token limit cut off, which has no end.
    """

    id: str
    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    subset: str = ""
    notes: tuple[str, ...] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A prompt with one answer and whether it was liked. notes: as an example's; cut: as a pair's."""

    id: str
    prompt: tuple[Turn, ...]
    answer: str
    liked: bool
    notes: tuple[str, ...] = ()
    cut: bool = False


@dataclass(slots=True)
class Counts:
    """How many rows each named reason dropped or changed, in the order first met."""

    by_reason: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, n: int = 1) -> None:
        self.by_reason[reason] = self.by_reason.get(reason, 0) + n

    def merge(self, by_reason: Mapping[str, int]) -> None:
        """Add another tally."""
        for reason, n in by_reason.items():
            self.add(reason, n)

    def __str__(self) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in self.by_reason.items()) or "no rows"


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a file of JSON lines, perhaps packed, one held at a time.

    Raises DataError naming the line if one is not a JSON object, or if the file is missing.
    """
    return iter(JsonLines(path))


HALVES = "rows with half a character taken out"
"""The reason under which rows are counted whose texts held a lone surrogate."""


class JsonLines:
    """The rows of a file of JSON lines, perhaps packed, in its order or shuffled, one held at a time.

    Shuffling holds eight bytes a row, where its line begins. A compressed file, which cannot be
    read from its middle, is first unpacked to an unnamed file in ``scratch`` (default: the
    system's folder for temporary files). ``mended`` is called with ``HALVES`` for each row of
    which a lone surrogate was taken out. Raises DataError as ``read_jsonl`` does.
    """

    def __init__(self, path: Path, scratch: Path | None = None, mended: Callable[[str], None] | None = None) -> None:
        self.path, self.scratch, self.mended = path, scratch, mended

    def __iter__(self) -> Iterator[Row]:
        def lines() -> Iterator[str]:
            with opened(self.path) as raw, io.TextIOWrapper(raw, encoding="utf-8") as text:
                yield from text

        return self._counted(_parsed(self.path, lines()))

    def shuffled(self, seed: int) -> Iterator[Row]:
        """The rows in the order that ``random.Random(seed).shuffle`` gives a list of them; all are
        checked before the first one comes.
        """
        with ExitStack() as stack:
            raw: list[IO[bytes]] = []
            begin = end = 0

            def lines() -> Iterator[str]:
                nonlocal begin, end
                raw.append(stack.enter_context(self._unpacked()))
                # Line ends as they are in the file, so that lengths count its bytes.
                text = io.TextIOWrapper(raw[0], encoding="utf-8", newline="")
                for line in text:
                    begin, end = end, end + len(line.encode())
                    yield line
                text.detach()

            places = array("q", (begin for _ in _parsed(self.path, lines())))
            random.Random(seed).shuffle(places)
            yield from self._counted(self._row(raw[0], place) for place in places)

    def _row(self, raw: IO[bytes], place: int) -> tuple[Row, bool]:
        """The row whose line begins at a place that was read before."""
        raw.seek(place)
        try:
            # A line that ends in a carriage return is followed by others here.
            row: tuple[Row, bool] = loads(raw.readline().decode().removeprefix("\ufeff").lstrip().partition("\r")[0])
        except (ValueError, RecursionError):
            raise DataError(f"{self.path}: the file changed while it was read; leave it alone and run again") from None
        return row

    def _counted(self, rows: Iterable[tuple[Row, bool]]) -> Iterator[Row]:
        for row, mended in rows:
            if mended and self.mended is not None:
                self.mended(HALVES)
            yield row

    @contextmanager
    def _unpacked(self) -> Iterator[IO[bytes]]:
        if not is_packed(self.path):
            with self.path.open("rb") as plain:
                yield plain
            return
        with tempfile.TemporaryFile(dir=self.scratch) as unpacked:
            with opened(self.path) as packed:
                shutil.copyfileobj(packed, unpacked)
            unpacked.seek(0)
            yield unpacked


def _parsed(path: Path, lines: Iterable[str]) -> Iterator[tuple[Row, bool]]:
    """The rows of a file's lines, as ``textfiles.loads``; blank ones are passed over. Nothing is
    asked of ``lines`` unless the file is there.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected JSON lines (.jsonl or .jsonl.gz)")
    number, line = 0, ""
    try:
        with opened(path) as begun:
            check_beginning(begun.read(4), path)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row, mended = loads(line)
            if not isinstance(row, dict):
                hint = (
                    "; of a file that is one JSON list, 'jq -c .[]' makes such lines" if isinstance(row, list) else ""
                )
                raise DataError(f"{path}: line {number} is not a JSON object; expected one {{...}} a line{hint}")
            yield row, mended
    # of numbers with thousands of digits, and of brackets thousands deep, too
    except (ValueError, RecursionError) as error:
        check_whole(path)
        number = _undecodable(path) if isinstance(error, UnicodeDecodeError) else number
        hint = (
            "; of a file that is one JSON list, 'jq -c .[]' makes such lines"
            if number == 1 and line.strip() in ("[", "[{")
            else ""
        )
        raise DataError(f"{path}: line {number} is not JSON ({error}); expected one object a line{hint}") from None
    except DAMAGE as error:
        raise damaged(path, error) from None


def _undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8. Text is decoded many lines at a time, so the
    reader itself does not know.
    """
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows, one compact object a line; returns how many."""
    n = 0
    # A lone surrogate in a text, which UTF-8 cannot hold, becomes JSON's own escape of it.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            n += 1
    return n
