"""The servers of one model: each started on a free port, waited for, started again when it ends or hangs, stopped.

A port is free when it is chosen and may be another program's when the engine comes to it; then another
one is taken. A server is ready when its own health says so and the port is its own. One that ends in
mid-run, or whose health is silent while requests wait, is started again ``Patience.restarts`` times;
then its model is given up with its log's last lines.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError
from openbezoar.llm.engines import watcher
from openbezoar.llm.engines.process import EngineProcess
from openbezoar.llm.engines.programs import HOST, Program
from openbezoar.llm.side_by_side import CalledOff
from openbezoar.machine.gpus import holding

PORTS = 5  # that are tried where others take them


@dataclass(frozen=True)
class Patience:
    """Seconds. ready: until it answers, a large model's weights read; end: to end when asked; look: between two looks
    at its health; answer: that health may take; silent: without any reply, from which health is asked; misses:
    health's silences in a row that make it one that hangs; request: of one request, waiting its turn included.

    restarts: times that it is started again.
    """

    ready: float = 1800.0
    end: float = 20.0
    look: float = 5.0
    answer: float = 20.0
    silent: float = 60.0
    misses: int = 3
    request: float = 1800.0
    restarts: int = 3


class _PortTaken(Exception):
    """Another program has the port by now."""


class EngineServer:
    """One server. where: the model in messages; start: the command for a port."""

    def __init__(
        self,
        where: str,
        program: Program,
        start: Callable[[int], Sequence[str]],
        log: Path,
        environment: dict[str, str],
        patience: Patience,
        say: Callable[[str], None],
    ) -> None:
        self.where, self.program, self.log, self.patience = where, program, log, patience
        self._start, self._environment, self._say = start, environment, say
        self.port, self.starts = 0, 0
        self.window: int | None = None  # tokens of a conversation, where it tells
        self._process: EngineProcess | None = None
        self._lock = threading.RLock()  # one thread starts it, the others wait
        self._under_way, self._heard = 0, 0.0
        self._closing = threading.Event()
        self._lost = ""  # why it is given up

    @property
    def pids(self) -> list[int]:
        """Its processes that run."""
        process = self._process
        return process.members() if process is not None else []

    # ---- starting and stopping

    def open(self, off: threading.Event | None = None) -> None:
        """Start it, if it does not run, and wait until it answers. Raises ModelError, or CalledOff."""
        with self._lock:
            if self._lost:
                raise ModelError(self._lost)
            if self._process is not None and not self._process.ended:
                return
            if off is not None and off.is_set():
                raise CalledOff
            self._closing.clear()
            begun = time.monotonic()
            for _ in range(PORTS):
                try:
                    self._begin(off)
                    break
                except _PortTaken:
                    self._stop()
            else:
                raise ModelError(
                    f"{self.where}: each of {PORTS} free ports was another program's when"
                    f" {self.program.name} came to it; run again"
                )
            self.starts += 1
            self._say(f"  {self.where}: {self.program.name} answers after {time.monotonic() - begun:.0f} s; {self.log}")
            threading.Thread(target=self._look_after, args=(self._process,), name="engine", daemon=True).start()

    def _begin(self, off: threading.Event | None) -> None:
        self.port = free_port()
        self._process = EngineProcess(self._start(self.port), self.log, self._environment, self.patience.end)
        try:
            self._wait(self._process, off)
        except _PortTaken:
            raise
        except BaseException:
            self._stop()
            raise
        self.window = _window(self.port, self.patience.answer)
        self._heard = time.monotonic()

    def _wait(self, process: EngineProcess, off: threading.Event | None) -> None:
        until, pause = time.monotonic() + self.patience.ready, 0.05
        while time.monotonic() < until:
            if self._closing.is_set() or (off is not None and off.is_set()):
                raise CalledOff
            if process.ended:
                if _answers(self.port):
                    raise _PortTaken
                raise ModelError(
                    f"{self.where}: {self.program.name} ended before it answered"
                    f" (exit {process.code}): {process.tail() or 'it said nothing'}; its log is {self.log}"
                )
            if listens(self.port, process.members()) and _healthy(self.port, 5.0):
                return
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        raise ModelError(
            f"{self.where}: {self.program.name} does not answer within {self.patience.ready:g} s:"
            f" {process.tail() or 'it said nothing'}; its log is {self.log}"
        )

    def close(self) -> None:
        """Stop it, and see its memory given back."""
        self._closing.set()
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        gpus = holding(process.members())
        if words := process.stop():
            self._say(f"  {self.where}: {self.program.name} {words}")
        until = time.monotonic() + self.patience.end
        while gpus and (gpus := holding(gpus)) and time.monotonic() < until:
            time.sleep(0.2)
        if gpus:
            self._say(f"  {self.where}: {self.program.name} has ended, and the driver still counts memory as its own")

    # ---- while it answers

    @property
    def base(self) -> str:
        """Its base URL now; another one after it was started again."""
        return f"http://{HOST}:{self.port}/v1"

    @contextmanager
    def asking(self) -> Iterator[int]:
        """While a request is under way; which start of it answers."""
        with self._lock:
            if not self._under_way:
                self._heard = time.monotonic()
            self._under_way += 1
            start = self.starts
        try:
            yield start
        finally:
            with self._lock:
                self._under_way -= 1

    def heard(self) -> None:
        """A reply came."""
        self._heard = time.monotonic()

    def mend(self, start: int, off: threading.Event | None, slow: bool = False) -> bool:
        """After a request of one of its starts was lost: start it again where it has ended, or hangs. Whether it was.

        slow: the request's time had passed. Raises ModelError where it has been started again often enough.
        """
        with self._lock:
            if self.starts != start:
                return True  # another request's thread has done it
            process = self._process
            if process is None or self._closing.is_set():
                raise CalledOff
            until = time.monotonic() + 2.0  # a broken connection may be the first sign of an end
            while not slow and not process.ended and time.monotonic() < until:
                if _healthy(self.port, self.patience.answer):
                    return False
                time.sleep(0.1)
            ended = process.ended
            why = f"ended by itself (exit {process.code})" if ended else "gave no sign of life"
            tail = process.tail()
            self._stop()
            if start > self.patience.restarts:
                self._lost = (
                    f"{self.where}: {self.program.name} {why} after it was started again"
                    f" {self.patience.restarts} times: {tail or 'it said nothing'}; its log is {self.log}; every answer"
                    " is kept"
                )
                raise ModelError(self._lost)
            self._say(
                f"  {self.where}: {self.program.name} {why}; it is started again, {start} of"
                f" {self.patience.restarts} times ({tail or 'it said nothing'})"
            )
            self.open(off)
            return True

    def _look_after(self, process: EngineProcess) -> None:
        """Kill it when it hangs, so that requests under way come back. The next start is not this thread's: while it
        loads its weights it answers nothing, and is waited for elsewhere.
        """
        misses = 0
        while not self._closing.wait(self.patience.look) and self._process is process:
            if process.ended:
                return
            if not self._under_way or time.monotonic() - self._heard < self.patience.silent:
                misses = 0
                continue
            misses = 0 if _healthy(self.port, self.patience.answer) else misses + 1
            if misses >= self.patience.misses:
                watcher.send(process.members(), process.pid, 9)
                return


# ------------------------------------------------------------------------------------ the port


def free_port() -> int:
    """A port of the loopback that is free just now."""
    with socket.socket() as s:
        s.bind((HOST, 0))
        return int(s.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def listens(port: int, pids: Sequence[int]) -> bool:
    """Whether one of these processes has the port. True where the system does not tell."""
    try:
        lines = [line for table in ("tcp", "tcp6") for line in _table(table)]
    except OSError:
        return True
    inodes = {
        f"socket:[{fields[9]}]"
        for fields in map(str.split, lines)
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    for pid in pids:
        try:
            if any(str(entry.readlink()) in inodes for entry in _descriptors(pid)):
                return True
        except OSError:
            continue
    return False


def _table(name: str) -> list[str]:
    path = Path("/proc/net") / name
    return path.read_text(encoding="ascii").splitlines()[1:] if path.exists() or name == "tcp" else []


def _descriptors(pid: int) -> Iterator[Path]:
    return (entry for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink())


def _get(port: int, path: str, seconds: float) -> tuple[int, bytes]:
    """(status, body) of a request that no proxy sees. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read(1 << 20)
    finally:
        connection.close()


def _healthy(port: int, seconds: float) -> bool:
    """Whether a server says that it is well: by its /health, or its list of models where it has none."""
    try:
        status, _ = _get(port, "/health", seconds)
        return (status if status != 404 else _get(port, "/v1/models", seconds)[0]) == 200
    except (OSError, http.client.HTTPException):
        return False


def _window(port: int, seconds: float) -> int | None:
    """Tokens of a conversation, as a server tells: vLLM and SGLang with the model, llama.cpp among its settings."""
    for path, keys in (
        ("/v1/models", ("data", 0, "max_model_len")),
        ("/props", ("default_generation_settings", "n_ctx")),
    ):
        try:
            status, body = _get(port, path, seconds)
            value: Any = json.loads(body) if status == 200 else None
            for key in keys:
                value = value[key]
            if type(value) is int and value > 0:
                return value
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            continue
    return None
