"""Where a run's files lie, and how they come to lie there whole.

A run is a folder, ``RUNS/NAME``; a finished step is a folder in it with a ``manifest.json``
that was written last. A step in the making lies in ``.work/STEP`` and keeps what it has
done (training checkpoints, finished scores), so that a killed run goes on from there; it
is renamed into place when it is whole. One process at a time owns a run, by a file lock.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openbezoar.errors import RunError
from openbezoar.machine import disk
from openbezoar.store.digests import MANIFEST as MANIFEST
from openbezoar.store.digests import differences, marks_in, marks_of
from openbezoar.store.digests import digest as digest
from openbezoar.store.digests import file_digest as file_digest
from openbezoar.store.files import write_json, write_text
from openbezoar.store.live import LIVE
from openbezoar.store.manifests import Manifest, read_manifest, read_object, sealed

RECIPE = "run.json"


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
        """What a finished step wrote about itself, or None. Raises RunError for a damaged one, or
        one of a newer version.
        """
        return read_manifest(self.step(name) / MANIFEST)

    def checked(self, name: str, wholly: bool = False) -> Manifest | None:
        """The manifest of a step whose files are about to be read. Raises RunError for a file that
        is not what the step made.
        """
        manifest = self.manifest(name)
        for wrong in differences(self.step(name), marks_in(manifest or {}), wholly):
            raise RunError(
                f"{self.step(name)}: {wrong}; put the file back, or 'openbezoar run' the recipe, which makes the step"
                " again"
            )
        return manifest

    def made_by(self, recipe: Path, overrides: Sequence[str]) -> None:
        """Note which recipe makes the run, changed by what."""
        write_json(self.path / RECIPE, {"recipe": str(recipe.resolve()), "overrides": list(overrides)})

    def maker(self) -> tuple[Path, list[str]]:
        """The recipe that made the run last, and what it was changed by. Raises RunError if nothing says so."""
        file = self.path / RECIPE
        again = "give 'openbezoar run RECIPE' again, which writes it"
        try:
            content = read_object(file, "a note of the run's recipe", again)
        except FileNotFoundError:
            raise RunError(f"{self.path}: no {RECIPE}; {again}") from None
        path, overrides = content.get("recipe"), content.get("overrides")
        if (
            not isinstance(path, str)
            or not isinstance(overrides, list)
            or not all(isinstance(o, str) for o in overrides)
        ):
            raise RunError(f"{file}: it does not name the run's recipe; {again}")
        return Path(path), overrides

    def vouch(self, name: str) -> None:
        """Take a finished step's files as they are now for its result."""
        if (manifest := self.manifest(name)) is not None:
            disk.sync_tree(self.step(name))
            write_json(self.step(name) / MANIFEST, sealed({**manifest, "files": marks_of(self.step(name))}))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the run. Raises RunError if another process does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path}: another run is at work in this folder; wait for it, or use --runs with another"
                    " folder"
                ) from None
            yield

    def begin(self, name: str, key: str) -> Path:
        """The work folder of a step: what an earlier try with the same key left, or an empty one."""
        work = self.work(name)
        marker = work / ".key"
        if work.exists() and (not marker.is_file() or marker.read_bytes() != key.encode()):
            marker.unlink(missing_ok=True)  # first, so that what a kill leaves of the folder is nobody's
            disk.sync(work)
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        write_text(marker, key)
        disk.sync(work.parent)
        return work

    def publish(self, name: str, manifest: Manifest) -> Manifest:
        """Make a step's work its result: files on the disk, then the manifest that vouches for
        them, old result aside, one rename, old result away.

        Gives the manifest as it was written, with the marks of the files.
        """
        work = self.work(name)
        disk.sync_tree(work)
        written = sealed({**manifest, "files": marks_of(work)})
        write_json(work / MANIFEST, written)
        self._place(work)
        return written

    def _place(self, work: Path) -> None:
        """Put a whole work folder where results lie."""
        final, old = self.step(work.name), work.with_name(f".{work.name}.old")  # no step's name begins with a dot
        for leftover in (*work.glob(".resume*"), *work.rglob(".*.tmp"), work / ".key", work / LIVE):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        if old.exists():
            shutil.rmtree(old)
        if final.exists():
            disk.move(final, old)
        disk.move(work, final)
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
                    disk.move(work, target)
                else:
                    shutil.rmtree(work)
            elif (work / MANIFEST).is_file():
                self._place(work)


def open_run(path: Path) -> RunFolder:
    """An existing run folder. Raises RunError if there is none."""
    if not path.is_dir() or not any(path.glob(f"*/{MANIFEST}")):
        raise RunError(f"{path}: no finished step in this folder; expected a run such as runs/demo")
    return RunFolder(path)
