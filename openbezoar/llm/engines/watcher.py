"""The small process that stands between us and an engine: it ends when we do, and takes the engine and all its
children along. Nothing but the standard library, since it is run as a file of its own.

Reads its order (JSON) from its first argument, and /proc where there is one; writes the engine's log.
On its standard output a line of JSON for each thing that happens: ``started`` (the engine's number),
``failed`` (why it could not be started), ``exit`` (how it ended), ``gone`` (how many of its processes
had to be killed, and whether it was deaf to being asked). It stops the engine when its standard input ends, which
a killed parent's does too, and when its parent is another one.

On Linux the engine's processes are all found, also those that have left its group: its orphans become
the watcher's children, and each carries the mark of the engine in its environment, unless it has written
its title over it, as vLLM's do; then it is found by its parents. Elsewhere they are those of its group. If
the watcher itself is killed, the engine dies with it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MARK = "OPENBEZOAR_ENGINE"
LOOK = 0.2  # seconds between two looks at the engine
ORPHANS = 2.0  # seconds that those have which an engine left behind
GONE = 10.0  # seconds that processes are waited for after they were killed
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def members(group: int, mark: str, above: int = 0) -> list[int]:
    """The processes of an engine that run: of its group or session, with its mark in their environment, and the
    children of these. above: a process that has no other children, which is none of them: the engine's watcher.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return []
        return [group]
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] in ("Z", "X"):
                continue
            parents[int(entry.name)] = int(fields[1])
            ours = group in (int(fields[2]), int(fields[3]))
            if not ours and mark:
                ours = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError, ValueError):
            continue  # it has ended, or is another user's
        if ours:
            found.add(int(entry.name))
    below = {above} if above else set()
    while more := {pid for pid, parent in parents.items() if parent in found | below and pid not in found}:
        found |= more
    return sorted(found - below)


def send(processes: list[int], group: int, number: int) -> None:
    """A signal to a group, and to each of these processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def end(group: int, mark: str, grace: float, reap: bool = False) -> int:
    """Stop an engine's processes: asked first, killed after ``grace`` seconds; how many had to be killed.

    reap: they are this process's own children, and it has no others.
    """
    send(members(group, mark, os.getpid() if reap else 0), group, signal.SIGTERM)
    until = time.monotonic() + grace
    while (left := _standing(group, mark, reap)) and time.monotonic() < until:
        time.sleep(0.05)
    killed = len(left)
    until = time.monotonic() + GONE
    while left and time.monotonic() < until:
        send(left, group, signal.SIGKILL)
        time.sleep(0.02)
        left = _standing(group, mark, reap)
    return killed


def _standing(group: int, mark: str, reap: bool) -> list[int]:
    with contextlib.suppress(ChildProcessError):
        while reap and os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return members(group, mark, os.getpid() if reap else 0)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _say(**what: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(1, (json.dumps(what) + "\n").encode())


def _ask(engine: subprocess.Popen[bytes], order: dict[str, Any]) -> None:
    """Ask an engine to stop, and wait for it: its first process, which ends its children in their order and gives back
    the memory that they share; after half of the time all of them, of which one may be what it waits for.
    """
    engine.terminate()
    begun, asked = time.monotonic(), False
    while engine.poll() is None and (gone := time.monotonic() - begun) < order["grace"]:
        if not asked and gone > order["grace"] / 2:
            send(members(engine.pid, order["mark"], os.getpid()), engine.pid, signal.SIGTERM)
            asked = True
        time.sleep(0.02)


def main(order: dict[str, Any]) -> None:
    """Start what the order says, and stand by until it ends, or is to end."""
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    linux = sys.platform == "linux"
    if linux:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)

    def child() -> None:
        if linux:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    with Path(order["log"]).open("ab", buffering=0) as log:
        try:
            engine = subprocess.Popen(
                order["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, MARK: order["mark"]},
                cwd=order["folder"],
                start_new_session=True,
                preexec_fn=child,
            )
        except OSError as error:
            _say(failed=f"{error.strerror or error}")
            return
    _say(started=engine.pid)
    while engine.poll() is None and not stopping:
        with contextlib.suppress(InterruptedError):
            if select.select([0], [], [], LOOK)[0]:
                stopping = True  # the end of the pipe, or a word: either means stop
        stopping = stopping or os.getppid() != order["parent"]
    if stopping:
        _ask(engine, order)
    else:
        _say(exit=engine.returncode)
    deaf = engine.poll() is None
    killed = end(engine.pid, order["mark"], 0.0 if deaf else min(order["grace"], ORPHANS), reap=True)
    _say(gone=killed, deaf=deaf, standing=len(members(engine.pid, order["mark"], os.getpid())))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
