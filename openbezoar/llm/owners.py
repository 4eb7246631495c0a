"""Who asks: a process, known so well that another one can tell whether it still runs. Reads /proc
where there is one.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Process:
    """A process of some machine. boot: of that machine since it was started; space: in which its
    number holds, as containers have their own.
    """

    host: str
    boot: str
    space: str
    pid: int
    born: str  # clock ticks since the start of the machine; a number is given again, to another process

    @classmethod
    def this(cls) -> Process:
        """The one that asks."""
        return cls(platform.node(), _read("/proc/sys/kernel/random/boot_id"), _space(), os.getpid(), born(os.getpid()))

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Process | None:
        """From JSON; None if it tells of no process."""
        try:
            process = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        return process if type(process.pid) is int else None

    def state(self) -> Literal["runs", "gone", "out of sight"]:
        """Seen from this process. A process of another machine or container is out of sight: its
        heartbeat has to tell.
        """
        here = Process.this()
        if self.host == here.host and self.boot and here.boot and self.boot != here.boot:
            return "gone"  # the machine was started anew since
        if (self.host, self.boot, self.space) != (here.host, here.boot, here.space):
            return "out of sight"
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return "gone"
        except PermissionError:
            pass
        now = born(self.pid)
        return "gone" if self.born and now != self.born else "runs"


def born(pid: int) -> str:
    """When a process began; "" for one that has ended, though nobody has asked how, and where it cannot be known."""
    _, _, rest = _read(f"/proc/{pid}/stat").rpartition(")")  # the name before it may hold anything
    fields = rest.split()
    return "" if len(fields) < 20 or fields[0] in ("Z", "X") else fields[19]


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
