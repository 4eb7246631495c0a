"""The command line in forked children of one warm process, so that hundreds of commands do not
import torch hundreds of times.

The warm process imports every module of the package, runs no operation (no pool of threads
exists when it forks), and forks a child a command. ``Commands`` is its client, the fixture
``commands`` one for all tests of a worker.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Done:
    """How a command ended. code: its exit code, or less than 0: the signal that ended it."""

    code: int
    out: str
    err: str


class Running:
    """A command under way. pid: its process, which leads a group of its own."""

    def __init__(self, pid: int, scratch: Path, end: Callable[[], int]) -> None:
        self.pid, self._scratch, self._end = pid, scratch, end
        self._done: Done | None = None

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return Path(f"/proc/{self.pid}").exists() and self._done is None

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> Done:
        """How it ended; what went to a place of the caller's is not in it."""
        if self._done is None:
            code = self._end()
            out, err = (file.read_text(errors="replace") if file.is_file() else "" for file in _outputs(self._scratch))
            shutil.rmtree(self._scratch)
            self._done = Done(code, out, err)
        return self._done


def _outputs(scratch: Path) -> tuple[Path, Path]:
    return scratch / "out", scratch / "err"


class Commands:
    """Runs commands, one after another. ``first``: Python that a child runs before its command,
    such as one that breaks something.
    """

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(
        self,
        *arguments: str,
        first: str = "",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        seconds: float = 300,
    ) -> Done:
        """A command from its beginning to its end."""
        return self.start(*arguments, first=first, cwd=cwd, env=env, seconds=seconds).wait()

    def start(
        self,
        *arguments: str,
        first: str = "",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        seconds: float = 300,
        said_to: Path | None = None,
    ) -> Running:
        """Begin a command; wait for it before the next one. said_to: a terminal or named pipe that
        gets all that it says, instead of what ``Done`` tells.
        """
        scratch = Path(tempfile.mkdtemp())
        out, err = (said_to, said_to) if said_to else _outputs(scratch)
        order = {
            "arguments": arguments,
            "first": first,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(env or {}),
            "out": str(out),
            "err": str(err),
            "seconds": seconds,
        }
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Running(self._answer(), scratch, self._answer)

    def _answer(self) -> int:
        assert self._process.stdout
        answer = self._process.stdout.readline()
        assert answer, "the warm process is gone"
        return int(json.loads(answer))

    def close(self) -> None:
        """End the warm process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(120)  # a machine with other work takes its time to end one that has torch in it


_KILLER = """
import importlib, os, signal, sys
module, name, count, when = {killer!r}
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, last), 0
def wrapped(*args, **kwargs):
    global calls
    calls += 1
    if when == "before" and calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if when == "after" and calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, last, wrapped)
for other in list(sys.modules.values()):  # what imported the function by its name
    if not path and vars(other).get(last) is original:
        setattr(other, last, wrapped)
"""


def killing(module: str, name: str, count: int, when: str) -> str:
    """For ``first``: the process is killed with SIGKILL at the ``count``-th call of a function,
    'before' or 'after' it runs.
    """
    return _KILLER.format(killer=(module, name, count, when))


def _child(order: Mapping[str, Any]) -> int:
    """In the forked process: the command, with its output in files. Returns the exit code."""
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(order[name], os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  the parent's has read orders
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    import openbezoar
    from openbezoar.cli.app import main

    sys.argv = [str(Path(openbezoar.__path__[0], "__main__.py")), *order["arguments"]]  # as python -m openbezoar

    try:
        if order["first"]:
            exec(order["first"], {"__name__": "first"})
        main(list(order["arguments"]))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    return 0


def _serve() -> None:
    import openbezoar

    for module in pkgutil.walk_packages(openbezoar.__path__, "openbezoar."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("peft", "torch", "transformers.models.llama.modeling_llama", "rich.table"):
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os._exit(_child(order) & 0xFF)
        print(child, flush=True)
        print(_ended(child, order["seconds"]), flush=True)


def _ended(child: int, seconds: float) -> int:
    """The child's exit code, or less than 0 its signal; one that takes too long is killed, with what it started."""
    end = time.monotonic() + seconds
    handle = os.pidfd_open(child)
    try:
        if not select.select([handle], [], [], max(0.0, end - time.monotonic()))[0]:
            os.killpg(child, signal.SIGKILL)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    _serve()
