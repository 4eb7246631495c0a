"""kill -9 at chosen moments, then the same command: same data and adapter weights, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST
from warm import Commands, Done, killing

STEPS: dict[str, Any] = {
    "made": {
        "generate": "orca",
        "teacher": "base",
        "seeds": "flan.jsonl",
        "rows": 12,
        "batch": 4,
        "max_new_tokens": 12,
        "submixes": {"cot": 1},
    },
    "kept": {
        "filter": "made",
        "judge": "base",
        "mode": "probability",
        "min_rating": 1,
        "batch": 3,
        "rules": {"min_response_words": 0, "drop_unfinished": False, "drop_repetition": 1.0, "drop_echoes": False},
    },
    "sft": {"sft": ["rows.jsonl", "kept"], "model": "base", "epochs": 2, "save_every": 2, **FAST},
    "SFT": {"merge": "sft"},
    "dpo": {"dpo": "pairs.jsonl", "model": "SFT", "save_every": 2, **FAST},
    "DPO": {"merge": "dpo"},
}

Moment = tuple[str, str, str, int, str]
# (step, module, function, which call, before or after it)
MOMENTS: list[Moment] = [
    ("made", "openbezoar.llm.calls", "CallStore.keep", 2, "after"),  # a batch kept, not yet used
    ("made", "openbezoar.llm.local", "LocalLLM.generate", 2, "after"),  # a batch made, not yet written
    ("kept", "openbezoar.llm.local", "LocalLLM.choice_logprobs", 3, "before"),
    ("sft", "openbezoar.training.loop", "_step", 4, "before"),  # between two checkpoints
    ("sft", "openbezoar.training.resume", "State.save", 2, "before"),
    ("SFT", "openbezoar.models.load", "torch.Tensor.copy_", 3, "after"),  # inside a merge
    ("SFT", "openbezoar.store.runs", "RunFolder.publish", 1, "before"),
    ("dpo", "openbezoar.training.loop", "_step", 3, "after"),
    ("dpo", "openbezoar.store.runs", "write_json", 2, "after"),  # manifest written, not yet published
]
ALL: dict[str, Any] = {**FAST, "lora": "none", "quantize": "none", "dtype": "bfloat16", "save_every": 2}
WHOLE: dict[str, Any] = {
    "sft": {"sft": "rows.jsonl", "model": "base", "evaluate_every": 3, **ALL},
    "dpo": {"dpo": "pairs.jsonl", "model": "sft", "reference": "cached", **ALL},
    "kto": {"kto": "pairs.jsonl", "model": "sft", **ALL},
}
MOMENTS_OF_WHOLE: list[Moment] = [
    ("sft", "openbezoar.training.loop", "_step", 4, "before"),
    ("sft", "openbezoar.models.save", "save_settings", 1, "before"),  # weights written, config not yet
    ("dpo", "openbezoar.training.reference", "ReferenceCache.save", 1, "before"),
    ("dpo", "openbezoar.training.resume", "State.save", 2, "after"),
    ("kto", "openbezoar.training.loop", "_step", 3, "after"),
]
SWEEP: dict[str, Any] = {
    "sft": {"sft": "rows.jsonl", "model": "base", "sweep": {"epochs": [1, 2]}, "save_every": 2, **FAST},
    "SFT": {"merge": "sft"},
}
STEPS_OF_SWEEP = ("sft.epochs-1", "sft.epochs-2", "sft", "SFT")
MOMENTS_OF_SWEEP: list[Moment] = [
    ("sft.epochs-2", "openbezoar.training.loop", "_step", 4, "before"),
    ("sft", "openbezoar.models.references", "write_json", 1, "before"),  # chosen, not yet written
    ("sft", "openbezoar.store.runs", "RunFolder.publish", 1, "before"),
    ("SFT", "openbezoar.models.load", "torch.Tensor.copy_", 3, "after"),
]
REWARD: dict[str, Any] = {
    "rm": {"reward": "pairs.jsonl", "model": "base", "beats": "nothing", "evaluate_every": 3, "save_every": 2, **FAST},
    "own": {
        "pairs": "rows.jsonl",
        "from": "base",
        "samples": 2,
        "by": "rm",
        "max_new_tokens": 6,
        "unfinished": "keep",
        "batch": 8,
    },
}
MOMENTS_OF_REWARD: list[Moment] = [
    ("rm", "openbezoar.training.loop", "_step", 4, "before"),  # between two checkpoints, of adapter and head
    ("rm", "openbezoar.training.resume", "State.save", 2, "after"),
    ("rm", "openbezoar.verbs.train.reward", "write_reward_model", 1, "after"),  # written, the adapter still beside it
    ("rm", "openbezoar.verbs.train.reward", "write_checkpoint", 1, "before"),  # the adapter is gone
    ("own", "openbezoar.llm.local", "LocalLLM.generate", 2, "after"),
    ("own", "openbezoar.judging.rewards", "LocalRewards.scores", 1, "after"),
]
A_TRAINING = 3


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    path = write_recipe(STEPS)
    tasks = [
        {"id": f"f{i}", "submix": "cot", "task": f"t{i % 3}", "input": f"What comes after {i}?", "target": f"{i + 1}"}
        for i in range(20)
    ]
    (tmp_path / "flan.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))
    return path


def command(commands: Commands, recipe: Path, runs: Path, to: str | None = None, killer: tuple[Any, ...] = ()) -> Done:
    arguments = ["run", str(recipe), "--runs", str(runs), "--quiet", *(["--to", to] if to else [])]
    return commands(*arguments, first=killing(*killer) if killer else "")


def results(folder: Path) -> dict[str, bytes]:
    """What must be the same: data and weights."""
    names = (
        "rows.jsonl",
        "rejected.jsonl",
        "adapter_model.safetensors",
        "model.safetensors",
        "heldout.jsonl",
        "model.json",
    )
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.name in names}


def killed_and_gone_on(
    commands: Commands, recipe: Path, folder: Path, moments: Sequence[Moment], steps: Sequence[str] = tuple(STEPS)
) -> None:
    """A step killed at each moment, then begun again, has the results of one that was never killed."""
    whole = folder / "whole" / "t"
    done = command(commands, recipe, whole.parent)
    assert done.code == 0, done.err
    for number, (step, *killer) in enumerate(moments):
        run = folder / f"killed{number}" / "t"
        for earlier in steps[: steps.index(step)]:
            shutil.copytree(whole / earlier, run / earlier)
        died = command(commands, recipe, run.parent, step, tuple(killer))
        assert died.code == -signal.SIGKILL, f"{step} {killer} was never reached: {died.err}"
        again = command(commands, recipe, run.parent, step)
        assert again.code == 0, again.err
        expected, found = results(whole / step), results(run / step)
        assert expected
        assert found == expected, (step, killer)
        assert not any((run / ".work").iterdir())


def test_a_training_killed_at_one_moment_ends_as_one_that_was_never_killed(
    recipe: Path, tmp_path: Path, commands: Commands
) -> None:
    killed_and_gone_on(commands, recipe, tmp_path, [MOMENTS[A_TRAINING]])


@pytest.mark.slow
def test_a_step_killed_at_any_of_several_moments_ends_as_one_that_was_never_killed(
    recipe: Path, tmp_path: Path, commands: Commands
) -> None:
    killed_and_gone_on(commands, recipe, tmp_path, MOMENTS)


@pytest.mark.slow
def test_a_training_of_all_weights_killed_at_any_of_several_moments_ends_as_one_that_was_never_killed(
    write_recipe: Callable[..., Path], tmp_path: Path, commands: Commands
) -> None:
    killed_and_gone_on(commands, write_recipe(WHOLE), tmp_path, MOMENTS_OF_WHOLE, tuple(WHOLE))


@pytest.mark.slow
def test_a_sweep_killed_at_any_of_several_moments_ends_as_one_that_was_never_killed(
    write_recipe: Callable[..., Path], tmp_path: Path, commands: Commands
) -> None:
    killed_and_gone_on(commands, write_recipe(SWEEP), tmp_path, MOMENTS_OF_SWEEP, STEPS_OF_SWEEP)


def test_a_changed_step_killed_while_it_replaces_the_old_result_is_replaced_all_the_same(
    recipe: Path, tmp_path: Path, commands: Commands
) -> None:
    runs = tmp_path / "runs"
    assert command(commands, recipe, runs, "dpo").code == 0
    before = results(runs / "t")
    recipe.write_text(recipe.read_text().replace('"dpo": "pairs.jsonl",', '"dpo": "pairs.jsonl", "beta": 0.5,'))
    for function in ("RunFolder.publish", "shutil.rmtree"):
        killed = command(commands, recipe, runs, "dpo", ("openbezoar.store.runs", function, 1, "before"))
        assert killed.code == -signal.SIGKILL
    assert command(commands, recipe, runs, "dpo").code == 0
    after = results(runs / "t")
    changed = sorted(name for name in after if after[name] != before[name])
    assert changed and all(name.startswith("dpo/") for name in changed)
    assert json.loads((runs / "t/dpo/manifest.json").read_text())["numbers"]["beta"] == 0.5


@pytest.mark.slow
def test_a_reward_model_and_pairs_by_it_killed_at_several_moments_end_as_if_they_were_never_killed(
    write_recipe: Callable[..., Path], tmp_path: Path, commands: Commands
) -> None:
    killed_and_gone_on(commands, write_recipe(REWARD), tmp_path, MOMENTS_OF_REWARD, tuple(REWARD))
