"""Parts of ``benchmarks.gpu`` that count: what the device is, what a pass copies, keeps and takes longest."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import machine
from benchmarks.gpu_models import (
    WITHIN,
    CannotRun,
    Found,
    Place,
    adapter,
    drawn_rows,
    our_model,
    product_rate,
)
from openbezoar.forest import Scorer
from openbezoar.forest.layout import lay_out
from openbezoar.recipe.blocks import Shape
from openbezoar.recipe.train_steps import Sft


def device(place: Place) -> Found:
    """What the machine is and what it reaches."""
    found = Found(numbers=machine())
    if place.on_gpu:
        about = torch.cuda.get_device_properties(0)
        free_bytes, total = torch.cuda.mem_get_info()
        found.numbers |= {
            "name": about.name,
            "capability": f"{about.major}.{about.minor}",
            "processors": about.multi_processor_count,
            "bytes": total,
            "free_bytes": free_bytes,
            "cuda": torch.version.cuda,
            "gpus": torch.cuda.device_count(),
        }
    else:
        found.numbers["name"] = "cpu"
    dtypes = [torch.float32, *([place.dtype, torch.float16] if place.on_gpu else [])]
    for dtype in dict.fromkeys(dtypes):
        for rows in (1024, 2048, 8192):
            rate = product_rate(place, rows, dtype)
            found.rows.append({"setting": {"rows": rows, "dtype": str(dtype)}, "tflops": rate / 1e12})
            found.holds(f"product of {rows} rows in {dtype}", math.isfinite(rate) and rate > 0)
    n = (1 << 20) if place.tiny else (1 << 28)
    source = torch.empty(n, dtype=torch.uint8, device=place.device).fill_(7)
    copy = torch.empty_like(source)
    seconds = min(place.times(lambda: copy.copy_(source)))
    found.numbers["copy_gb_per_second"] = 2 * n / seconds / 1e9
    found.holds("copy", bool(torch.equal(copy, source)))
    one = torch.ones(1, device=place.device)
    launches = 20 if place.tiny else 2000

    def launch() -> None:
        for _ in range(launches):
            one.add_(0)

    found.numbers["launch_us"] = 1e6 * min(place.times(launch)) / launches
    return found


class _Crossings(TorchFunctionMode):
    """Counts calls that, on a GPU, copy between host and device or wait for it, by the line that made them."""

    WAITS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "nonzero")

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.by_place: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        made = name == "tensor" and torch.device(kwargs.get("device") or "cpu").type == self.device.type
        if made and (self.device.type != "cpu" or kwargs.get("device") is not None):
            self._count("made on the host")
        elif name == "to" and any(isinstance(x, torch.device) for x in (*args[1:], *kwargs.values())):
            if args[0].device != self.device or self.device.type == "cpu":
                self._count("moved")
        elif name in self.WAITS and (not args or args[0].device == self.device):
            self._count(f"waits ({name})")
        return func(*args, **kwargs)

    def _count(self, what: str) -> None:
        frame: Any = sys._getframe(2)
        while frame is not None and "openbezoar" not in frame.f_code.co_filename.replace("\\", "/").split("/"):
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else "elsewhere"
        self.by_place[f"{where} {what}"] += 1


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators, a view's too."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def kept_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Filled with the bytes of distinct storages that autograd keeps in the block, but for the model's own."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other takes its address
        return tensor

    found: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
    found.append(sum(size for size, _ in kept.values()))


def counters(place: Place) -> Found:
    """Of one warm pass: copies and waits, operators, what it keeps for its backward pass, its peak."""
    from openbezoar.models.memory import activations_of_a_layer
    from openbezoar.training.objectives import sft_objective

    found, shape, tokens = Found(), place.timed, 256 if place.tiny else 2048
    model = our_model(shape, place, place.dtype, dropout=0.05).train()
    scorer = Scorer(model, tokens)
    trees = drawn_rows(64, place, longest=60 if place.tiny else 512)
    objective = sft_objective(scorer, trees)
    chosen = [trees[i] for i in scorer.batches(trees)[0]]

    def loss() -> Tensor:
        return objective.loss(chosen, 100.0)[0]

    def whole() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    whole()  # the self-check and the kernels' set-up
    with _Crossings(place.device) as crossings:
        whole()
    found.numbers["crossings"] = dict(crossings.by_place.most_common())
    n = sum(crossings.by_place.values())
    found.numbers["crossings_a_pass"] = n
    found.at_most("crossings a pass", n, 16 + len(chosen))
    found.target("crossings a pass", n, n <= 1, "at most 1")
    if place.on_gpu:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            whole()
        torch.cuda.set_sync_debug_mode("default")
        found.numbers["synchronisations"] = sum("synchroniz" in str(one.message) for one in told)
    operators = _Operators()  # type: ignore[no-untyped-call]
    with operators:
        value = loss()
    found.numbers["operators_forward"] = operators.n
    del value
    n_row = len(lay_out(chosen, place.device).ids)
    step = Sft(sft="x", model="m", lora=adapter(0.05), quantize="none", tokens=max(64, n_row), checkpointing=False)
    known = Shape(**shape)
    width = torch.empty(0, dtype=place.dtype).element_size()
    estimate = shape["layers"] * n_row * activations_of_a_layer(known, step, width)
    with kept_bytes(model) as kept:
        value = loss()
    del value
    found.numbers |= {"tokens": n_row, "kept_bytes": kept[0], "kept_estimate": estimate}
    # In so small a model the row's own tensors and the head's count beside the layers'.
    ratio = kept[0] / estimate
    found.numbers["kept_over_estimate"] = ratio
    found.at_most("kept for the backward pass: off the estimate", abs(ratio - 1), 0.5 if place.tiny else WITHIN)
    before = torch.cuda.memory_allocated() if place.on_gpu else 0
    peak = place.peak(whole)
    if peak is not None:
        found.numbers |= {"before_bytes": before, "peak_bytes": peak}
        over = (peak - before) / estimate
        found.numbers["peak_over_estimate_of_kept"] = over
        found.at_most("peak above the weights: over what layers keep", over, 1.5)
        host = _host_seconds(place, whole)
        device_seconds = statistics.median(place.times(whole))
        found.numbers |= {"host_ms": 1e3 * host, "pass_ms": 1e3 * device_seconds}
    return found


def _host_seconds(place: Place, what: Callable[[], object]) -> float:
    """Until the last launch: the host's own time for a pass."""
    place.wait()
    begun = time.perf_counter()
    what()
    seconds = time.perf_counter() - begun
    place.wait()
    return seconds


def profile(place: Place) -> Found:
    """The longest operators of one pass."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    from openbezoar.training.objectives import sft_objective

    found = Found()
    scorer = Scorer(our_model(place.timed, place, place.dtype, dropout=0.05).train(), 256 if place.tiny else 4096)
    trees = drawn_rows(64, place, longest=60 if place.tiny else 512)
    objective = sft_objective(scorer, trees)
    chosen = [trees[i] for i in scorer.batches(trees)[0]]

    def whole() -> None:
        objective.loss(chosen, 100.0)[0].backward()  # type: ignore[no-untyped-call]
        scorer.model.zero_grad(set_to_none=True)

    whole()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.on_gpu else [])]
    with record(activities=kinds) as recorded:
        whole()
        place.wait()

    def own(event: Any) -> float:
        return float(event.self_device_time_total if place.on_gpu else event.self_cpu_time_total)

    events = sorted(recorded.key_averages(), key=own, reverse=True)
    total = sum(map(own, events))
    found.rows = [
        {"setting": {"operator": event.key[:120]}, "calls": event.count, "us": own(event), "share": own(event) / total}
        for event in events[:20]
    ]
    found.numbers["total_us"] = total
    found.holds("something was recorded", total > 0 and any("mm" in event.key for event in events))
    return found


def tests(place: Place) -> Found:
    """The repository's own tests for a GPU; tiny: one of them."""
    if find_spec("pytest") is None:
        raise CannotRun("pytest is not installed")
    found = Found()
    chosen = ["-k", "crosses_once and sft and llama"] if place.tiny else ["-m", "slow or not slow"]
    done = subprocess.run(
        # Without -q: the project's own options have one, and two leave out the line that is read here.
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "tests/test_gpu.py",
            "tests/test_crossings.py",
            *chosen,
        ],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    counted = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)}
    found.numbers |= {**counted, "tail": done.stdout.strip().splitlines()[-6:]}
    found.holds("all pass", done.returncode == 0 and counted.get("passed", 0) > 0)
    return found
