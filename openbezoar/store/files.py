"""Files written whole, seeds by use, and what a manifest says of the machine and its packages."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from openbezoar.machine import disk
from openbezoar.store.digests import MANIFEST as MANIFEST
from openbezoar.store.digests import digest as digest
from openbezoar.store.digests import file_digest as file_digest


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it into place; it is on the disk when this returns."""
    temporary = disk.temporary_of(path)
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as out:
        out.write(text)
    disk.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, under a temporary name that is then renamed."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def environment() -> dict[str, Any]:
    """Versions and machine, for a manifest. Imports nothing heavy."""
    packages = {}
    for package in ("torch", "transformers", "peft", "bitsandbytes", "lm_eval", "numpy", "safetensors"):
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "openbezoar": metadata.version("openbezoar") if _installed("openbezoar") else "source",
        "commit": _commit(),
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": packages,
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """The checkout's commit; None for an installed package, whose folder may lie in somebody else's repository."""
    if not (Path(__file__).parents[2] / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
