"""Files, folders and renames that a power cut does not undo: they are on the disk when a call returns."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some file systems keep no folder back, and refuse to be asked
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """``sync`` of everything in a folder, itself last."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            sync_tree(path)
        elif path.is_file():
            sync(path)
    sync(folder)


def temporary_of(path: Path) -> Path:
    """Where a file is written before it gets its name; hidden, so that one that a kill left is
    taken for nobody's result.
    """
    return path.with_name(f".{path.name}.tmp")


def replace(temporary: Path, path: Path) -> None:
    """Give a written file its name, in place of an older one: after a power cut one of the two is there, whole."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def move(folder: Path, target: Path) -> None:
    """Rename a folder whose contents are on the disk; the new name is there before the old one is gone."""
    folder.rename(target)
    sync(target.parent)
    if folder.parent != target.parent:
        sync(folder.parent)
