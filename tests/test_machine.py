"""What the machine refuses is one line; no news that cannot be told, and no reader that went away,
ends work. Full disks at every write of a run.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openbezoar.cli.app import main
from openbezoar.machine import limits
from openbezoar.machine.streams import BestEffort

ROOT = Path(__file__).parent.parent
RULES = {"near_duplicates": None, "language": "any", "min_response_words": 1}
RECIPE = {
    "name": "t",
    "models": {},
    "steps": {
        "kept": {"filter": "rows.jsonl", "rules": RULES},
        "again": {"filter": "kept", "rules": RULES},
        "told": {"report": "all"},
    },
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a recipe that needs no model and no optional package."""
    rows = [{"instruction": f"Say the number {i}.", "response": f"The number is {i}, as you asked."} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    return tmp_path


# -------------------------------------------------------------------------------- words


def too_much_in_torch() -> None:
    import torch

    torch.empty(1 << 45)


def full_sqlite() -> None:
    with sqlite3.connect(":memory:") as db:
        db.execute("PRAGMA max_page_count = 2")
        db.execute("CREATE TABLE t (x)")
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")


def hidden_sqlite() -> None:
    """As code that rolls back what SQLite has rolled back itself: the first error is the one to tell."""
    db = sqlite3.connect(":memory:")
    try:
        full_sqlite()
    except sqlite3.Error:
        db.execute("ROLLBACK")


def no_thread() -> None:
    raise RuntimeError("can't start new thread")


def wrapped() -> None:
    try:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/rows.jsonl")
    except OSError as error:
        raise ValueError("could not load") from error


def raised(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (lambda: Path("/proc/self/mem/x").write_text("x"), r"/proc/self/mem/x: Not a directory; name another path"),
        (
            raised(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y")),
            r"/x/y: No space left on device; make room and give the same command again.*",
        ),
        (raised(OSError(errno.EIO, os.strerror(errno.EIO))), r"Input/output error; the disk or its connection fails.*"),
        (
            raised(OSError(errno.EFBIG, os.strerror(errno.EFBIG))),
            r"File too large; raise the limit of a file's size \(ulimit -f\).*",
        ),
        (
            raised(OSError(errno.EMFILE, os.strerror(errno.EMFILE), b"/x")),
            r"/x: Too many open files; raise the limit of open files.*",
        ),
        (
            raised(OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))),
            r"Transport endpoint is not connected; give the same command again.*",
        ),
        (raised(MemoryError()), r"not enough memory \(MemoryError\); .*smaller batch.*"),
        (lambda: bytearray(1 << 62), r"not enough memory \(MemoryError\); .*"),
        (lambda: np.ones(1 << 50), r"not enough memory \(.*Unable to allocate.*\); .*"),
        (too_much_in_torch, r"not enough memory \(RuntimeError: .*DefaultCPUAllocator.*\); .*"),
        (
            raised(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
            r"not enough memory \(RuntimeError: CUDA out of memory.*\); .*",
        ),
        (
            raised(ImportError("libtorch.so: failed to map segment from shared object")),
            r"not enough memory \(ImportError: .*",
        ),
        (
            raised(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")),
            r"not enough memory \(RuntimeError: .*",
        ),
        (
            raised(OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device")),
            r"OSError: .*; make room.*",
        ),
        (
            raised(OSError("8704 requested and 2304 written")),
            r"written in part only \(8704 requested and 2304 written\), as on a full disk; make room.*",
        ),
        (no_thread, r"no further thread or process can be started; raise the limit of processes.*"),
        (
            raised(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))),
            r"Resource temporarily unavailable; raise the limit of processes.*",
        ),
        (raised(BrokenProcessPool("terminated abruptly")), r"a process that prepares rows was ended from outside.*"),
        (full_sqlite, r"SQLite: database or disk is full; make room.*"),
        (hidden_sqlite, r"SQLite: database or disk is full; make room.*"),
        (wrapped, r"/data/rows.jsonl: Input/output error; .*"),
        (
            raised(Exception("Error while serializing: I/O error: No space left on device (os error 28)")),
            r"Exception: .*\(os error 28\); make room.*",
        ),
        (lambda: Path("~nobody-of-that-name").expanduser(), r"a path begins with '~'.*"),
    ],
)
def test_what_the_machine_refuses_is_one_line_with_a_remedy(fails: Callable[[], Any], said: str) -> None:
    with pytest.raises(BaseException) as caught:
        fails()
    assert re.fullmatch(said, str(limits.refusal(caught.value)))


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("x"), OSError("no number"), RuntimeError("shapes differ"), AssertionError()]
)
def test_a_bug_of_ours_is_not_blamed_on_the_machine(error: BaseException) -> None:
    assert limits.refusal(error) is None


def test_where_it_was_is_told_of_refusals_that_name_no_file() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(limits.refusal(full, Path("runs/t/.work/kept"))).startswith(
        "runs/t/.work/kept: No space left on device; "
    )
    full.filename = "/x/y"
    assert str(limits.refusal(full, Path("runs/t/.work/kept"))).startswith("/x/y: No space")
    assert "runs" not in str(limits.refusal(MemoryError(), Path("runs")))


def test_a_step_names_itself_and_a_bug_keeps_its_traceback(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for error, code in ((MemoryError(), 2), (RuntimeError("can't start new thread"), 2)):
        monkeypatch.setattr("openbezoar.verbs.filter.work.run", raised_by_call(error))
        with pytest.raises(SystemExit) as stop:
            main(["run", "recipe.yaml"])
        assert stop.value.code == code
        assert capsys.readouterr().err.splitlines()[-1].startswith("openbezoar: step kept: n")
    monkeypatch.setattr("openbezoar.verbs.filter.work.run", raised_by_call(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["run", "recipe.yaml"])


def raised_by_call(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_a_step_s_duration_does_not_follow_the_clock(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    set_back = iter(range(10**9, 0, -25_199))
    monkeypatch.setattr(time, "time", lambda: float(next(set_back)))
    with pytest.raises(SystemExit) as stop:
        main(["run", "recipe.yaml"])
    assert stop.value.code == 0
    assert all(0 <= json.loads(path.read_text())["seconds"] < 600 for path in place.glob("runs/t/*/manifest.json"))


# ------------------------------------------------------------------------------ streams


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("run recipe.yaml 2>/dev/full", 0, r""),
        ("run recipe.yaml >&- 2>&- <&-", 0, r""),
        ("schema | head -c 10", 0, r""),
        ("plan recipe.yaml | true", 0, r""),
        ("schema > /dev/full", 2, r"openbezoar: No space left on device; make room .*\n"),
        ("run nowhere.yaml 2>/dev/full", 2, r""),
    ],
)
def test_streams_that_are_closed_full_or_left_end_no_work(shell: str, code: int, said: str, place: Path) -> None:
    if "/dev/full" in shell and not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    command = f"set -o pipefail; {sys.executable} -m openbezoar {shell}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "wide"}
    done = subprocess.run(["bash", "-c", command], cwd=place, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, bool(re.fullmatch(said, done.stderr))) == (code, True), done
    if shell.startswith("run recipe"):
        assert (place / "runs/t/told/report.html").is_file()


def test_news_that_cannot_be_told_are_dropped_and_the_descriptor_leads_nowhere(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = BestEffort(io.TextIOWrapper(os.fdopen(writing, "wb", 0), write_through=True))
    assert stream.write("news") == 4
    print("more", file=stream, flush=True)  # type: ignore[arg-type]
    assert os.write(stream.fileno(), b"of another library") == 18
    stream.close()
    print("after its end", file=stream, flush=True)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- full disks


class Faulty:
    """A disk that fails from the nth write on: writes, flushes, closes of what is written, renames,
    folders, copies, and SQLite's commits.
    """

    def __init__(self, allowed: int, number: int) -> None:
        self.left, self.number, self.met = allowed, number, 0

    def __call__(self) -> None:
        self.met += 1
        if self.left <= 0:
            raise OSError(self.number, os.strerror(self.number))
        self.left -= 1

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self()
            return function(*args, **kwargs)

        return call

    def install(self, below: Path) -> None:
        real, disk = io.open, self

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            handle = real(file, mode, *args, **kwargs)
            if (
                not set(mode) & set("wax+")
                or isinstance(file, int)
                or not Path(os.fsdecode(file)).absolute().is_relative_to(below)
            ):
                return handle
            return Written(handle, disk)

        io.open = builtins.open = opened  # type: ignore[assignment]
        for name in ("mkdir", "rename", "replace", "link", "sendfile", "fsync"):
            setattr(os, name, self.counted(getattr(os, name)))


class Written:
    """A file that is being written on a faulty disk."""

    def __init__(self, handle: Any, disk: Faulty) -> None:
        self._handle, self._disk = handle, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.close()

    def __iter__(self) -> Any:
        return iter(self._handle)

    def write(self, data: Any) -> int:
        self._disk()
        return int(self._handle.write(data))


def in_a_fork(folder: Path, do: Callable[[], None]) -> tuple[int, str]:
    """(exit code, what it said) of a command in a fork of this process."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.chdir(folder)
                os.dup2(said.fileno(), 2)
                sys.stderr = os.fdopen(2, "w", 1, closefd=False)
                do()
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read().decode()


def results(run: Path) -> dict[str, str]:
    """What the steps of a run made, without what tells times."""
    return {str(path.relative_to(run)): path.read_text() for path in sorted(run.glob("*/*.jsonl"))}


def test_a_disk_that_fails_at_any_write_of_a_run_is_one_line_and_the_same_command_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = ["run", "recipe.yaml", "--quiet"]
    writes = place / "writes"

    def counting() -> None:
        disk = Faulty(10**9, errno.EIO)
        disk.install(place)
        try:
            main(command)
        finally:
            os.write(os.open(writes, os.O_CREAT | os.O_WRONLY), str(disk.met).encode())

    assert in_a_fork(place, counting)[0] == 0
    whole, every = results(place / "runs/t"), int(writes.read_text())
    assert every > 30 and len(whole) >= 2
    for number in (errno.ENOSPC, errno.EIO):
        shutil.rmtree(place / "runs", ignore_errors=True)
        for allowed in (
            *range(number % 3, every, 1 if os.environ.get("OPENBEZOAR_EVERY_WRITE") else every // 3),
            every + 1,
        ):

            def failing(allowed: int = allowed, number: int = number) -> None:
                Faulty(allowed, number).install(place)
                main(command)

            code, said = in_a_fork(place, failing)
            lines = said.strip().splitlines()
            assert "Traceback" not in said and code == (0 if not lines or "openbezoar:" not in lines[-1] else 2), (
                allowed,
                said,
            )
            assert code == 0 or os.strerror(number) in lines[-1], (allowed, said)
            if allowed % 2 == 0:  # else the next try goes on with what this one left
                shutil.rmtree(place / "runs", ignore_errors=True)
        assert in_a_fork(place, lambda: main(command))[0] == 0
        assert results(place / "runs/t") == whole


@pytest.mark.parametrize("kilobytes", [24, 96])
def test_a_disk_that_is_really_full_is_one_line(kilobytes: int, place: Path) -> None:
    mounted = ["unshare", "-rm", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*mounted, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode
    ):
        pytest.skip("no file system can be mounted here, even in a namespace of its own")
    (place / "runs").mkdir()
    command = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs runs && exec {sys.executable} -m openbezoar run recipe.yaml --quiet"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*mounted, command], cwd=place, env=env, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and done.returncode in (0, 2)
    assert done.returncode == 0 or "No space left on device; make room" in done.stderr.splitlines()[-1]
    assert kilobytes > 24 or done.returncode == 2


def test_bars_that_no_thread_can_draw_end_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from openbezoar.progress import RichProgress

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    progress, done = RichProgress(), []
    for _ in range(2):
        with progress.step("1/1", "kept", "filter"), progress.bar("rows", 2, "rows") as bar:
            bar.advance(2)
            done.append(1)
        progress.ended("1/1", "kept", 1.0, "done")
    assert len(done) == 2


def test_no_thread_for_calls_side_by_side_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from openbezoar.llm.side_by_side import side_by_side

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError) as caught:
        side_by_side(3, lambda place, off: place, 2, name="far")
    assert "no further thread" in str(limits.refusal(caught.value))
