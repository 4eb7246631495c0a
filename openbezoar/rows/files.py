"""Where rows lie: a file, a folder of shards, a pattern of names, and the part of them that is meant.

``data/chats.parquet``, ``data/shards``, ``data/part-*.jsonl.gz``, each perhaps with a split or a
slice in brackets, as the hub's data sets have them: ``shards[train]``, ``shards[train[:1000]]``,
``rows.csv[10%:20%]``. Looks at names and folders; reads no row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from openbezoar.errors import DataError
from openbezoar.rows.packed import PACKED
from openbezoar.store.digests import MANIFEST

ROWS = "rows.jsonl"
"""What a step hands on."""
KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv")
LISTED = ".jsonl, .json, .csv and .tsv (each also .gz or .zst), .parquet and .arrow"
_WILD = re.compile(r"[*?]")
_PART = re.compile(r"(?P<path>.*?[^\[\]])\[(?P<split>[^\[\]:]*)(?:\[(?P<slice>[^\[\]]*)\])?\]", re.DOTALL)
_ALONE = re.compile(r"(?P<path>.*?[^\[\]])\[(?P<slice>[^\[\]]*:[^\[\]]*)\]", re.DOTALL)
_BOUND = r"-?\d{1,18}%?"
_SLICE = re.compile(rf"(?P<begin>{_BOUND})?:(?P<end>{_BOUND})?")
# As the hub's client names the files that it writes, and splits of which people make a file each.
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_SPLITS = {
    "train": "train",
    "test": "test",
    "dev": "validation",
    **dict.fromkeys(("validation", "valid"), "validation"),
}


class Slice(NamedTuple):
    """A run of rows. begin, end: places, from the end where negative, or shares of all rows ('10%'); None: all."""

    begin: str | None
    end: str | None

    def places(self, rows: int) -> tuple[int, int]:
        """First and past-the-last row of so many."""
        first = 0 if self.begin is None else _place(self.begin, rows)
        last = rows if self.end is None else _place(self.end, rows)
        return first, max(first, last)

    @property
    def absolute(self) -> tuple[int, int | None] | None:
        """(first, past the last or None), where that is known without counting the rows."""
        if any(bound is not None and not bound.isdigit() for bound in self):
            return None
        first = int(self.begin or 0)
        return first, None if self.end is None else max(first, int(self.end))


def _place(bound: str, rows: int) -> int:
    # a share is rounded as the hub's client does
    place = round(rows * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
    return min(max(place + rows if place < 0 else place, 0), rows)


class RowFiles(NamedTuple):
    """Files whose rows belong together. root: the file or folder that was named; slice: the part that is meant."""

    root: Path
    files: tuple[Path, ...]
    slice: Slice | None = None

    @property
    def folder(self) -> Path:
        """What the names of the files are told in."""
        return self.root if self.root.is_dir() else self.root.parent


def kind_of_file(path: Path) -> str:
    """A file's kind by its name: a suffix of ``KINDS``, '.jsonl' for any other name."""
    name = path.with_suffix("") if path.suffix in PACKED else path
    return {".ndjson": ".jsonl"}.get(
        name.suffix.lower(), name.suffix.lower() if name.suffix.lower() in KINDS else ".jsonl"
    )


def divided(text: str) -> tuple[str, str, Slice | None]:
    """(path, split or "", slice or None) of a reference to files. Raises DataError for brackets that say neither."""
    match = _ALONE.fullmatch(text) or _PART.fullmatch(text)
    if match is None or Path(text).exists():
        return text, "", None
    parts = match.groupdict()
    return parts["path"], parts.get("split") or "", slice_of(parts["slice"], text) if parts["slice"] else None


def slice_of(text: str, where: str) -> Slice:
    """A slice from its text, such as ':1000' or '10%:20%'. Raises DataError for any other text."""
    match = _SLICE.fullmatch(text)
    if match is None:
        raise DataError(f"{where}: '{text}' is no slice; expected FROM:TO, such as [:1000], [100:200] or [10%:20%]")
    return Slice(match["begin"], match["end"])


def locate(path: Path, split: str = "", part: Slice | None = None) -> RowFiles:
    """The files that a path names. Raises DataError where there are none, or several splits of which none is named."""
    if _WILD.search(str(path)):
        files = _matching(path)
        if not files:
            raise DataError(f"{path}: no file of rows has such a name; expected {LISTED}")
        # the longest beginning without a pattern
        root = next(parent for parent in path.parents if not _WILD.search(str(parent)))
        return RowFiles(root, _of_split(path, root, files, split), part)
    if (path / ROWS).is_file() and (path / MANIFEST).is_file():  # a step's folder, which has rows that it rejected too
        return locate(path / ROWS, split, part)
    if path.is_dir():
        files = tuple(_shards(path))
        if not files:
            raise DataError(f"{path}: the folder has no file of rows; expected {LISTED}")
        return RowFiles(path, _of_split(path, path, files, split), part)
    if not path.is_file():
        raise DataError(f"no file {path}")
    if split:
        raise DataError(f"{path}: a file has no split '{split}'; leave it out, or name a slice such as [:1000]")
    return RowFiles(path, (path,), part)


def _matching(path: Path) -> tuple[Path, ...]:
    root = next(parent for parent in path.parents if not _WILD.search(str(parent)))
    named = root.glob(str(path.relative_to(root)))
    return tuple(sorted((file for file in named if file.is_file() and _is_of_rows(file)), key=_natural))


def _shards(folder: Path) -> Iterator[Path]:
    """Every file of rows in a folder, deeper ones too, in the natural order of their names."""
    inside = (file for file in folder.rglob("*") if file.is_file() and _is_of_rows(file))
    hidden = (file for file in inside if not any(p.startswith((".", "_")) for p in file.relative_to(folder).parts))
    yield from sorted(hidden, key=_natural)


def _is_of_rows(file: Path) -> bool:
    """Whether a file's name is that of rows, and not of the hub's client's own notes."""
    name = file.with_suffix("") if file.suffix in PACKED else file
    notes = ("dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json")
    return name.suffix.lower() in KINDS and file.name not in notes and not file.name.startswith("cache-")


def _natural(file: Path) -> list[tuple[int, str]]:
    """Numbers in names by their size: part-2 before part-10."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", str(file)) if word]


# ------------------------------------------------------------------------------- splits


def _of_split(path: Path, root: Path, files: tuple[Path, ...], split: str) -> tuple[Path, ...]:
    """The files of a split; 'train' where none is named and there are several."""
    splits = {file: _split_of(file, root) for file in files}
    names = tuple(dict.fromkeys(name for name in splits.values() if name))
    wanted = split or ("train" if len(names) > 1 else "")
    if not wanted:
        return files
    chosen = tuple(file for file in files if splits[file] == wanted)
    if not chosen:
        have = f"it has {', '.join(names)}" if names else "its files' names tell no splits"
        what = f"no split '{split}'" if split else "several splits and no 'train'"
        raise DataError(f"{path}: {what}; {have}: name one in brackets, as in {path.name}[{(names or ('SPLIT',))[0]}]")
    return chosen


def _split_of(file: Path, root: Path) -> str:
    """The split that a file's name, or that of a folder it is in, says; "" if they say none."""
    inside = file.relative_to(root).parts
    stem = inside[-1].partition(".")[0]
    if _saved_splits(root) and len(inside) > 1:
        return inside[0]
    if (match := _SHARD.fullmatch(stem)) and match[1] != "data":
        return match[1]
    words = [*inside[:-1], re.split(r"[-_]", stem)[0]]
    return next((_SPLITS[word.lower()] for word in words if word.lower() in _SPLITS), "")


def _saved_splits(folder: Path) -> bool:
    """Whether a folder was saved by the hub's client with a folder for each split."""
    file = folder / "dataset_dict.json"
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")).get("splits"), list)
    except (OSError, ValueError, AttributeError):
        return False
