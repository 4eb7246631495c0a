"""Equal runs are equal to the byte: another place, time, hash seed, locale and order of folders
give the same SHA256SUMS.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import Commands

from openbezoar.publishing.checksums import SUMS, checked
from openbezoar.reporting.facts import read_facts
from openbezoar.store.runs import RunFolder

ROOT = Path(__file__).parent.parent
TARGETS = ["v_proj", "down_proj", "q_proj", "up_proj", "k_proj", "gate_proj", "o_proj"]
FAST: dict[str, Any] = {
    "dtype": "float32",
    "batch": 4,
    "max_steps": 2,
    "heldout_every": 4,
    "lora": {"r": 2, "targets": TARGETS},
    "quantize": "none",
}
STEPS: dict[str, Any] = {
    "kept": {"filter": "rows.jsonl", "rules": {"near_duplicates": None, "language": "any"}},
    "sft": {"sft": "kept", "model": "base", **FAST},
    "SFT": {"merge": "sft", "drift_rows": 2},
    "scores": {
        "evaluate": ["base", "SFT"],
        "pairs": {"hh": {"data": "pairs.jsonl", "limit": 4}},
        "reference": "base",
        "kl_rows": 0,
    },
    "release": {"release": ["SFT"], "gguf": ["q8_0"]},
}
OTHERWISE = """
import os, random, sys, time
time.tzset()
clock, listed, scanned = time.time, os.listdir, os.scandir
time.time = lambda: clock() + 1e8
time.gmtime = (lambda gmtime: lambda s=None: gmtime(clock() - 1e8 if s is None else s))(time.gmtime)

class Scanned(list):
    __enter__, __exit__, close = lambda self: self, lambda self, *_: None, lambda self: None

def scandir(*args):
    with scanned(*args) as entries:
        return Scanned(reversed(list(entries)))

os.listdir, os.scandir = lambda *args: listed(*args)[::-1], scandir
"""
"""Gives a program another clock, and folders that list their files the other way round."""
MAIN = """
from openbezoar.cli.app import main
main(sys.argv[1:])
"""
STRANGE = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "COLUMNS": "40"}
INTERPRETER = {"PYTHONHASHSEED": "12345", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}


def by_a_fork(commands: Commands, arguments: list[str]) -> tuple[int, str]:
    """(exit code, words) of a command under another clock, order of folders, zone and locale."""
    done = commands(*arguments, first=OTHERWISE, env=STRANGE)
    return done.code, done.err


def by_an_interpreter(_: Commands, arguments: list[str]) -> tuple[int, str]:
    """As ``by_a_fork``, in an interpreter with another hash seed and encoding besides."""
    command = [sys.executable, "-c", OTHERWISE + MAIN, *arguments]
    env = {**os.environ, **STRANGE, **INTERPRETER, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("way", [by_a_fork, pytest.param(by_an_interpreter, marks=pytest.mark.slow)])
def test_two_runs_far_apart_release_the_same_bytes(
    way: Callable[..., tuple[int, str]], write_recipe: Callable[..., Path], tmp_path: Path, commands: Commands
) -> None:
    recipe = write_recipe(STEPS)
    first, second = tmp_path / "here", tmp_path / "elsewhere" / "deep" / "runs"
    done = commands("run", str(recipe), "--runs", str(first), "--quiet")
    assert done.code == 0, done.err
    code, said = way(commands, ["run", str(recipe), "--runs", str(second), "--quiet"])
    assert code == 0, said

    released = sorted(path.relative_to(first) for path in first.glob(f"t/release/**/{SUMS}"))
    assert len(released) == 2, "the model and its data"
    for sums in released:
        assert (first / sums).read_text() == (second / sums).read_text(), sums
        assert len(checked((first / sums).parent)) > 2
    for runs in (first, second):
        assert json.loads((runs / "t/sft/adapter/adapter_config.json").read_text())["target_modules"] == sorted(TARGETS)
    card = (first / "t/release/SFT/README.md").read_text()
    assert "tokens/s" not in card and str(tmp_path) not in card and "hh: reward accuracy" in card


def test_steps_and_differences_are_in_the_recipe_s_order_whatever_the_clock_says(tmp_path: Path) -> None:
    names = ["a", "c", "b", "d"]
    ends = [f"2026-01-0{day}T00:00:00Z" for day in (4, 3, 1, 2)]
    for place, (name, finished) in enumerate(zip(names, ends, strict=True)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "manifest.json").write_text(
            json.dumps(
                {"step": name, "verb": "evaluate", "place": place, "finished": finished, "parts": {"inputs": {}}}
            )
        )
    assert list(read_facts(RunFolder(tmp_path)).steps) == names
