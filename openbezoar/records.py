"""The rows that cross a step border, and JSON lines in and out.

A row on disk is a flat JSON object. Three schemas are understood as training material:

- instruction rows: ``instruction``, optional ``context`` and ``system``, and ``response``;
- task rows (FLAN): ``input`` and ``target``;
- dialogue pairs (HH-RLHF): ``chosen`` and ``rejected``, whole dialogues
  ("\\n\\nHuman: …\\n\\nAssistant: …").
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from openbezoar.errors import DataError, RowError

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
    """A prompt (turns, the last one the user's) and the answer that is to be learnt."""

    id: str
    prompt: tuple[Turn, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a preferred and a rejected answer."""

    id: str
    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    subset: str = ""


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
    """Rows of a ``.jsonl`` or ``.jsonl.gz`` file, one held at a time.

    Raises DataError naming the line if one is not a JSON object, or if the file is missing.
    """

    def lines() -> Iterator[str]:
        with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8") as opened:
            yield from opened

    return _parsed(path, lines())


class JsonLines:
    """The rows of a ``.jsonl`` or ``.jsonl.gz`` file, in its order or shuffled, one held at a time.

    Shuffling holds eight bytes a row, where its line begins. A compressed file, which cannot be
    read from its middle, is first unpacked to an unnamed file in ``scratch`` (default: the
    system's folder for temporary files). Raises DataError as ``read_jsonl`` does.
    """

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        self.path, self.scratch = path, scratch

    def __iter__(self) -> Iterator[Row]:
        return read_jsonl(self.path)

    def shuffled(self, seed: int) -> Iterator[Row]:
        """The rows in the order that ``random.Random(seed).shuffle`` gives a list of them; all are checked before the first one comes."""
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
            for place in places:
                raw[0].seek(place)
                try:
                    row: Row = json.JSONDecoder().raw_decode(raw[0].readline().decode().lstrip())[0]
                except ValueError:
                    raise DataError(f"{self.path}: the file changed while it was read; leave it alone and run again") from None
                yield row

    @contextmanager
    def _unpacked(self) -> Iterator[IO[bytes]]:
        if self.path.suffix != ".gz":
            with self.path.open("rb") as plain:
                yield plain
            return
        with tempfile.TemporaryFile(dir=self.scratch) as unpacked:
            with gzip.open(self.path) as packed:
                shutil.copyfileobj(packed, unpacked)
            unpacked.seek(0)
            yield unpacked


def _parsed(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    """The rows of a file's lines; blank ones are passed over. Nothing is asked of ``lines`` unless the file is there."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected JSON lines (.jsonl or .jsonl.gz)")
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} is not a JSON object; expected one {{...}} a line")
            yield row
    except (ValueError, RecursionError) as error:  # of numbers with thousands of digits, and of brackets thousands deep, too
        number = _undecodable(path) if isinstance(error, UnicodeDecodeError) else number
        raise DataError(f"{path}: line {number} is not JSON ({error}); expected one object a line") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); fetch it again") from None


def _undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8. Text is decoded many lines at a time, so the reader itself does not know."""
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows, one compact object a line; returns how many."""
    n = 0
    # A lone surrogate in a text, which UTF-8 cannot hold, becomes JSON's own escape of it.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            n += 1
    return n


def to_example(row: Mapping[str, Any], where: str) -> Example:
    """The training example in a row of any understood schema.

    Raises DataError naming ``where`` and the fields that are missing.
    """
    if "chosen" in row:
        pair = to_pair(row, where)
        return Example(pair.id, pair.prompt, pair.chosen)
    if "instruction" in row:
        check_instruction(row, where)
        text = instruction_text(row)
        answer = row.get("response", row.get("output"))
        name = "response"
    elif "input" in row:
        text, answer, name = row["input"], row.get("target"), "target"
    else:
        raise DataError(f"{where}: no field 'instruction' (with 'response'), 'input' (with 'target') or 'chosen'; it has {_fields(row)}")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the instruction is empty; drop the row or fill it in")
    if not isinstance(answer, str):
        raise DataError(f"{where}: no field '{name}'; it has {_fields(row)}")
    turns = [Turn("user", text)]
    if row.get("system") is not None:
        turns.insert(0, Turn("system", str(row["system"])))
    return Example(str(row.get("id", where)), tuple(turns), answer)


def check_instruction(row: Mapping[str, Any], where: str) -> None:
    """Raises DataError for an instruction that is no text or empty, and for Alpaca's rows, whose ``input`` would be overlooked."""
    if not isinstance(row["instruction"], str) or not row["instruction"].strip():
        raise DataError(f"{where}: the instruction is empty or no text; drop the row or fill it in")
    beside = row.get("input")
    if isinstance(beside, str) and beside.strip() and not row.get("context"):
        raise DataError(f"{where}: an 'input' beside the 'instruction', as in Alpaca's rows, would be left out; add rename: {{input: context}}")


def instruction_text(row: Mapping[str, Any]) -> str:
    """Instruction and context as one text, a blank line between (as in the Evol-Instruct seeds)."""
    context = row.get("context") or ""
    instruction = row["instruction"]
    return f"{instruction}\n\n{context}" if context else str(instruction)


def to_pair(row: Mapping[str, Any], where: str) -> Pair:
    """The preference pair in a row of HH-RLHF's form, or with ``prompt``, ``chosen``, ``rejected`` apart.

    Raises DataError if a field is missing, RowError if a dialogue is none or the two do not share their prompt.
    """
    for name in ("chosen", "rejected"):
        if not isinstance(row.get(name), str):
            raise DataError(f"{where}: no field '{name}'; expected a preference pair, it has {_fields(row)}")
    id_, subset = str(row.get("id", where)), str(row.get("subset", ""))
    if isinstance(row.get("prompt"), str):
        return Pair(id_, (Turn("user", row["prompt"]),), row["chosen"], row["rejected"], subset)
    chosen, rejected = parse_dialogue(row["chosen"], where), parse_dialogue(row["rejected"], where)
    if chosen[:-1] != rejected[:-1]:
        raise RowError(
            f"{where}: chosen and rejected do not share their prompt; they may differ in the last answer only", "chosen and rejected have different prompts"
        )
    return Pair(id_, chosen[:-1], chosen[-1].content, rejected[-1].content, subset)


_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def parse_dialogue(text: str, where: str) -> tuple[Turn, ...]:
    """HH-RLHF's "\\n\\nHuman: …\\n\\nAssistant: …" as turns that alternate and end with the assistant's.

    Consecutive turns of one speaker are joined by a blank line. Raises RowError for any other text.
    """
    parts = _SPEAKER.split(text if text.startswith("\n\n") else "\n\n" + text.lstrip("\n"))
    if parts[0].strip() or len(parts) < 5 or parts[1] != "Human" or parts[-2] != "Assistant":
        raise RowError(
            f"{where}: not a dialogue that begins with '\\n\\nHuman:' and ends with an '\\n\\nAssistant:' turn", "not a dialogue that ends with an answer"
        )
    turns: list[Turn] = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role: Role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, turns[-1].content + "\n\n" + content.strip())
        else:
            turns.append(Turn(role, content.strip()))
    return tuple(turns)


def _fields(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(row)[:8])) or "none"
