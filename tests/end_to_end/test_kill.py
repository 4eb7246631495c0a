"""kill -9 at chosen moments, then the same command: same data and adapter weights, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST

# Kills the process itself with SIGKILL at the n-th call of a function, before or after it runs.
KILLER = """
import importlib, os, signal, sys
module, name, count, when = sys.argv[1:5]
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, last), 0
def wrapped(*args, **kwargs):
    global calls
    calls += 1
    if when == "before" and calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if when == "after" and calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, last, wrapped)
from openbezoar.cli import main
main(sys.argv[5:])
"""

STEPS: dict[str, Any] = {
    "made": {"generate": "orca", "teacher": "base", "seeds": "flan.jsonl", "rows": 12, "batch": 4, "max_new_tokens": 12, "submixes": {"cot": 1}},
    "kept": {"filter": "made", "judge": "base", "mode": "probability", "min_rating": 1, "batch": 3,
             "rules": {"min_response_words": 0, "drop_unfinished": False, "drop_repetition": 1.0, "drop_echoes": False}},
    "sft": {"sft": ["rows.jsonl", "kept"], "model": "base", "epochs": 2, "save_every": 2, **FAST},
    "SFT": {"merge": "sft"},
    "dpo": {"dpo": "pairs.jsonl", "model": "SFT", "save_every": 2, **FAST},
    "DPO": {"merge": "dpo"},
}  # fmt: skip

# (step, module, function, which call, before or after it)
MOMENTS = [
    ("made", "openbezoar.llm.calls", "CallStore.keep", 2, "after"),  # a batch kept, not yet used
    ("made", "openbezoar.llm.local", "Local.generate", 2, "after"),  # a batch made, not yet written
    ("kept", "openbezoar.llm.local", "Local.choice_logprobs", 3, "before"),
    ("sft", "openbezoar.training.loop", "_step", 4, "before"),  # between two checkpoints
    ("sft", "openbezoar.training.resume", "State.save", 2, "before"),
    ("SFT", "openbezoar.training.load", "torch.Tensor.copy_", 3, "after"),  # inside a merge
    ("SFT", "openbezoar.runs", "RunFolder.publish", 1, "before"),
    ("dpo", "openbezoar.training.loop", "_step", 3, "after"),
    ("dpo", "openbezoar.runs", "write_json", 2, "after"),  # manifest written, not yet published
]


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    path = write_recipe(STEPS)
    tasks = [{"id": f"f{i}", "submix": "cot", "task": f"t{i % 3}", "input": f"What comes after {i}?", "target": f"{i + 1}"} for i in range(20)]
    (tmp_path / "flan.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))
    return path


def command(recipe: Path, runs: Path, to: str | None = None, killer: tuple[Any, ...] = ()) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", KILLER, *map(str, killer)] if killer else [sys.executable, "-m", "openbezoar"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["run", str(recipe), "--runs", str(runs), "--quiet", *(["--to", to] if to else [])]
    return subprocess.run([*start, *arguments], capture_output=True, text=True, env=environment, check=False)


def results(folder: Path) -> dict[str, bytes]:
    """What must be the same: data and weights."""
    names = ("rows.jsonl", "rejected.jsonl", "adapter_model.safetensors", "model.safetensors", "heldout.jsonl")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.name in names}


def test_a_step_killed_at_any_of_several_moments_ends_as_one_that_was_never_killed(recipe: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "t"
    done = command(recipe, whole.parent)
    assert done.returncode == 0, done.stderr

    def killed(number: int, step: str, *killer: Any) -> None:
        run = tmp_path / f"killed{number}" / "t"
        for earlier in list(STEPS)[: list(STEPS).index(step)]:
            shutil.copytree(whole / earlier, run / earlier)
        died = command(recipe, run.parent, step, tuple(killer))
        assert died.returncode == -signal.SIGKILL, f"{step} {killer} was never reached: {died.stderr}"
        again = command(recipe, run.parent, step)
        assert again.returncode == 0, again.stderr
        expected, found = results(whole / step), results(run / step)
        assert expected
        assert found == expected, (step, killer)
        assert not any((run / ".work").iterdir())

    with ThreadPoolExecutor(2) as two:  # each process takes one core
        for outcome in [two.submit(killed, number, *moment) for number, moment in enumerate(MOMENTS)]:
            outcome.result()


def test_a_changed_step_killed_while_it_replaces_the_old_result_is_replaced_all_the_same(recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert command(recipe, runs, "dpo").returncode == 0
    before = results(runs / "t")
    recipe.write_text(recipe.read_text().replace('"dpo": "pairs.jsonl",', '"dpo": "pairs.jsonl", "beta": 0.5,'))
    for function in ("RunFolder.publish", "shutil.rmtree"):
        killed = command(recipe, runs, "dpo", ("openbezoar.runs", function, 1, "before"))
        assert killed.returncode == -signal.SIGKILL
    assert command(recipe, runs, "dpo").returncode == 0
    after = results(runs / "t")
    changed = sorted(name for name in after if after[name] != before[name])
    assert changed and all(name.startswith("dpo/") for name in changed)
    assert json.loads((runs / "t/dpo/manifest.json").read_text())["numbers"]["beta"] == 0.5
