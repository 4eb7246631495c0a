"""``SHA256SUMS`` of a released folder, in the form that ``sha256sum --check`` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openbezoar.errors import RunError
from openbezoar.machine.foreign import foreign_file
from openbezoar.store.digests import file_digest
from openbezoar.store.files import write_text

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class File:
    """A released file: its path in the folder, bytes and SHA-256 (hex)."""

    name: str
    bytes: int
    sha256: str


def write_sums(folder: Path) -> list[File]:
    """Write SHA256SUMS of everything in a folder; returns what it lists."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    files = [File(p.relative_to(folder).as_posix(), p.stat().st_size, file_digest(p)) for p in paths]
    write_text(folder / SUMS, "".join(f"{f.sha256}  {f.name}\n" for f in files))
    return files


def read_sums(sums: Path) -> dict[str, str]:
    """The digests of a SHA256SUMS file by the names of their files. A line without a name lists ''."""
    lines = (line.partition("  ") for line in sums.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, _, name in lines}


def checked(folder: Path) -> list[File]:
    """The files that a folder's SHA256SUMS lists, itself last.

    Raises RunError if one is missing, has another hash, or if there is one that it does not list.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise RunError(f"{folder}: no {SUMS}; make the release again with 'openbezoar run RECIPE'")
    with foreign_file(sums, "a digest and a name a line", "make the release again", kind=RunError):
        stated = read_sums(sums)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {SUMS}
    if odd := sorted(there ^ set(stated)):
        raise RunError(
            f"{folder / odd[0]}: {'not listed in' if odd[0] in there else 'listed in'}"
            f" {SUMS}{'' if odd[0] in there else ', but not there'}; make the release again"
        )
    for name, digest in stated.items():
        if file_digest(folder / name) != digest:
            raise RunError(
                f"{folder / name}: not the file that was released (its SHA-256 is another); make the release again"
            )
    return [
        *(File(n, (folder / n).stat().st_size, d) for n, d in stated.items()),
        File(SUMS, sums.stat().st_size, file_digest(sums)),
    ]
