"""Several processes: two that equal one, under torchrun with gloo, and one of them killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, save_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from warm import Commands

from openbezoar.engine import execution, graph
from openbezoar.errors import RunError
from openbezoar.forest import TokenPath
from openbezoar.forest.layout import weight
from openbezoar.machine import distributed, shares
from openbezoar.progress import Silent
from openbezoar.recipe.file import load

EXACT = {**FAST, "lora": {"r": 4, "alpha": 4, "dropout": 0.0}}
# 15 rows and 11 pairs of unequal lengths in steps of 7 and 5: the last step has one row, so one process has none.
STEPS: dict[str, Any] = {
    "sft": {"sft": "some.jsonl", "model": "base", **EXACT, "batch": 7, "heldout": "held.jsonl"},
    "dpo": {
        "dpo": "uneven.jsonl",
        "model": "sft",
        **EXACT,
        "batch": 5,
        "heldout": "held_pairs.jsonl",
        "reference": "cached",
    },
    "kto": {"kto": "uneven.jsonl", "model": "dpo", **EXACT, "batch": 7, "heldout": "held_pairs.jsonl"},
    "merged": {"merge": "kto"},
    "drop": {
        "sft": "some.jsonl",
        "model": "base",
        **FAST,
        "epochs": 2,
        "save_every": 3,
        "evaluate_every": 2,
        "heldout": "held.jsonl",
    },
}

# Process 1 kills itself with SIGKILL before its n-th optimiser step.
KILLER = """
import os, signal, sys
from openbezoar.training import loop
original, calls = loop._step, 0
def mortal(*args):
    global calls
    calls += 1
    if calls == {count} and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
loop._step = mortal
from openbezoar.cli.app import main
main()
"""


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    def rows(name: str, made: list[dict[str, Any]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in made))

    def pair(i: int) -> dict[str, Any]:
        ask = f"\n\nHuman: Say {i}{' please' * (i % 4)}.\n\nAssistant: "
        return {
            "id": f"p{i}",
            "subset": "helpful",
            "chosen": f"{ask}It is {i}.{' Gladly.' * (i * i % 9)}",
            "rejected": f"{ask}No way.",
        }

    said = [
        {
            "id": f"r{i}",
            "instruction": f"Say {i}.",
            "context": "",
            "response": f"It is {i}.{' And more.' * (i * i % 11)}",
        }
        for i in range(18)
    ]
    rows("some.jsonl", said[:15])
    rows("held.jsonl", said[15:])
    rows("uneven.jsonl", [pair(i) for i in range(11)])
    rows("held_pairs.jsonl", [pair(i) for i in range(11, 13)])
    return write_recipe(STEPS)


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.terminate()  # which ends its workers too
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def adapter(step: Path) -> dict[str, torch.Tensor]:
    return load_file(step / "adapter" / "adapter_model.safetensors")


# Further processes beside this one, as torchrun would start them.
SEVERAL = """
import os
os.environ.update(WORLD_SIZE="{world}", LOCAL_WORLD_SIZE="{world}", MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
number = next((rank for rank in range(1, {world}) if os.fork() == 0), 0)
os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(number)
"""


def several(world: int = 2) -> str:
    """For ``first``: a command in so many processes."""
    return SEVERAL.format(world=world, port=free_port())


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.slow
def test_two_processes_give_the_losses_and_adapters_of_one(recipe: Path, tmp_path: Path, commands: Commands) -> None:
    arguments = ("run", str(recipe), "--runs", str(tmp_path / "two"), "--quiet", "--to", "merged")
    done = commands(*arguments, first=several())
    assert done.code == 0, done.err
    equal_to_one(recipe, tmp_path)


@pytest.mark.distributed
def test_two_processes_under_torchrun_give_the_losses_and_adapters_of_one(recipe: Path, tmp_path: Path) -> None:
    done = torchrun(
        "-m", "openbezoar", "run", str(recipe), "--runs", str(tmp_path / "two"), "--quiet", "--to", "merged"
    )
    assert done.returncode == 0, done.stderr
    equal_to_one(recipe, tmp_path)


@pytest.mark.slow
def test_two_processes_give_the_reward_model_of_one(
    recipe: Path, write_recipe: Callable[..., Path], tmp_path: Path, commands: Commands
) -> None:
    settings = {**EXACT, "batch": 5, "heldout": "held_pairs.jsonl", "beats": "nothing"}
    path = write_recipe({"rm": {"reward": "uneven.jsonl", "model": "base", **settings}})
    done = commands("run", str(path), "--runs", str(tmp_path / "two"), "--quiet", first=several())
    assert done.code == 0, done.err
    execution.execute(graph.build(load(path), path, tmp_path / "one"), Silent())
    alone, together = (tmp_path / name / "t" / "rm" for name in ("one", "two"))
    numbers = [json.loads((step / "manifest.json").read_text())["numbers"] for step in (alone, together)]
    assert numbers[1]["processes"] == 2 and "processes" not in numbers[0]
    for a, b in zip(lines(alone / "metrics.jsonl"), lines(together / "metrics.jsonl"), strict=True):
        assert all(b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-5) for key in a)
    before, after = (load_file(step / "model" / "model.safetensors") for step in (alone, together))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert float((value - after[key]).abs().max()) <= 2e-5, key


def equal_to_one(recipe: Path, tmp_path: Path) -> None:
    """The run of two processes has the losses and the adapters of one."""
    one = graph.build(load(recipe), recipe, tmp_path / "one")
    execution.execute(one, Silent(), "merged")
    for name in ("sft", "dpo", "kto"):
        alone, together = tmp_path / "one" / "t" / name, tmp_path / "two" / "t" / name
        numbers = [json.loads((step / "manifest.json").read_text())["numbers"] for step in (alone, together)]
        assert numbers[1]["processes"] == 2 and "processes" not in numbers[0]
        for file in ("metrics.jsonl", "heldout.jsonl"):
            expected, found = lines(alone / file), lines(together / file)
            assert len(expected) == len(found) == numbers[0]["steps"] if file == "metrics.jsonl" else 2
            for a, b in zip(expected, found, strict=True):
                assert a.keys() == b.keys()
                for key in a.keys() - {"rows"}:
                    assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-5)
                assert all(
                    b["rows"][key] == pytest.approx(a["rows"][key], rel=1e-5, abs=1e-5) for key in a.get("rows", {})
                )
        before, after = adapter(alone), adapter(together)
        assert before.keys() == after.keys()
        assert max(float(value.abs().max()) for key, value in before.items() if "lora_B" in key) > 1e-3
        for key, value in before.items():
            assert float((value - after[key]).abs().max()) <= 2e-5, key
    drifts = [
        json.loads((tmp_path / f"{runs}/t/merged/manifest.json").read_text())["numbers"] for runs in ("one", "two")
    ]
    assert drifts[0].keys() == drifts[1].keys()
    for key, value in drifts[0].items():
        assert drifts[1][key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key
    assert not any((tmp_path / "two" / "t" / ".work").iterdir())


@pytest.mark.distributed
def test_a_run_with_one_process_killed_goes_on_and_ends_as_one_that_was_not(recipe: Path, tmp_path: Path) -> None:
    arguments = ["run", str(recipe), "--quiet", "--to", "drop", "--runs"]
    whole = torchrun("-m", "openbezoar", *arguments, str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    script = tmp_path / "killer.py"
    script.write_text(KILLER.format(count=6))
    killed = torchrun(str(script), *arguments, str(tmp_path / "killed"))
    assert killed.returncode != 0 and f"exitcode  : -{int(signal.SIGKILL)}" in killed.stderr, killed.stderr
    work = tmp_path / "killed" / "t" / ".work" / "drop"
    assert (work / ".resume.safetensors").is_file() and not (tmp_path / "killed" / "t" / "drop").exists()
    again = torchrun("-m", "openbezoar", *arguments, str(tmp_path / "killed"))
    assert again.returncode == 0, again.stderr
    expected, found = (tmp_path / name / "t" / "drop" for name in ("whole", "killed"))
    for file in ("adapter/adapter_model.safetensors", "metrics.jsonl", "heldout.jsonl"):
        assert (expected / file).read_bytes() == (found / file).read_bytes(), file


SLOWLY = """
import time
from openbezoar.training import loop
step = loop._step
def slowly(*args):
    time.sleep(0.3)
    return step(*args)
loop._step = slowly
"""


def told_after(steps: int, metrics: Path, running: Callable[[], bool], tell: Callable[[], None]) -> None:
    """Tell a run something when it has made so many optimiser steps."""
    until = time.monotonic() + 200
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= steps):
        assert running() and time.monotonic() < until
        time.sleep(0.02)
    tell()


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(
    recipe: Path, tmp_path: Path, commands: Commands
) -> None:
    arguments = ("run", str(recipe), "--runs", str(tmp_path / "two"), "--quiet", "--to", "drop")
    run = commands.start(*arguments, first=several() + SLOWLY)
    work = tmp_path / "two/t/.work/drop"
    told_after(2, work / "metrics.jsonl", run.running, lambda: run.send_signal(signal.SIGTERM))
    done = run.wait()
    assert done.code == 143, done.err
    said = [line for line in done.err.splitlines() if line.startswith("openbezoar")]
    assert len(said) == 1 and "torchrun --nproc-per-node 2 -m openbezoar run " in said[0], done.err
    with safe_open(work / ".resume.safetensors", framework="pt") as saved:
        assert int(json.loads(saved.metadata()["sealed"])["step"]) == len(lines(work / "metrics.jsonl"))


@pytest.mark.distributed
def test_a_launcher_that_is_told_to_end_stops_all_processes_and_the_run_goes_on(recipe: Path, tmp_path: Path) -> None:
    arguments = ["run", str(recipe), "--quiet", "--to", "drop", "--runs"]
    whole = torchrun("-m", "openbezoar", *arguments, str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    script = tmp_path / "slowly.py"
    script.write_text(f"{SLOWLY}\nfrom openbezoar.cli.app import main\nmain()\n")
    work = tmp_path / "told/t/.work/drop"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    with subprocess.Popen([*command, *arguments, str(tmp_path / "told")], stderr=subprocess.PIPE, text=True) as process:
        told_after(2, work / "metrics.jsonl", lambda: process.poll() is None, process.terminate)
        _, err = process.communicate(timeout=120)
    assert err.count("openbezoar: stopped by SIGTERM") == 1, err
    assert (work / ".resume.safetensors").is_file()
    again = torchrun("-m", "openbezoar", *arguments, str(tmp_path / "told"))
    assert again.returncode == 0, again.stderr
    expected, found = (tmp_path / name / "t" / "drop" for name in ("whole", "told"))
    for file in ("adapter/adapter_model.safetensors", "metrics.jsonl", "heldout.jsonl"):
        assert (expected / file).read_bytes() == (found / file).read_bytes(), file


@pytest.mark.distributed
def test_a_user_s_mistake_ends_all_processes_and_the_first_says_it_in_one_line(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(
        recipe.read_text().replace('"q_proj"', '"no_proj"').replace('"r": 4', '"r": 4, "targets": ["no_proj"]')
    )
    done = torchrun("-m", "openbezoar", "run", str(recipe), "--runs", str(tmp_path / "runs"), "--quiet", "--to", "sft")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("openbezoar: ")]
    assert len(said) == 1 and "no module 'no_proj'" in said[0]
    assert f'File "{Path(graph.__file__).parent}' not in done.stderr  # torchrun's own traceback cannot be helped


# ------------------------------------------------------------------------- steps that ask models

MEASURED: dict[str, Any] = {
    "kept": {
        "filter": "some.jsonl",
        "rules": {"near_duplicates": None, "language": "any"},
        "likelihood": {"model": "base", "tokens": 128},
        "reward": {"model": "rm"},
        "judge": "base",
        "mode": "probability",
        "min_rating": 1,
    },
    "scores": {
        "evaluate": ["base", "other"],
        "tasks": ["arc_easy", {"task": "gsm8k", "fewshot": 0}],
        "data": "tasks",
        "losses": {"plain": "some.jsonl"},
        "pairs": {"hh": "uneven.jsonl"},
        "tokens": 96,
        "reference": "base",
        "kl_rows": 5,
        "kl_tokens": 6,
        "wins": {"rm": {"prompts": "held.jsonl", "by": "rm", "against": "base", "max_new_tokens": 9, "temperature": 1}},
    },
}
# Passes small enough for rewards to take several, and short answers.
SMALL = """
from openbezoar.harness import forest_lm
from openbezoar.judging.rewards import LocalRewards
forest_lm.MAX_NEW_TOKENS = 24
LocalRewards.__init__.__defaults__ = (*LocalRewards.__init__.__defaults__[:-1], 256)
"""
# Each process notes what it does.
NOTED = """
from openbezoar.forest import RewardScorer, Scorer
from openbezoar.harness.forest_lm import ForestLM
from openbezoar.llm.local import LocalLLM
def noted(kind, name):
    original = getattr(kind, name)
    def work(self, item):
        with open("{log}" + os.environ["RANK"], "a") as log:
            log.write(kind.__name__ + "." + name + "\\n")
        return original(self, item)
    setattr(kind, name, work)
for kind, name in [
    (Scorer, "measured"),
    (Scorer, "before_answer"),
    (RewardScorer, "measured"),
    (ForestLM, "answered"),
    (LocalLLM, "drawn"),
]:
    noted(kind, name)
"""
DONE = {"Scorer.measured", "RewardScorer.measured", "ForestLM.answered", "LocalLLM.drawn"}


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_what_models_are_asked_is_shared_out_and_comes_out_as_of_one_process(
    world: int,
    recipe: Path,
    write_recipe: Callable[..., Path],
    tiny: Path,
    tiny_reward: Path,
    tmp_path: Path,
    commands: Commands,
) -> None:
    (tmp_path / "tasks").mkdir()
    asked = [{"id": f"q{i}", "split": "eval", "question": f"Which? {'So. ' * (i * i % 7)}"} for i in range(9)]
    questions = [{**one, "choices": ["a", "b c"], "gold": 1} for one in asked]
    sums = [{"split": "eval", "question": f"{i} + 1?", "answer": "#### 7", "final": "7"} for i in range(60)]
    for name, rows in (("arc_easy", questions), ("gsm8k", sums)):
        (tmp_path / f"tasks/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny_model(tmp_path / "another", seed=5)
    places = {"base": tiny, "other": tmp_path / "another"}
    models: dict[str, Any] = {name: {"model": str(place), "dtype": "float32"} for name, place in places.items()}
    models["rm"] = {"reward": str(tiny_reward), "dtype": "float32", "prompt": {}}
    path = write_recipe(MEASURED, models=models)
    log = tmp_path / "passes-"
    for runs, first in (("many", several(world) + NOTED.format(log=log)), ("one", "")):
        done = commands("run", str(path), "--runs", str(tmp_path / runs), "--quiet", first=first + SMALL)
        assert done.code == 0, done.err
    work = [Counter(Path(f"{log}{rank}").read_text().split()) for rank in range(world)]
    for kind in DONE:
        assert all(each[kind] for each in work), (kind, work)
    passes = [each["Scorer.measured"] for each in work]
    assert sum(passes) <= 1.5 * world * min(passes), work
    alone, together = tmp_path / "one" / "t", tmp_path / "many" / "t"
    files = sorted(file.relative_to(alone) for file in alone.rglob("*") if file.is_file() and file.parent != alone)
    assert {"kept/rows.jsonl", "kept/likelihood.jsonl", "scores/scores.json"} <= set(map(str, files))
    for file in files:
        if file.name != "manifest.json":  # which has times
            assert (together / file).read_bytes() == (alone / file).read_bytes(), file


# What befalls process 1 in its second pass, or when it has loaded a model: Python, and what process 0 then says.
BEFALLS = {
    "an error of the model": ("raise ModelError('it broke; mend it')", "process 1: it broke; mend it"),
    "no memory": ("raise MemoryError", "process 1: not enough memory"),
    "a bug": ("raise KeyError('oops')", "process 1: KeyError: 'oops'"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "process 1 of this run ended"),
    "silent": ("time.sleep(60)", "process 1 of this run gave no sign of life for 4 s"),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "process 1 of this run gave no sign of life for 4 s"),
}
BEFALLEN = """
import os, signal, time
from openbezoar.errors import ModelError
from openbezoar.forest import Scorer
from openbezoar.models.driving import Helper
from openbezoar.training import loop
calls = 0
def befalls(original):
    def befallen(*given):
        global calls
        calls += 1
        done = original(*given)
        if os.environ["RANK"] == "1" and calls == {count}:
            {what}
        return done
    return befallen
{kind} = befalls({kind})
"""
BESET: dict[str, Any] = {
    "scores": {"evaluate": ["base"], "losses": {"plain": "some.jsonl"}, "tokens": 160},
    "sft": {"sft": "some.jsonl", "model": "base", **EXACT, "heldout": "some.jsonl", "tokens": 160},
}
PASS, ORDER, BACKWARD = ("Scorer.measured", 2), ("Helper.obey", 1), ("loop.work_of", 2)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("what", "step", "where"),
    [(what, step, PASS) for what in BEFALLS for step in ("scores", "sft")]
    + [(what, "scores", ORDER) for what in ("killed", "stopped")]
    + [(what, "sft", BACKWARD) for what in ("an error of the model", "a bug", "killed", "silent")],
)
def test_what_befalls_one_process_ends_all_and_the_first_says_so_in_one_line(
    what: str,
    step: str,
    where: tuple[str, int],
    recipe: Path,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    commands: Commands,
) -> None:
    path = write_recipe({step: BESET[step]})
    does, says = BEFALLS[what]
    kind, count = where
    patience = {distributed.PATIENCE: "4" if "no sign of life" in says else "600"}
    first = several() + BEFALLEN.format(what=does, kind=kind, count=count)
    run = commands.start("run", str(path), "--runs", str(tmp_path / "runs"), "--quiet", first=first, env=patience)
    done = run.wait()
    with suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)  # what hangs
    assert done.code == 2, done.err
    said = [line for line in done.err.splitlines() if line.startswith("openbezoar")]
    assert said[0].startswith(f"openbezoar: step {step}: {says}"), done.err
    assert len(said) == 1, done.err
    assert ("Traceback" in done.err) == (what == "a bug"), done.err
    if what == "killed":
        again = commands("run", str(path), "--runs", str(tmp_path / "runs"), "--quiet", first=several())
        assert again.code == 0, again.err


@pytest.mark.distributed
@pytest.mark.parametrize("step", BESET)
def test_a_signal_to_the_other_process_while_it_scores_stops_both(
    step: str, recipe: Path, write_recipe: Callable[..., Path], tmp_path: Path, commands: Commands
) -> None:
    path = write_recipe({step: BESET[step]})
    kind, count = PASS
    told = BEFALLEN.format(what="os.kill(os.getpid(), signal.SIGTERM)", kind=kind, count=count)
    arguments = ("run", str(path), "--runs", str(tmp_path / "runs"), "--quiet")
    done = commands(*arguments, first=several() + told)
    assert done.code == 143, done.err
    said = [line for line in done.err.splitlines() if line.startswith("openbezoar")]
    assert len(said) == 1 and said[0].startswith("openbezoar: stopped by SIGTERM"), done.err
    again = commands(*arguments, first=several())
    assert again.code == 0, again.err


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(1, 5))
def test_shares_are_a_division_and_differ_by_no_more_than_one_tree(lengths: list[int], world: int) -> None:
    trees = [(TokenPath.of([1], list(range(2, 2 + n))),) for n in lengths]
    parts = [shares.share(trees, weight, rank, world) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in parts)
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_a_share_weighs_a_shared_prompt_once() -> None:
    prompt = list(range(1, 41))
    pair = (TokenPath.of(prompt, [50, 51]), TokenPath.of(prompt, [60, 61]))
    single = (TokenPath.of([1], list(range(2, 60))),)
    small = (TokenPath.of([1], list(range(2, 30))),)
    assert [shares.share([pair, single, small], weight, rank, 2) for rank in (0, 1)] == [[1], [0, 2]]


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parameter = torch.nn.Parameter(torch.ones(2))
    distributed.start()
    distributed.sum_gradients([parameter])
    assert parameter.grad is None and distributed.rank() == 0 and distributed.world() == 1
    assert distributed.sum_scalars({"a": 1.0}) == {"a": 1.0} and distributed.from_first(lambda: 7) == 7


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_a_split_base_is_refused_in_one_line_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    for key, value in {"WORLD_SIZE": "2", "RANK": "0", variable: "true"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(RunError, match=f"{name}: .* launch without {name}"):
        distributed.start()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e99"])
def test_a_patience_that_is_no_time_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(distributed.PATIENCE, "2.5")
    assert distributed.patience().total_seconds() == 2.5
    monkeypatch.setenv(distributed.PATIENCE, text)
    with pytest.raises(RunError, match=f"OPENBEZOAR_PATIENCE is '{text}'; give seconds"):
        distributed.patience()


def test_processes_that_begin_differently_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(distributed, "gathered", lambda values: [{"steps_done": 5, "rows": 9}, values])
    distributed.agree(steps_done=5, rows=9)
    with pytest.raises(RunError, match=r"differ in steps done \(5, 0\)"):
        distributed.agree(steps_done=0, rows=9)
