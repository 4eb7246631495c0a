"""kill -9 at chosen moments, then the same command: same data and adapter weights, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
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

MOMENTS = [
    ("openbezoar.runs", "os.fsync", 3, "before"),  # in a journal: a batch written, not yet synced
    ("openbezoar.llm.local", "Local.generate", 2, "after"),  # a batch made, not yet written
    ("openbezoar.llm.local", "Local.choice_logprobs", 3, "before"),  # inside the filter
    ("openbezoar.training.loop", "_step", 4, "before"),  # between two checkpoints
    ("openbezoar.training.loop", "_step", 8, "after"),
    ("openbezoar.training.loop", "_save", 2, "before"),
    ("openbezoar.training.load", "merge_into", 1, "after"),  # inside a merge
    ("openbezoar.runs", "write_json", 4, "after"),  # manifest written, not yet published
    ("openbezoar.runs", "RunFolder.publish", 5, "before"),
    ("openbezoar.runs", "shutil.rmtree", 1, "before"),
]


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    path = write_recipe(STEPS)
    tasks = [{"id": f"f{i}", "submix": "cot", "task": f"t{i % 3}", "input": f"What comes after {i}?", "target": f"{i + 1}"} for i in range(20)]
    (tmp_path / "flan.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))
    return path


def command(recipe: Path, runs: Path, *killer: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", KILLER, *killer] if killer else [sys.executable, "-m", "openbezoar"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, "run", str(recipe), "--runs", str(runs), "--quiet"], capture_output=True, text=True, env=environment, check=False)


def results(run: Path) -> dict[str, bytes]:
    """What must be the same: data and weights."""
    files = [p for p in run.rglob("*") if p.name in ("rows.jsonl", "rejected.jsonl", "adapter_model.safetensors", "model.safetensors", "heldout.jsonl")]
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def test_a_run_killed_at_any_of_several_moments_ends_as_one_that_was_never_killed(recipe: Path, tmp_path: Path) -> None:
    done = command(recipe, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    expected = results(tmp_path / "whole" / "t")
    assert len(expected) >= 9
    for number, moment in enumerate(MOMENTS):
        runs = tmp_path / f"killed{number}"
        killed = command(recipe, runs, *map(str, moment))
        assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
        if moment[1] != "shutil.rmtree":
            assert killed.returncode == -signal.SIGKILL, f"{moment} was never reached"
        again = command(recipe, runs)
        assert again.returncode == 0, again.stderr
        found = results(runs / "t")
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == [], moment
        assert not any((runs / "t" / ".work").iterdir())


def test_a_changed_step_killed_while_it_replaces_the_old_result_is_replaced_all_the_same(recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert command(recipe, runs).returncode == 0
    before = results(runs / "t")
    recipe.write_text(recipe.read_text().replace('"dpo": "pairs.jsonl",', '"dpo": "pairs.jsonl", "beta": 0.5,'))
    for moment in (("openbezoar.runs", "RunFolder.publish", "1", "before"), ("openbezoar.runs", "shutil.rmtree", "1", "before")):
        killed = command(recipe, runs, *moment)
        assert killed.returncode == -signal.SIGKILL
    assert command(recipe, runs).returncode == 0
    after = results(runs / "t")
    changed = sorted(name for name in after if after[name] != before[name])
    assert changed and all(name.startswith(("dpo/", "DPO/")) for name in changed)
    assert json.loads((runs / "t/dpo/manifest.json").read_text())["numbers"]["beta"] == 0.5
