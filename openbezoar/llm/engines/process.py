"""The life of one engine's process: started with a log, watched, stopped with all its children.

Writes the log and, beside it, a note of the process (``NAME.json``), by which the next run finds what
outlived both us and the watcher; the note goes when the process is gone.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError
from openbezoar.llm.engines import watcher
from openbezoar.llm.owners import Process, born
from openbezoar.progress import visible
from openbezoar.store.files import write_json

TAIL = 3  # of the log's last lines, in a message
TAIL_BYTES = 1 << 14
WIDEST = 300  # characters of them together
STARTING = 20.0  # seconds that the watcher has for its first word
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
"""Of our environment: an engine has packages of its own."""


class EngineProcess:
    """One program that was started. It is asked to end by ``stop``, and ends when this process does."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, grace: float = 20.0
    ) -> None:
        """log: appended to. environment: beside our own. grace: seconds it has to end when it is asked to.

        Raises ModelError if the program cannot be started.
        """
        self.command, self.log, self.grace = tuple(command), log, grace
        self.mark = uuid.uuid4().hex
        self.code: int | None = None  # how it ended by itself
        self._note = log.with_suffix(".json")
        self._lock, self._heard, self._ended = threading.Lock(), b"", False
        self._gone: dict[str, Any] = {}
        log.parent.mkdir(parents=True, exist_ok=True)
        order = {
            "command": self.command,
            "log": str(log.resolve()),
            "folder": str(log.parent.resolve()),
            "mark": self.mark,
            "grace": grace,
            "parent": os.getpid(),
        }
        ours = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        self._begun = log.stat().st_size if log.exists() else 0
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(watcher.__file__)), json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**ours, **(environment or {})},
            start_new_session=True,  # so that a Ctrl-C is ours alone
        )
        self.pid = 0
        try:
            self._wait_for_start()
            write_json(
                self._note,
                {"owner": Process.this().text(), "group": self.pid, "born": born(self.pid), "mark": self.mark},
            )
        except BaseException:
            self.stop()
            raise

    def _wait_for_start(self) -> None:
        until = time.monotonic() + STARTING
        while not self.pid and not self._ended and time.monotonic() < until:
            self._listen(0.1)
        if not self.pid:
            raise ModelError(f"{self.command[0]}: cannot be started ({self._gone.get('failed', 'no word of it')})")

    def _listen(self, seconds: float) -> None:
        """Take in what the watcher says within so many seconds."""
        with self._lock:
            out = self._watcher.stdout
            if self._ended or out is None or not select.select([out], [], [], seconds)[0]:
                return
            chunk = os.read(out.fileno(), 1 << 12)
            *lines, self._heard = (self._heard + chunk).split(b"\n")
            for line in lines:
                said = json.loads(line)
                self.pid = said.get("started", self.pid)
                self.code = said.get("exit", self.code)
                self._gone |= {name: said[name] for name in ("gone", "deaf", "standing", "failed") if name in said}
            if not chunk:
                self._ended = True
                if self.pid and "gone" not in self._gone:  # the watcher was killed, and its engine with it
                    watcher.end(self.pid, self.mark, 0.0)
                    self.code = self.code if self.code is not None else -9

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself, or was killed by others."""
        self._listen(0.0)
        return self.code is not None or self._ended

    def members(self) -> list[int]:
        """Its processes that run."""
        return watcher.members(self.pid, self.mark, self._watcher.pid)

    def tail(self) -> str:
        """The last lines of its log, as a part of one line."""
        with suppress(OSError), self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._begun, size - TAIL_BYTES))
            lines = [" ".join(line.split()) for line in file.read().decode(errors="replace").splitlines()]
            words = visible(" / ".join([line for line in lines if line][-TAIL:]))
            return words if len(words) <= WIDEST else "…" + words[-WIDEST:]
        return ""

    def stop(self) -> str:
        """End it with all its children, and wait until they are gone; what had to be done beyond asking, or ''."""
        if self._watcher.stdin is not None and not self._watcher.stdin.closed:
            with suppress(OSError):
                self._watcher.stdin.close()
        until = time.monotonic() + self.grace + watcher.ORPHANS + watcher.GONE + 5.0
        while not self._ended and time.monotonic() < until:
            self._listen(0.1)
        if not self._ended:  # a watcher that hangs
            self._watcher.kill()
            watcher.end(self.pid, self.mark, 0.0)
        self._watcher.wait()
        if self._watcher.stdout is not None:
            self._watcher.stdout.close()
        self._ended = True
        self._note.unlink(missing_ok=True)
        if self._gone.get("deaf"):
            return f"did not end within {self.grace:g} s and was killed"
        return f"left {n} processes behind, which were killed" if (n := self._gone.get("gone", 0)) else ""


def clear_leftovers(folder: Path, say: Any = None) -> int:
    """Stop what an earlier run left that was killed together with its watcher: engines noted in a folder whose owner
    is gone. How many processes that were.

    Only what carries an engine's mark is touched, since numbers of processes are given again.
    """
    stopped = 0
    for note in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            written = json.loads(note.read_text(encoding="utf-8"))
            owner, group, mark = Process.of(written["owner"]), int(written["group"]), str(written["mark"])
        except (OSError, ValueError, KeyError, TypeError):
            note.unlink(missing_ok=True)
            continue
        if owner is None or owner.state() != "gone":
            continue
        same = written.get("born") and born(group) == written["born"]
        left = watcher.members(group if same else -1, mark) if mark and Path("/proc").is_dir() else []
        if left:
            stopped += len(left)
            watcher.end(group if same else left[0], mark, 2.0)
        note.unlink(missing_ok=True)
    return stopped
