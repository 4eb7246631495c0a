"""What the driver says of the machine's GPUs: which there are, and who holds memory on them. Asks ``nvidia-smi``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection


def visible_gpus() -> list[str]:
    """Numbers or UUIDs of the GPUs that CUDA_VISIBLE_DEVICES leaves, all of them where it is not set."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [part.strip() for part in stated.split(",") if part.strip() not in ("", "-1")]
    return [line for line in _asked("--query-gpu=index") if line.isdigit()]


def holding(pids: Collection[int]) -> list[int]:
    """Those of these processes that the driver counts memory for; none where there is no driver."""
    if not pids:
        return []
    holders = {int(line) for line in _asked("--query-compute-apps=pid") if line.isdigit()}
    return [pid for pid in pids if pid in holders]


def _asked(query: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
