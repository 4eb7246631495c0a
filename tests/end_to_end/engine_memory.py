"""What a run's engine holds of main memory, looked at from without, and from the run's own process where it matters.

Run as ``engine_memory.py OUT ARGUMENTS`` it is the command line with these arguments, and writes into OUT a line
{"moment", "engine", "own"} when weights are first loaded into this process ("loading") and at the first optimiser
step ("first step"). The engine is ``recorded_engine.py``, whose folder $RECORDED_ENGINE names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def proportional(pid: int) -> int:
    """Bytes of main memory that a process holds, pages shared with n others counted as an n-th; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def held_by_engines() -> dict[int, int]:
    """Bytes by process, of all that were started as this test's engine: those of its sessions. A process that has
    written its title over its environment, as vLLM's have, is one of them too.
    """
    sessions = {int(file.read_text()) for file in Path(os.environ["RECORDED_ENGINE"]).glob("session-*")}
    found = {}
    for place in Path("/proc").iterdir():
        try:
            state, *numbers = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
        except OSError:
            continue  # no process, or gone
        if state != "Z" and int(numbers[2]) in sessions:
            found[int(place.name)] = proportional(int(place.name))
    return found


def main() -> None:
    """The command line, looked at."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    from transformers import AutoModelForCausalLM

    from openbezoar.cli.app import main as command

    out, seen = Path(sys.argv.pop(1)), set()

    def note(moment: str) -> None:
        if moment not in seen:
            seen.add(moment)
            line = {"moment": moment, "engine": held_by_engines(), "own": proportional(os.getpid())}
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def load(*given: Any, **more: Any) -> Any:
        note("loading")
        return from_pretrained(*given, **more)

    from_pretrained, AutoModelForCausalLM.from_pretrained = AutoModelForCausalLM.from_pretrained, load
    register_optimizer_step_pre_hook(lambda *_: note("first step"))
    command()


if __name__ == "__main__":
    main()
