"""What all benchmarks share: worker processes, their order, memory, the matmul rate, the result's file.

Every measurement is a process of its own: it loads, runs once, and prints one JSON line. The
two sides take turns (A B A B), so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from openbezoar.errors import UserError

MARK = "benchmark-result: "
REQUIRED = ("benchmark", "ours", "peer", "ratio", "memory_ratio", "same")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "lm_eval", "openbezoar")
TOLERANCE = 1e-3  # in fp32, of the check that both sides computed the same thing: losses, norms relatively
# In fp32, nats a token of an answer's log-probability. Sums of long answers add up what each token is off by:
# ours, through torch's log_softmax, was seen 9e-6 a token from fp64.
TOLERANCE_A_TOKEN = 5e-5
FOREIGN = 0.05  # share of the cores that other work may have taken from a measurement
Spec = dict[str, Any]


class BenchmarkError(UserError):
    """A benchmark cannot be run, or one of its workers failed."""


# ------------------------------------------------------------------------------ processes


def answer(value: Mapping[str, Any]) -> None:
    """Print a worker's result as the line that ``run_worker`` looks for."""
    print(MARK + json.dumps(value), flush=True)


def run_worker(module: str, spec: Spec) -> dict[str, Any]:
    """Run ``python -m module --worker SPEC`` and return what it answered, with ``foreign_share`` (see ``Beside``).

    Raises BenchmarkError with the end of its stderr when it dies or answers nothing.
    """
    beside = Beside()
    done = subprocess.run(
        [sys.executable, "-m", module, "--worker", json.dumps(spec)], capture_output=True, text=True, check=False
    )
    foreign = beside.share()
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        tail = " | ".join(done.stderr.strip().splitlines()[-4:]) or "nothing on stderr"
        raise BenchmarkError(
            f"{module}: the worker {spec.get('side', '')} {spec.get('what', '')} ended with code {done.returncode}:"
            f" {tail}"
        )
    result: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    return {**result, "foreign_share": foreign}


def alternate(sides: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, side): every side once in each round, in the same order."""
    for number in range(rounds):
        for side in sides:
            yield number, side


def say(text: str) -> None:
    """One line of news on stderr, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------- measurements


def resident_peak(process: int | None = None) -> int:
    """Greatest resident memory of this process (or of another, by its number) so far, in bytes.

    Linux's VmHWM; ``getrusage`` elsewhere. (On Linux getrusage also counts what the process
    that started this one held before the exec.)
    """
    status = Path(f"/proc/{process or 'self'}/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory() -> int:
    """Peak of the memory that limits: the GPU's allocated bytes where there is one, else resident memory."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else resident_peak()


class Stopwatch:
    """Seconds of a ``with`` block, the device's queue emptied at both ends. cpu: of all threads of the process."""

    seconds = cpu = 0.0

    def __enter__(self) -> Stopwatch:
        _synchronize()
        self.begun, self.cpu_begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        _synchronize()
        self.seconds, self.cpu = time.perf_counter() - self.begun, time.process_time() - self.cpu_begun


class Beside:
    """What ran beside this process and its children since it was made: by all cores' busy time, less theirs.

    A hypervisor's other guests count too. Linux alone tells.
    """

    def __init__(self) -> None:
        self.begun, self.busy, self.own = time.perf_counter(), _busy(), _own()

    def share(self) -> float | None:
        """Share of all cores' time, 0 to 1; to be asked once the children have ended. None where nothing tells."""
        now = _busy()
        if now is None or self.busy is None:
            return None
        whole = (time.perf_counter() - self.begun) * (os.cpu_count() or 1)
        return max(0.0, (now - self.busy - (_own() - self.own)) / whole)


def _busy() -> float | None:
    """Seconds that all cores together have been busy, or were kept from this machine, since it started."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(value) for value in first[1:9])
    return float(user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def disturbed(measurement: Mapping[str, Any]) -> bool:
    """Whether other work took a part of the machine that counts. What was not sampled is not known to be."""
    return (measurement.get("foreign_share") or 0.0) > FOREIGN


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(dtype: str, size: int = 2048, repeats: int = 7) -> float:
    """FLOP/s of this machine at a square matrix product: the best of ``repeats`` after a warm-up."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    best = float("inf")
    for _ in range(repeats + 1):
        with Stopwatch() as watch:
            a @ a
        best = min(best, watch.seconds)
    return float(2 * size**3 / best)


def linear_parameters(model: Any) -> tuple[int, int]:
    """(parameters of the trunk's linear layers, parameters of the vocabulary head); adapters do not count."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    trunk = sum(
        layer.in_features * layer.out_features
        for name, layer in base.model.named_modules()
        if hasattr(layer, "in_features") and not hasattr(layer, "base_layer") and "lora_" not in name
    )
    return trunk, head.in_features * head.out_features


def spread(values: Sequence[float]) -> dict[str, float]:
    """{median, min, max} of one quantity over the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, threads, device, load before the run, versions."""
    import torch

    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def require_peers(*names: str) -> None:
    """Raise BenchmarkError if a peer is not installed."""
    for name in names:
        if _version(name) is None:
            raise BenchmarkError(f"'{name}' is not installed; the peers are an extra: pip install 'openbezoar[bench]'")


# ------------------------------------------------------------------------------- comparing


def close(ours: float, peer: float, relative: bool = False) -> bool:
    """Within 1e-3: absolute for losses, which are means over tokens or pairs, relative for gradient norms."""
    return abs(ours - peer) <= TOLERANCE * (abs(peer) if relative else 1.0)


def close_sums(ours: float, peer: float, tokens: int) -> bool:
    """Whether two sums of so many tokens' log-probabilities are the same, to a token's tolerance."""
    return abs(ours - peer) <= TOLERANCE_A_TOKEN * tokens


def nearer(
    ours: Sequence[float], peer: Sequence[float], exact: Sequence[float], tokens: Sequence[int]
) -> dict[str, Any]:
    """How far both sides' log-probabilities in fp32 are from those in fp64, in nats a token (root mean square), and
    which side is nearer.
    """

    def off(side: Sequence[float]) -> float:
        squares = [((a - b) / n) ** 2 for a, b, n in zip(side, exact, tokens, strict=True)]
        return float(statistics.fmean(squares) ** 0.5)

    mine, theirs = off(ours), off(peer)
    return {"items": len(exact), "ours": mine, "peer": theirs, "nearer": "ours" if mine <= theirs else "peer"}


def compare(ours: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rounds of both sides → seconds and peaks as spreads, ratio (peer's time over ours),
    memory_ratio (ours over peer's).
    """
    times = [[float(m["seconds"]) for m in side] for side in (ours, peer)]
    peaks = [[float(m["peak_memory"]) for m in side] for side in (ours, peer)]
    cpu = [[float(m["cpu_seconds"]) for m in side if "cpu_seconds" in m] for side in (ours, peer)]
    paired = [b / a for a, b in zip(*times, strict=True)]
    shares = [m["foreign_share"] for side in (ours, peer) for m in side if m.get("foreign_share") is not None]
    sides = [
        {"seconds": spread(t), "peak_memory": spread(p)} | ({"cpu_seconds": spread(c)} if c else {})
        for t, p, c in zip(times, peaks, cpu, strict=True)
    ]
    return {
        "ours": sides[0],
        "peer": sides[1],
        "foreign_share": max(shares, default=None),
        "ratio": statistics.median(times[1]) / statistics.median(times[0]),
        "ratio_by_round": {"min": min(paired), "max": max(paired)},
        "memory_ratio": statistics.median(peaks[0]) / statistics.median(peaks[1]),
    }


def headline(name: str, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that every result has: seconds of both sides and ratio of the arm with the worse ratio.

    memory_ratio is the worst of the arms; ``same`` holds if it held in every arm, and ``finished`` if every arm's
    searches came to their end; ``foreign_share`` is the worst.
    """
    worst = min(arms, key=lambda arm: arms[arm]["ratio"])
    return {
        "benchmark": name,
        "ours": arms[worst]["ours"]["seconds"]["median"],
        "peer": arms[worst]["peer"]["seconds"]["median"],
        "ratio": arms[worst]["ratio"],
        "memory_ratio": max(arm["memory_ratio"] for arm in arms.values()),
        "same": all(arm["same"] for arm in arms.values()),
        "finished": all(arm.get("finished", True) for arm in arms.values()),
        "foreign_share": max(
            (a["foreign_share"] for a in arms.values() if a.get("foreign_share") is not None), default=None
        ),
        "worst_arm": worst,
    }


# --------------------------------------------------------------------------- command line


def parser(name: str, about: str, n: int, n_help: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    made.add_argument("--model", help="folder, org/name on the hub, pypi:NAME or .gguf file")
    made.add_argument("--data", type=Path, help="rows in the plain schemas of docs/data.md")
    made.add_argument("--n", type=int, default=n, help=f"{n_help} (default {n})")
    made.add_argument("--json", type=Path, help="where the result is written")
    made.add_argument("--rounds", type=int, default=2, help="times that each side is measured, in turn (default 2)")
    made.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="the most that the search for the peer's best setting may take (default: until it is finished)",
    )
    made.add_argument(
        "--micro",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16],
        help="the peer's micro-batches to search (default 1 2 4 8 16)",
    )
    made.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return made


def main(
    arguments: argparse.ArgumentParser,
    work: Callable[[Spec], dict[str, Any]],
    run: Callable[[argparse.Namespace], dict[str, Any]],
) -> int:
    """Answer as a worker, or run the whole benchmark and write its result; 2 for a user's mistake."""
    options = arguments.parse_args()
    if options.worker is not None:
        answer(work(options.worker))
        return 0
    try:
        for name in ("model", "data", "json"):
            if getattr(options, name) is None:
                raise BenchmarkError(f"--{name} is missing; see --help")
        if options.n < 1 or options.rounds < 1 or min(options.micro) < 1:
            raise BenchmarkError("--n, --rounds and --micro must be at least 1")
        write(options.json, run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result and say its headline."""
    missing = [name for name in REQUIRED if name not in result]
    assert not missing, missing
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    doubts = doubts_of(result)
    speed = f"no ratio ({doubts})" if doubts else f"{result['ratio']:.2f} times as fast as the peer"
    say(
        f"{result['benchmark']}: {speed}, {result['memory_ratio']:.2f} of its memory, same result: {result['same']}"
        f" → {path}"
    )


def doubts_of(result: Mapping[str, Any]) -> str:
    """Why a result's times stand for nothing; empty: they do."""
    found = []
    if not result.get("finished", True):
        found.append("the search for the peer's best setting is not finished")
    if disturbed(result):
        found.append(f"other work took {100 * result['foreign_share']:.0f} % of the cores")
    return "; ".join(found)
