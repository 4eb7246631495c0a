"""The first minutes on a GPU: what works there and how fast it is. ``python -m benchmarks.gpu --minutes 9 --json OUT``.

Parts in the order of their worth, each a process of its own with a limit, so that one that fails, hangs or runs out
of memory costs the others nothing. Each prints one JSON line as soon as it has ended, and OUT is written again then:
what was learnt before the minutes were over is there. A part whose estimate does not fit into the time left is
skipped and named. Reads nothing but this repository: models are random, rows are drawn from a seed; no network.

``--device cpu --tiny`` runs the same parts on very small models, so that the minutes on a GPU test the GPU and not
this program. ``ok`` of a part is whether its numbers are right (null: it cannot run here, ``why`` says for what);
``targets`` are speeds and counts that are aimed at, and say nothing about what is right.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from benchmarks.common import MARK, say

ROOT = Path(__file__).parent.parent
RESERVE = 5.0  # seconds kept for the last file


@dataclass(frozen=True)
class Part:
    """One part. seconds: what it takes on a large GPU, by a rough estimate; limit: seconds after which it is ended."""

    name: str
    seconds: float
    limit: float
    proves: str


PARTS = (
    Part("device", 25, 60, "names, versions, matrix products, copies, launches"),
    Part("equal", 40, 120, "forest against plain passes, recomputation, float16 with scaling, DPO's first loss"),
    Part("attention", 60, 150, "each way of attention against fp64: values, gradients, compilations"),
    Part("nf4", 20, 60, "NF4's products, values and gradients against its unpacked weights"),
    Part("resume", 25, 90, "killed in a step and run again: the same losses; a checkpoint's values bit for bit"),
    Part("counters", 30, 90, "copies and waits of a pass, operators, peak memory against the estimate"),
    Part("sft", 100, 180, "tokens a second against a plain loop, by tokens of a pass and recomputation"),
    Part("dpo", 50, 120, "pairs a second against a plain loop"),
    Part("score", 40, 120, "few-shot answers a second against padded batches"),
    Part("generate", 40, 120, "tokens a second against transformers' own loop"),
    Part("profile", 20, 60, "the longest operators of a pass"),
    Part("tests", 60, 150, "tests/test_gpu.py and test_crossings.py"),
)


def run_part(part: Part, device: str, tiny: bool, limit: float) -> dict[str, Any]:
    """A part's line: name, seconds, ok, why, numbers, rows, targets. Never raises for what the part does."""
    begun = time.monotonic()
    given = json.dumps({"part": part.name, "device": device, "tiny": tiny})
    ended = (_forked if device == "cpu" else _started)(given, limit)
    lines = [line for line in ended.out.splitlines() if line.startswith(MARK)]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK)) if lines else {}
    if ended.code is None:
        found |= {"ok": False, "why": f"not done in {limit:.0f} s"}
    elif not lines:
        tail = " | ".join(ended.err.strip().splitlines()[-3:])[-600:]
        found = {"ok": False, "why": f"ended with code {ended.code}: {tail or 'no word'}"}
    return {"name": part.name, "seconds": round(time.monotonic() - begun, 1), "proves": part.proves, **found}


class _Ended(NamedTuple):
    """How a part's process ended: its exit code, None where it had to be ended; what it wrote."""

    code: int | None
    out: str
    err: str


def _started(given: str, limit: float) -> _Ended:
    """A part in a new interpreter: a fork could not share a GPU."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_parts", given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=ROOT,
        start_new_session=True,  # so that what it starts can be ended with it
    )
    try:
        out, err = worker.communicate(timeout=limit)
        return _Ended(worker.returncode, out, err)
    except subprocess.TimeoutExpired:
        os.killpg(worker.pid, signal.SIGKILL)
        return _Ended(None, *worker.communicate())


def _forked(given: str, limit: float) -> _Ended:
    """A part in a fork of this process, which has imported what all need; it has run nothing of torch itself."""
    from benchmarks import gpu_parts

    gpu_parts.warm()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        child = os.fork()
        if child == 0:
            _part_in_fork(given, out.fileno(), err.fileno())
        end, done, status = time.monotonic() + limit, 0, 0
        while not done and time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
        if not done:
            with contextlib.suppress(ProcessLookupError):  # it has not made its session yet
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return _Ended(os.waitstatus_to_exitcode(status) if done else None, out.read(), err.read())


def _part_in_fork(given: str, out: int, err: int) -> NoReturn:
    """The child's life."""
    from benchmarks import gpu_parts

    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115  to the end
    code = 1
    try:
        gpu_parts.main(given)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def summary(parts: Sequence[Mapping[str, Any]], skipped: Sequence[str], commit: str | None) -> dict[str, Any]:
    """The whole result. verdict: ``correct`` if no part is wrong and none was skipped, ``fast`` if all targets are met;
    null where nothing was found that says so.
    """
    known = [part["ok"] for part in parts if part["ok"] is not None]
    targets = [target["met"] for part in parts for target in part.get("targets", {}).values()]
    device: Mapping[str, Any] = next((part.get("numbers", {}) for part in parts if part["name"] == "device"), {})
    return {
        "schema": 1,
        "benchmark": "gpu",
        "commit": commit,
        "device": device,
        "parts": list(parts),
        "verdict": {
            "correct": False if False in known else None if skipped or not known else True,
            "fast": all(targets) if targets else None,
        },
        "skipped": list(skipped),
    }


def _commit() -> str | None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None


def run_all(parts: Sequence[Part], device: str, tiny: bool, minutes: float, out: Path) -> dict[str, Any]:
    """Run the parts that fit into the minutes, telling each at once; the result as it was last written."""
    end = time.monotonic() + 60 * minutes - RESERVE
    done: list[dict[str, Any]] = []
    skipped: list[str] = []
    commit = _commit()
    result = summary(done, skipped, commit)
    for part in parts:
        left = end - time.monotonic()
        if left < (1 if tiny else part.seconds):
            skipped.append(part.name)
            say(f"{part.name}: skipped, {max(left, 0):.0f} s are left")
        else:
            # a rehearsal is not judged by its time
            done.append(run_part(part, device, tiny, left if tiny else min(part.limit, left)))
            print(json.dumps(done[-1]), flush=True)
        result = summary(done, skipped, commit)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every part that could run is right, 1 if one is not, 2 for a mistake in the arguments."""
    names = [part.name for part in PARTS]
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n\n")[0])
    made.add_argument("--minutes", type=float, default=9.0, help="all that it may take (default 9)")
    made.add_argument("--json", type=Path, required=True, help="where the result is written")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default cuda)")
    made.add_argument("--tiny", action="store_true", help="very small models: to test this program, not the device")
    made.add_argument("--only", nargs="+", choices=names, default=names, help="these parts alone")
    options = made.parse_args(arguments)
    if not options.minutes > 0:
        made.error("--minutes must be above 0")
    chosen = [part for part in PARTS if part.name in options.only]
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = run_all(chosen, options.device, options.tiny, options.minutes, options.json)
    wrong = [part["name"] for part in result["parts"] if part["ok"] is False]
    say(f"{'wrong: ' + ', '.join(wrong) if wrong else 'nothing wrong'}; {result['verdict']} -> {options.json}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
