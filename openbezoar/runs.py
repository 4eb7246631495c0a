"""Where a run's files lie, and how they come to lie there whole.

A run is a folder, ``RUNS/NAME``; a finished step is a folder in it with a ``manifest.json``
that was written last. A step in the making lies in ``.work/STEP`` and keeps what it has
done (training checkpoints, finished scores), so that a killed run goes on from there; it
is renamed into place when it is whole. One process at a time owns a run, by a file lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from openbezoar.errors import RunError

MANIFEST = "manifest.json"
Manifest = dict[str, Any]


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    def step(self, name: str) -> Path:
        """The published folder of a step."""
        return self.path / name

    def work(self, name: str) -> Path:
        """The folder of a step in the making."""
        return self.path / ".work" / name

    def manifest(self, name: str) -> Manifest | None:
        """What a finished step wrote about itself, or None."""
        try:
            content: Manifest = json.loads((self.step(name) / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise RunError(f"{self.step(name) / MANIFEST}: not JSON ({error}); delete the folder and run again") from None
        if not isinstance(content, dict):
            raise RunError(f"{self.step(name) / MANIFEST}: no manifest, which is a JSON object; delete the folder and run again")
        return content

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the run. Raises RunError if another process does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{self.path}: another run is at work in this folder; wait for it, or use --runs with another folder") from None
            yield

    def begin(self, name: str, key: str) -> Path:
        """The work folder of a step: what an earlier try with the same key left, or an empty one."""
        work = self.work(name)
        marker = work / ".key"
        if work.exists() and (not marker.is_file() or marker.read_text() != key):
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        write_text(marker, key)
        return work

    def publish(self, name: str, manifest: Manifest) -> None:
        """Make a step's work its result: manifest last, old result aside, one rename, old result away."""
        work, final, old = self.work(name), self.step(name), self.path / ".work" / f".{name}.old"  # no step's name begins with a dot
        for leftover in work.glob(".resume*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        (work / ".key").unlink(missing_ok=True)
        write_json(work / MANIFEST, manifest)
        if old.exists():
            shutil.rmtree(old)
        if final.exists():
            final.rename(old)
        work.rename(final)
        if old.exists():
            shutil.rmtree(old)

    def recover(self) -> None:
        """Finish what a kill in the middle of ``publish`` left: a whole work folder takes its place."""
        parent = self.path / ".work"
        for work in sorted(parent.iterdir()) if parent.is_dir() else []:
            if work.name.startswith("."):
                target = self.step(work.name.removeprefix(".").removesuffix(".old"))
                # Killed between the two renames: the new work is whole if it has a manifest.
                if not target.exists() and not (parent / target.name / MANIFEST).is_file():
                    work.rename(target)
                else:
                    shutil.rmtree(work)
            elif (work / MANIFEST).is_file():
                target = self.step(work.name)
                if target.exists():
                    shutil.rmtree(target)
                work.rename(target)


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it into place."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, under a temporary name that is then renamed."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def digest(value: Any) -> str:
    """SHA-256 (first 32 hex digits) of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


_hashed: dict[tuple[str, int, int], str] = {}


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, remembered while size and modification time stay."""
    stat = path.stat()
    mark = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if mark not in _hashed:
        with path.open("rb") as handle:
            _hashed[mark] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _hashed[mark]


Marks = dict[str, list[Any]]


def weight_marks(folder: Path) -> Marks:
    """{path: [bytes, modification time in ns, SHA-256]} of the weights in a step's folder, which are its .safetensors files."""
    marks: Marks = {}
    for file in sorted(folder.rglob("*.safetensors")):
        name = file.relative_to(folder)
        if not name.parts[0].startswith("."):  # what a killed run goes on from
            stat = file.stat()
            marks[name.as_posix()] = [stat.st_size, stat.st_mtime_ns, file_digest(file)]
    return marks


def changed_weights(folder: Path, marks: Marks) -> str | None:
    """The first file of a step's folder that does not hold the weights of its mark; None if all do.

    A file is read only if its size or time is another: a run folder may have been copied.
    """
    for name, (size, time, digest_then) in marks.items():
        file = folder / name
        if not file.is_file():
            return name
        stat = file.stat()
        if (stat.st_size, stat.st_mtime_ns) != (size, time) and file_digest(file) != digest_then:
            return name
    return None


def step_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed for one use of randomness, from the recipe's seed and the use's name."""
    return int(hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).hexdigest()[:15], 16)


def environment() -> dict[str, Any]:
    """Versions and machine, for a manifest. Imports nothing heavy."""
    packages = {}
    for package in ("torch", "transformers", "peft", "bitsandbytes", "lm_eval", "numpy", "safetensors"):
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "openbezoar": metadata.version("openbezoar") if _installed("openbezoar") else "source",
        "commit": _commit(),
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": packages,
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """The checkout's commit; None for an installed package, whose folder may lie in somebody else's repository."""
    if not (Path(__file__).parent.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
