"""One file that holds a tree of files with a hash of each: written whole, and read with distrust.

It is a zip: the standard library reads and writes it, one file can be looked at without the rest, and weights
do not get smaller by any packing. ``contents.json`` in it names every other member with its size, its time and its
SHA-256, and has a digest of itself. What was sent by others may be damaged or hostile: nothing is
taken that is not named there, nothing lies outside of the folder, and it appears when all of it is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from openbezoar.errors import RunError, named
from openbezoar.machine import disk
from openbezoar.machine.foreign import foreign_file
from openbezoar.store.digests import digest

FORMAT = 1
CONTENTS = "contents.json"
CHUNK = 1 << 20
MOST_CONTENTS = 1 << 28  # bytes of contents.json
LONGEST = 1000  # characters of a path
_AS_THEY_ARE = (".safetensors", ".gguf", ".gz", ".zst", ".parquet", ".arrow", ".zip", ".png")
_SHA = re.compile(r"[0-9a-f]{64}")
AGAIN = "copy the file again, or 'openbezoar pack' the run again"


def write(
    target: Path,
    files: Mapping[str, Path | bytes],
    about: Mapping[str, Any],
    *,
    secrets: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write files by their paths inside into an archive that its owner alone can read; gives its contents.

    about: plain data that goes with them. secrets: values by the names of their environment variables; raises
    RunError, and leaves no archive, if a file holds one.
    """
    marks: dict[str, dict[str, Any]] = {}
    places: dict[tuple[int, int], str] = {}
    temporary = disk.temporary_of(target)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for path in sorted(files):
                marks[path] = _put(archive, path, files[path], places, secrets or {})
            facts = json.loads(json.dumps({"format": FORMAT, "about": about, "files": marks}, default=str))
            contents = {**facts, "digest": digest(facts)}
            archive.writestr(_info(CONTENTS), json.dumps(contents, indent=1, ensure_ascii=False))
        disk.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return contents


def _put(
    archive: zipfile.ZipFile,
    path: str,
    source: Path | bytes,
    places: dict[tuple[int, int], str],
    secrets: Mapping[str, str],
) -> dict[str, Any]:
    """Write one member, unless a hard link of it is there already; its mark."""
    if isinstance(source, bytes):
        with archive.open(_info(path), "w") as out:
            out.write(source)
        _refuse_secrets(source, path, secrets)
        return {"bytes": len(source), "time": 0, "sha256": hashlib.sha256(source).hexdigest()}
    with source.open("rb") as bytes_:
        state = os.fstat(bytes_.fileno())
        place = (state.st_dev, state.st_ino)
        if state.st_nlink > 1 and place in places:
            return {"same": places[place], "time": state.st_mtime_ns}
        places[place] = path
        sums, size, before = hashlib.sha256(), 0, b""
        with archive.open(_info(path), "w", force_zip64=True) as out:
            while chunk := bytes_.read(CHUNK):
                _refuse_secrets(before + chunk, str(source), secrets)
                sums.update(chunk)
                out.write(chunk)
                size, before = size + len(chunk), chunk[-4096:]
    return {"bytes": size, "time": state.st_mtime_ns, "sha256": sums.hexdigest()}


def _refuse_secrets(chunk: bytes, where: str, secrets: Mapping[str, str]) -> None:
    for name, value in secrets.items():
        if value.encode() in chunk:
            raise RunError(f"{where}: holds the value of {name}, which is a secret; take it out, nothing was packed")


def _info(path: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path)  # of 1980, so that the same files are the same archive
    info.compress_type = zipfile.ZIP_STORED if path.endswith(_AS_THEY_ARE) else zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IFREG | 0o600) << 16
    return info


# ------------------------------------------------------------------------------- reading


def extract(
    source: Path,
    place: Callable[[dict[str, Any]], Path],
    finish: Callable[[Path, dict[str, Any]], None] = lambda folder, contents: None,
) -> dict[str, Any]:
    """Check an archive and lay its files into a folder that is new or empty; gives its contents.

    place: says from the contents which folder. finish: is called with the files' folder before it has its name.
    Raises RunError, with nothing left behind, for what is no archive of ours, of a newer version, damaged or
    hostile: a path that leaves the folder, a link, a member that is not named or twice there, other bytes than
    were packed.
    """
    if not source.is_file():
        raise RunError(f"{source}: no such file; expected one that 'openbezoar pack' wrote")
    with foreign_file(source, "a file of 'openbezoar pack'", AGAIN, kind=RunError), zipfile.ZipFile(source) as archive:
        members = _members(archive, source)
        contents = _contents(archive, members, source)
        files: dict[str, dict[str, Any]] = contents["files"]
        _hold_against(members, files, source)
    target = place(contents).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"{target}: exists already and is not empty; name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    _room(files, target.parent, source)
    making = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(mode=0o700)
        with foreign_file(source, "a file of 'openbezoar pack'", AGAIN, kind=RunError):
            with zipfile.ZipFile(source) as archive:
                for path, mark in files.items():
                    if "same" not in mark:
                        _lay(archive, path, mark, making, source)
            for path, mark in files.items():
                if "same" in mark:
                    _link(making / mark["same"], making / path)
                os.utime(making / path, ns=(mark["time"], mark["time"]))
        finish(making, contents)
        disk.sync_tree(making)
        if target.exists():
            target.rmdir()
        disk.move(making, target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return contents


def _members(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by name. Raises RunError for any that is no plain file with a plain name."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise _hostile(source, info.filename, "there twice")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or kind not in (0, stat.S_IFREG):
            raise _hostile(source, info.filename, "a link, a folder or a device, not a file")
        if info.flag_bits & 1:
            raise _hostile(source, info.filename, "encrypted")
        if info.orig_filename != info.filename or not safe(info.filename):
            raise _hostile(source, info.orig_filename, "no path within the folder")
        members[info.filename] = info
    return members


def safe(path: Any) -> bool:
    """Whether a path is a relative one that stays in its folder, the same on every system."""
    return (
        isinstance(path, str)
        and 0 < len(path) <= LONGEST
        and path.isprintable()
        and "\\" not in path
        and not re.match(r"[A-Za-z]:", path)
        and all(part not in ("", ".", "..") for part in path.split("/"))
    )


def _contents(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], source: Path) -> dict[str, Any]:
    """What ``contents.json`` says. Raises RunError if it is missing, damaged, mistyped or of a newer version."""
    if CONTENTS not in members or members[CONTENTS].file_size > MOST_CONTENTS:
        raise RunError(f"{source}: no {CONTENTS} in it; expected a file that 'openbezoar pack' wrote")
    with archive.open(members[CONTENTS]) as text:
        contents = json.loads(text.read(MOST_CONTENTS))
    if not isinstance(contents, dict):
        raise _hostile(source, CONTENTS, "no JSON object")
    if type(contents.get("format")) is int and contents["format"] > FORMAT:
        raise RunError(f"{source}: written by a newer openbezoar; update openbezoar")
    if contents.get("digest") != digest({key: value for key, value in contents.items() if key != "digest"}):
        raise _hostile(source, CONTENTS, "changed since it was written")
    files = contents.get("files")
    if not isinstance(files, dict) or not isinstance(contents.get("about"), dict):
        raise _hostile(source, CONTENTS, "without files")
    for path, mark in files.items():
        if not safe(path) or not _is_mark(mark, files):
            raise _hostile(source, path, "no path within the folder, or without its hash")
        if any(parent in files for parent in _parents(path)):
            raise _hostile(source, path, "within another file")
    return contents


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _is_mark(mark: Any, files: Mapping[str, Any]) -> bool:
    if not isinstance(mark, dict) or type(mark.get("time")) is not int or not 0 <= mark["time"] < 1 << 62:
        return False
    if "same" in mark:
        other = files.get(mark["same"]) if isinstance(mark["same"], str) else None
        return isinstance(other, dict) and "same" not in other
    size, sha = mark.get("bytes"), mark.get("sha256")
    return type(size) is int and size >= 0 and isinstance(sha, str) and _SHA.fullmatch(sha) is not None


def _hold_against(members: Mapping[str, zipfile.ZipInfo], files: Mapping[str, Any], source: Path) -> None:
    """Raise RunError if the members are not those that the contents name, in their sizes."""
    packed = {path: mark for path, mark in files.items() if "same" not in mark}
    for path in {*members, *packed} - {CONTENTS}:
        if path not in members or path not in packed:
            raise _hostile(source, path, "missing" if path in packed else f"not named in {CONTENTS}")
        if members[path].file_size != packed[path]["bytes"]:
            raise _hostile(source, path, "not as long as when it was packed")


def _room(files: Mapping[str, Any], folder: Path, source: Path) -> None:
    needed, free = sum(mark.get("bytes", 0) for mark in files.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{source}: needs {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB; make room, or name another"
            " folder"
        )


def _lay(archive: zipfile.ZipFile, path: str, mark: Mapping[str, Any], folder: Path, source: Path) -> None:
    """Write one file and hold it against its hash."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    sums, left = hashlib.sha256(), mark["bytes"]
    with file.open("xb") as out, archive.open(path) as packed:
        while chunk := packed.read(min(CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            sums.update(chunk)
            out.write(chunk)
    if left or sums.hexdigest() != mark["sha256"]:
        raise _hostile(source, path, "not the bytes that were packed (its hash is another)")


def _link(first: Path, file: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(first, file)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(first, file)


def _hostile(source: Path, path: Any, what: str) -> RunError:
    return RunError(f"{source}: '{named(path)}' in it is {what}; nothing was unpacked: {AGAIN}")
