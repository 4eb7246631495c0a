"""Digests of values and files, and what a step's files were when it was made. Reads files; writes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
WITH_TIMES = ("metrics.jsonl", "samples.jsonl")  # a training's logs; no step but a report reads them
Marks = dict[str, list[Any]]


def digest(value: Any) -> str:
    """SHA-256 (first 32 hex digits) of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


_hashed: dict[tuple[Any, ...], str] = {}


def file_digest(path: Path, wholly: bool = False) -> str:
    """SHA-256 (hex) of a file's bytes, remembered while size and modification time stay;
    ``wholly``: the file is read in any case.
    """
    stat = path.stat()
    by_name = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    # A released weight is a hard link to the merged one, and need not be read again.
    by_place = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    known = _hashed.get(by_name) or (_hashed.get(by_place) if stat.st_nlink > 1 else None)
    if known is None or wholly:
        with path.open("rb") as handle:
            known = hashlib.file_digest(handle, "sha256").hexdigest()
    _hashed[by_name] = _hashed[by_place] = known
    return known


def result_files(folder: Path) -> list[Path]:
    """The files that a step made: all in its folder but the manifest, and what a killed run goes on
    from (names that begin with a dot).
    """
    return [
        f
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != MANIFEST and not any(p.startswith(".") for p in f.relative_to(folder).parts)
    ]


def marks_of(folder: Path) -> Marks:
    """{path: [bytes, modification time in ns, SHA-256]} of the files that a step made."""
    marks: Marks = {}
    for file in result_files(folder):
        stat = file.stat()
        marks[file.relative_to(folder).as_posix()] = [stat.st_size, stat.st_mtime_ns, file_digest(file)]
    return marks


def marks_in(manifest: Mapping[str, Any]) -> Marks:
    """What a manifest says of the step's files; one of an older schema knows the weights only."""
    marks: Marks = manifest.get("files") or manifest.get("weights") or {}
    return marks


def differences(folder: Path, marks: Marks, wholly: bool = False) -> Iterator[str]:
    """In words, which files of a step's folder are not what they were.

    A file is read only if its size or time is another, which is so in a copied folder; ``wholly``: each one is.
    """
    for name, (size, time, then) in marks.items():
        file = folder / name
        if not file.is_file():
            yield f"{name} is gone"
            continue
        stat = file.stat()
        if not wholly and (stat.st_size, stat.st_mtime_ns) == (size, time):
            continue
        if stat.st_size != size or file_digest(file, wholly) != then:
            yield f"{name} changed since it was made"


def moved(folder: Path, marks: Marks) -> bool:
    """Whether a file has another time than its mark, as in a copied folder."""
    return any((folder / name).stat().st_mtime_ns != time for name, (_, time, _) in marks.items())


def result_digest(manifest: Mapping[str, Any]) -> str:
    """One digest of a finished step's files and of those of the steps it used, since a model is
    read through several folders; "" if there are none.
    """
    own = {name: mark[-1] for name, mark in marks_in(manifest).items() if name not in WITH_TIMES}
    used = manifest.get("used") or manifest.get("used_weights") or {}
    return digest([own, used]) if own or used else ""
