"""A result is an answer for the weights that it was made with, and for no others; gates are asked each time."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, recipe_in, save_tiny_model

pytest.importorskip("torch")

from openbezoar.cli.app import main
from openbezoar.engine import graph
from openbezoar.recipe.file import load
from openbezoar.store.runs import RunFolder


class Place:
    """A recipe that trains a step on a model folder of its own and scores both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.runs = folder, folder / "model", folder / "runs"
        self.recipe = self.recipe_with()

    def recipe_with(self, **scores: Any) -> Path:
        steps = {
            "a": {"sft": "rows.jsonl", "model": "base", "max_steps": 1, "quantize": "none", **FAST},
            "scores": {"evaluate": ["base", "a"], "losses": {"mine": "rows.jsonl"}, "loss_rows": 4, **scores},
        }
        return recipe_in(self.folder, Path("model"), steps)

    def run(self) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["run", str(self.recipe), "--runs", str(self.runs), "--quiet"])
        return int(ended.value.code or 0)

    def states(self) -> dict[str, tuple[str, str]]:
        return {n.name: (n.state, n.why) for n in graph.build(load(self.recipe), self.recipe, self.runs).nodes.values()}

    def loss(self, checkpoint: str = "base") -> float:
        scores = json.loads((self.runs / "t/scores/scores.json").read_text())
        return float(scores["checkpoints"][checkpoint]["losses"]["mine"]["value"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A place whose recipe has run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny, folder / "model")
    assert Place(folder).run() == 0
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Place:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path)


def test_the_same_folder_with_other_weights_is_scored_again(place: Place, tmp_path: Path) -> None:
    before = place.loss()
    other = save_tiny_model(tmp_path / "other", seed=5)
    assert (other / "model.safetensors").stat().st_size == (place.model / "model.safetensors").stat().st_size
    shutil.copyfile(other / "model.safetensors", place.model / "model.safetensors")
    assert place.states()["scores"] == ("stale", "model base changed")
    assert place.run() == 0
    after = place.loss()
    assert after != before
    shutil.rmtree(place.runs)
    assert place.run() == 0
    assert place.loss() == after


def test_a_steps_weights_changed_by_hand_are_made_again(place: Place) -> None:
    adapter = next((place.runs / "t/a").rglob("*.safetensors"))
    whole, loss = adapter.read_bytes(), place.loss("a")
    adapter.write_bytes(whole[:-4] + b"\x00\x00\x00\x3f")
    name = adapter.relative_to(place.runs / "t/a").as_posix()
    assert place.states()["a"] == ("stale", f"{name} changed since it was made")
    assert place.run() == 0
    assert adapter.read_bytes() == whole
    assert place.loss("a") == loss
    assert {state for state, _ in place.states().values()} == {"done"}


def test_what_used_a_step_that_was_made_again_with_other_weights_runs_again(place: Place) -> None:
    folder = place.runs / "t/a"
    adapter = next(folder.rglob("*.safetensors"))
    adapter.write_bytes(adapter.read_bytes()[:-4] + b"\x00\x00\x00\x3f")
    RunFolder(place.runs / "t").vouch("a")  # as a GPU might have made them
    assert place.states() == {"a": ("done", ""), "scores": ("stale", "the files of a are not those it used")}
    before = place.loss("a")
    assert place.run() == 0
    assert place.loss("a") != before


def test_a_copied_run_is_done_and_its_weights_are_read_once(place: Place, tmp_path: Path) -> None:
    for file in place.runs.rglob("*.safetensors"):
        os.utime(file, (1, 1))
    assert {state for state, _ in place.states().values()} == {"done"}
    assert place.run() == 0
    mark = json.loads((place.runs / "t/a/manifest.json").read_text())["files"]["adapter/adapter_model.safetensors"]
    assert mark[1] == 10**9  # noted, so that the next command need not read it


def test_a_broken_gate_stops_the_run_each_time_until_the_gate_is_changed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = ("a", "base") if place.loss("a") < place.loss("base") else ("base", "a")
    gate = {"measure": "mine", "fall": 0, "before": before, "after": after}
    place.recipe = place.recipe_with(gate=[gate])
    for _ in range(2):
        assert place.run() == 2
        err = capsys.readouterr().err
        assert "step scores: gate on mine is broken" in err
        assert "done in" not in err  # nothing was scored again
    place.recipe = place.recipe_with(gate=[{**gate, "broken": "warn"}])
    assert place.run() == 0
    assert "gate on mine is broken" in capsys.readouterr().err
