"""Answers of the model in training: they change nothing, survive a kill once, and are told in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST

from openbezoar.engine import execution, graph
from openbezoar.errors import RecipeError
from openbezoar.progress import Silent
from openbezoar.recipe.file import load
from openbezoar.recipe.train_steps import SAMPLE_PROMPTS
from openbezoar.reporting.samples import sampled_answers
from openbezoar.store.runs import RunFolder
from openbezoar.training import loop

SAMPLED: dict[str, Any] = {"sample_every": 2, "sample_tokens": 4}
STEPS: dict[str, dict[str, Any]] = {
    "sft": {"sft": "rows.jsonl", "model": "base", "quantize": "none", "epochs": 1, **FAST},
    "nf4": {"sft": "rows.jsonl", "model": "base", "checkpointing": True, "max_steps": 3, **FAST},
    "dpo": {"dpo": "pairs.jsonl", "model": "base", "quantize": "none", "max_steps": 3, **FAST},
    "kto": {"kto": "pairs.jsonl", "model": "base", "quantize": "none", "max_steps": 3, **FAST},
}
WEIGHTS = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "metrics.jsonl", "heldout.jsonl")


def made(recipe: Path, runs: str) -> RunFolder:
    done = graph.build(load(recipe), recipe, recipe.parent / runs)
    execution.execute(done, Silent())
    return done.run


def files(run: RunFolder, names: list[str]) -> dict[str, bytes]:
    return {f"{name}/{file}": (run.step(name) / file).read_bytes() for name in names for file in WEIGHTS}


def test_a_training_that_is_sampled_has_the_same_bytes_and_the_same_key(write_recipe: Callable[..., Path]) -> None:
    alone = made(write_recipe(STEPS), "alone")
    sampled = made(write_recipe({name: {**step, **SAMPLED} for name, step in STEPS.items()}), "sampled")
    assert files(sampled, list(STEPS)) == files(alone, list(STEPS))
    for name in STEPS:
        assert (sampled.manifest(name) or {})["key"] == (alone.manifest(name) or {})["key"]
        lines = sampled_answers(sampled.step(name))
        steps = (sampled.manifest(name) or {})["numbers"]["steps"]
        assert [line.step for line in lines] == sorted({*range(0, steps + 1, 2), steps})
        assert [one.prompt for one in lines[0].answers] == list(SAMPLE_PROMPTS)
        assert not (alone.step(name) / "samples.jsonl").exists()
    first, *_, last = sampled_answers(sampled.step("sft"))
    assert first.answers != last.answers  # of the model as it is then, not as it was


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_a_killed_training_has_each_step_s_answers_once(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {**STEPS["sft"], "sample_every": 1, "sample_tokens": 4, "save_every": 2, "evaluate_every": 2}
    recipe = write_recipe({"sft": step})
    whole = made(recipe, "whole")
    taken = loop._step

    def mortal(job: Any, state: Any, *rest: Any) -> Any:
        if state.step == 3:
            with (job.out / "samples.jsonl").open("a") as log:
                log.write('{"step": 3, "answ')  # killed while it was written
            raise Killed
        return taken(job, state, *rest)

    monkeypatch.setattr(loop, "_step", mortal)
    with pytest.raises(Killed):
        made(recipe, "killed")
    monkeypatch.setattr(loop, "_step", taken)
    again = made(recipe, "killed")
    for file in (*WEIGHTS, "samples.jsonl"):
        assert (again.step("sft") / file).read_bytes() == (whole.step("sft") / file).read_bytes()


def test_a_reward_model_writes_no_answers(write_recipe: Callable[..., Path]) -> None:
    step = {"reward": "pairs.jsonl", "model": "base", **SAMPLED}
    with pytest.raises(RecipeError, match=r"steps.judge: sample_every: unknown key"):
        load(write_recipe({"judge": step}))


def test_the_report_sets_answers_before_and_after_beside_each_other(write_recipe: Callable[..., Path]) -> None:
    ask = "Say <script>alert(1)</script>\x1b[2J"
    step = {**STEPS["sft"], **SAMPLED, "sample_prompts": [ask], "max_steps": 3}
    run = made(write_recipe({"sft": step, "report": {"report": "all"}}), "runs")
    lines = sampled_answers(run.step("sft"))
    page = (run.step("report") / "report.html").read_text(encoding="utf-8")
    assert "asked before and after" in page and "after 0 steps" in page and "after 3 steps" in page
    assert "After 2 steps" in page  # folded
    assert "<script>alert(1)" not in page and "\x1b" not in page
    assert json.loads((run.step("sft") / "samples.jsonl").read_text().splitlines()[0])["answers"][0]["prompt"] == ask
    assert len(lines) == 3
