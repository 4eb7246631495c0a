"""What the machine says no to, in one line: a full or failing disk, no memory, no threads, no rights.

Python, torch, safetensors, SQLite and process pools each have words of their own for it;
``told`` knows them. An error that it does not know is a bug of ours, with its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from openbezoar.errors import UserError, brief

AGAIN = "give the same command again; what was finished is kept"
MEMORY = (
    "end other programs or take a larger machine, or ask for less at a time (smaller batch, tokens or max_length,"
    f" checkpointing: true); then {AGAIN}"
)
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"make room and {AGAIN}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "mend the permissions, or name another place"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY),
        "name another path",
    ),
    **dict.fromkeys(
        (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE),
        f"the disk or its connection fails: mend it, or use another one; then {AGAIN}",
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), f"raise the limit of open files (ulimit -n) and {AGAIN}"),
    errno.ENOENT: f"it is not there, or was taken away meanwhile: put it back; then {AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f), or use another file system, and {AGAIN}",
    errno.ENOMEM: MEMORY,
    errno.EAGAIN: f"raise the limit of processes (ulimit -u), or end some, and {AGAIN}",
    errno.ENOLCK: "the file system keeps no locks: use --runs with a folder on another one",
}
"""By the system's number. One that is not here gets ``AGAIN``."""
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS)

_SQLITE = {
    "SQLITE_FULL": errno.ENOSPC,
    "SQLITE_IOERR": errno.EIO,
    "SQLITE_READONLY": errno.EROFS,
    "SQLITE_CANTOPEN": errno.EACCES,
    "SQLITE_NOMEM": errno.ENOMEM,
}
_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|not enough memory|bad[_ ]alloc|unable to"
    r" allocate|ALLOC_FAILED|failed to map segment",
    re.IGNORECASE,
)
_NO_THREAD = re.compile(r"can't start new thread|pthread_create|unable to create.*thread", re.IGNORECASE)
# Rust's words, and Python's within another library's
_NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
_SHORT = re.compile(r"\d+ requested and \d+ written")  # numpy's words, which leave the system's number out
_SAID = {
    os.strerror(number): number
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENOMEM)
}


def refusal(error: BaseException, where: Path | None = None) -> UserError | None:
    """The line for what the machine refused: what, where, and what helps. None for any other error.

    where: what was being written, for the refusals that name no file.
    """
    for cause in _causes(error):
        if line := _line(cause):
            unnamed = isinstance(cause, OSError) and cause.errno in (*_OF_DISKS, None) and cause.filename is None
            return UserError(f"{where}: {line}" if where is not None and unnamed else line)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from. Of SQLite's also what came before: a roll-back that
    fails hides why it was tried.
    """
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or (at.__context__ if isinstance(at, sqlite3.Error) else None)
    return iter(sorted(chain, key=lambda e: isinstance(e, sqlite3.Error) and "rollback" in str(e)))


def _line(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno is not None:
        return _of_number(error.errno, error.filename, error.strerror)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and _NO_MEMORY.search(str(error))
    ):
        return f"not enough memory ({brief(error)}); {MEMORY}"
    if isinstance(error, RuntimeError) and _NO_THREAD.search(str(error)):
        return f"no further thread or process can be started; {REMEDIES[errno.EAGAIN]}"
    if isinstance(error, BrokenProcessPool):
        return f"a process that prepares rows was ended from outside, as a system without memory does; {MEMORY}"
    if isinstance(error, sqlite3.OperationalError):
        name = getattr(error, "sqlite_errorname", "")
        number = next((number for begin, number in _SQLITE.items() if name.startswith(begin)), None)
        return None if number is None else f"SQLite: {error}; {REMEDIES[number]}"
    # pathlib's words for ~NOBODY
    if isinstance(error, RuntimeError) and str(error) == "Could not determine home directory.":
        return "a path begins with '~' and a name that is no user's; write the path out"
    return _of_words(error)


def _of_number(number: int, filename: object, words: str | None) -> str:
    where = f"{os.fsdecode(filename)}: " if isinstance(filename, str | bytes) else ""
    return f"{where}{words or os.strerror(number)}; {REMEDIES.get(number, AGAIN)}"


def _of_words(error: BaseException) -> str | None:
    """What torch, safetensors and others pass on of the system's refusal, in their errors' texts."""
    text = str(error)
    if isinstance(error, OSError) and _SHORT.fullmatch(text):
        return f"written in part only ({text}), as on a full disk; {REMEDIES[errno.ENOSPC]}"
    if match := _NUMBER.search(text):
        number = int(match[1] or match[2])
        return f"{brief(error)}; {REMEDIES.get(number, AGAIN)}"
    return next((f"{brief(error)}; {REMEDIES[number]}" for words, number in _SAID.items() if words in text), None)
