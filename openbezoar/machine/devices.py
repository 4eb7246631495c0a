"""The device that a recipe runs on, or would run on: its name, its memory, its arithmetic.

Reads /proc/meminfo and /proc/cpuinfo and asks the driver's ``nvidia-smi``; writes nothing and imports no torch,
so that ``plan`` can use it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from openbezoar.errors import UserError

# The driver's file stands for a GPU that torch will find.
GPU = Path("/dev/nvidiactl")
Dtype = Literal["bfloat16", "float16", "float32"]
BFLOAT16_FROM = 8.0  # compute capability of the first GPUs with bfloat16 arithmetic


@dataclass(frozen=True)
class Device:
    """Where models are held. bytes: of its memory, for a CPU what is free; None if it cannot be told.

    here: it is this machine's, so that times measured here hold. bfloat16: it multiplies in it. count: of cards
    alike, each with so many bytes, which train together.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    bytes: int | None
    here: bool = False
    bfloat16: bool = True
    count: int = 1

    @property
    def card(self) -> str:
        """The name of one of its cards."""
        return self.name.partition(" × ")[2] or self.name

    def arithmetic(self, dtype: Dtype) -> Dtype:
        """What weights of ``dtype`` are held and multiplied in: a CPU without bfloat16 products takes
        fp32, with which the same values are 6 to 200 times as fast there.
        """
        return "float32" if dtype == "bfloat16" and self.kind == "cpu" and not self.bfloat16 else dtype

    def width(self, dtype: Dtype) -> int:
        """Bytes of a weight of ``dtype`` as it is held."""
        return 4 if self.arithmetic(dtype) == "float32" else 2


# By the makers' data sheets; the driver keeps a few hundredths of it.
CARDS = {
    "t4": Device("cuda", "T4", 15_360 << 20, bfloat16=False),
    "rtx3060": Device("cuda", "RTX 3060", 12_288 << 20),
    "rtx3090": Device("cuda", "RTX 3090", 24_576 << 20),
    "rtx4090": Device("cuda", "RTX 4090", 24_576 << 20),
    "a100": Device("cuda", "A100", 40_960 << 20),
    "a100-80gb": Device("cuda", "A100 80 GB", 81_920 << 20),
    "h100": Device("cuda", "H100", 81_920 << 20),
}


def device_named(text: str) -> Device:
    """A device by a card's name, or as ``cpu``, ``cpu:16GB``, ``cuda``, ``cuda:16GB``. Raises
    UserError for another text. ``2xt4``: two of a card.
    """
    key = text.strip().lower().replace(" ", "").replace("_", "-")
    if key in CARDS:
        return CARDS[key]
    several = re.fullmatch(r"([2-8])x(.+)", key)
    if several is not None and several[2] in CARDS:
        card = CARDS[several[2]]
        return replace(card, name=f"{several[1]} × {card.name}", count=int(several[1]))
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+(?:\.\d+)?)(gb|gib)?)?", key)
    if match is None or (match[2] and float(match[2]) <= 0):
        raise UserError(
            f"--device {text}: no such device; expected cpu, cpu:16GB, cuda:16GB, one of {', '.join(CARDS)}, or"
            " several of them as 2xt4"
        )
    kind: Literal["cpu", "cuda"] = "cuda" if match[1] == "cuda" else "cpu"
    if match[2]:
        return Device(kind, f"{kind} with {match[2]} GB", int(float(match[2]) * (2**30 if match[3] == "gib" else 1e9)))
    if kind == "cpu":
        return _cpu()
    here = this_device()
    if here.kind == "cpu":
        raise UserError(
            f"--device {text}: this machine has no GPU; say how much memory it has, such as cuda:16GB, or name one of"
            f" {', '.join(CARDS)}"
        )
    return here


def this_device() -> Device:
    """What this machine computes on: the first GPU that CUDA_VISIBLE_DEVICES leaves if there is
    one, else its CPU with the memory that is free now.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not GPU.exists() or first in ("", "-1"):
        return _cpu()
    return _gpu(first)


def _cpu() -> Device:
    return Device("cpu", f"CPU, {os.cpu_count()} cores", free_bytes(), here=True, bfloat16=cpu_has_bfloat16())


@cache
def cpu_has_bfloat16(told: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether oneDNN, torch's library of CPU kernels, multiplies bfloat16 here: from AVX-512 on, or with
    AVX-NE-CONVERT, or on an ARM with bf16. Without Linux's /proc nothing says so, and fp32 serves.
    """
    try:
        lines = told.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next(
        (set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set()
    )
    return {"avx512bw", "avx512vl", "avx512dq"} <= flags or "avx_ne_convert" in flags or "bf16" in flags


@cache
def _gpu(which: str = "0") -> Device:
    """The GPU that the driver has under a number or UUID; without nvidia-smi one of unknown memory."""
    query = [
        "nvidia-smi",
        f"--id={which}",
        "--query-gpu=name,memory.total,compute_cap",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        name, mebibytes, capability = (part.strip() for part in done.stdout.splitlines()[0].split(","))
        return Device("cuda", name, int(mebibytes) << 20, here=True, bfloat16=float(capability) >= BFLOAT16_FROM)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return Device("cuda", "GPU of unknown memory", None, here=True)


def free_bytes() -> int:
    """Bytes of main memory that can be allocated without swapping; without Linux's /proc, half of all memory."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def memory_in_use() -> dict[str, int]:
    """Bytes that this process holds: 'resident' in main memory, 'GPU' and 'GPU, most so far' where torch has one."""
    held: dict[str, int] = {}
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        held["resident"] = pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    torch = sys.modules.get("torch")  # which is not imported for this
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        held |= {"GPU": torch.cuda.memory_allocated(), "GPU, most so far": torch.cuda.max_memory_allocated()}
    return held
