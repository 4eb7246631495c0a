"""As a library the package leaves the process that imports it as it was: loggers' levels, filters of
warnings, the environment, the random state, progress bars, the heap. The command line's process is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BEFORE = """
import json, logging, os, sys, warnings
import bitsandbytes, lm_eval.api.task, lm_eval.evaluator, peft, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

def state():
    loggers = [logging.getLogger(), *(l for l in logging.Logger.manager.loggerDict.values() if hasattr(l, "level"))]
    return {
        "levels": {l.name: l.level for l in loggers if l.level and not l.name.startswith("openbezoar")},
        "handlers": len(logging.getLogger().handlers),
        "filters": [str(one) for one in warnings.filters],
        "environment": dict(os.environ),
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "random": torch.random.get_rng_state().sum().item(),
        "hooks": [str(sys.excepthook), str(sys.displayhook)],
    }

AutoTokenizer.from_pretrained(sys.argv[1])
AutoModelForCausalLM.from_pretrained(sys.argv[1])
before = state()
"""
AFTER = """
print(json.dumps([before, state()]))
"""
USE = """
import openbezoar as ob
ob.ForestLM, ob.sft
model = ob.load(sys.argv[1])
assert model.logprobs("Hello", ["a", "b"])[0] < 0
model.chat("Hello", max_new_tokens=2)
"""


def states(use: str, *arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a process was like before and after it used the package."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + use + AFTER, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after


@pytest.mark.slow
def test_a_process_that_uses_the_library_is_as_it_was(tiny: Path) -> None:
    before, after = states(USE, tiny)
    assert after == before


def test_the_heap_is_told_something_on_the_command_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from openbezoar.cli import process
    from openbezoar.machine import heap

    opened: list[str | None] = []

    class Libc:
        def __init__(self, name: str | None) -> None:
            opened.append(name)

    monkeypatch.setattr(heap.ctypes, "CDLL", Libc)
    monkeypatch.setattr(heap, "_managed", False)
    heap.keep_freed_blocks()
    heap.give_back_large_blocks()
    assert opened == []
    process.own()
    heap.keep_freed_blocks()
    heap.give_back_large_blocks()
    assert len(opened) == (2 if sys.platform == "linux" else 0)
