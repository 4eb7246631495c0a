"""``verify``: every file of a run read again and held against what was noted when it was made.
Reads a run folder and its call cache; writes nothing.

People's files (reviews, votes) are no results, and may change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from openbezoar.errors import RunError
from openbezoar.llm.calls import FILE, CallStore
from openbezoar.publishing import checksums
from openbezoar.store.digests import MANIFEST, differences, marks_in, result_digest, result_files
from openbezoar.store.manifests import Manifest
from openbezoar.store.runs import RunFolder


@dataclass
class Verified:
    """What was read and what of it differs, in words; ``notes``: what could not be held against anything."""

    files: int = 0
    bytes: int = 0
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(run: RunFolder) -> Verified:
    """Read everything that the run's finished steps and its call cache hold. Raises RunError for a
    cache that is no longer one.
    """
    report = Verified()
    manifests: dict[str, Manifest] = {}
    for path in sorted(run.path.glob(f"*/{MANIFEST}")):
        name = path.parent.name
        try:
            manifest = run.manifest(name)
        except RunError as error:
            report.wrong.append(str(error).removeprefix(f"{run.path}/"))
            continue
        if manifest is not None:
            manifests[name] = manifest
            report.wrong += (f"{name}: {wrong}" for wrong in _step(run, name, manifest, report))
    for name, manifest in manifests.items():
        used: dict[str, Any] = manifest.get("used", {})
        report.wrong += (
            f"{name}: made from other files of {i} than are there"
            for i, then in used.items()
            if then != result_digest(manifests.get(i, {}))
        )
    if (run.path.parent / FILE).is_file():
        store = CallStore(run.path.parent)
        report.answers, damaged = store.verify()
        store.close()
        if damaged:
            report.wrong.append(
                f"{FILE}: {damaged} of {report.answers} answers are not what was kept; the next run that needs them"
                " asks again"
            )
    return report


def _step(run: RunFolder, name: str, manifest: Manifest, found: Verified) -> Iterator[str]:
    """What differs in a step's folder."""
    folder, marks = run.step(name), marks_in(manifest)
    if "files" not in manifest:
        found.notes.append(
            f"{name}: made before digests of all files were kept;"
            f" {f'{len(marks)} of weights were compared' if marks else 'nothing to compare'}"
        )
    yield from differences(folder, marks, wholly=True)
    for file in result_files(folder):
        inside = file.relative_to(folder).as_posix()
        found.files, found.bytes = found.files + 1, found.bytes + file.stat().st_size
        if "files" in manifest and inside not in marks:
            yield f"{inside} was not made by the step"
        if file.name == checksums.SUMS:
            try:
                checksums.checked(file.parent)
            except RunError as error:
                yield str(error).removeprefix(f"{folder}/")
