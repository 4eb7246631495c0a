"""Trackers: what they wrote is read with their own readers, where they are installed; a tracker that fails, hangs or
is missing; a curve after a kill.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST

from openbezoar import tracking
from openbezoar.cli.app import main
from openbezoar.engine import execution, graph
from openbezoar.errors import RecipeError
from openbezoar.machine.extras import EXTRAS, installed
from openbezoar.progress import Silent
from openbezoar.recipe.file import load
from openbezoar.store.live import lines_of
from openbezoar.store.runs import RunFolder
from openbezoar.tracking import Tracks
from openbezoar.training import loop

ALL = ("tensorboard", "trackio", "wandb", "mlflow")
STEPS: dict[str, dict[str, Any]] = {
    "sft": {"sft": "rows.jsonl", "model": "base", "quantize": "none", "save_every": 2, "evaluate_every": 2, **FAST},
    "scores": {"evaluate": ["base", "sft"], "losses": {"rows": {"data": "rows.jsonl", "limit": 3}}},
}
SECRET = "abcdef0123456789abcdef0123456789abcdef01"
WRITES = """
import json, sys
from pathlib import Path
tracker, folder, run, step = sys.argv[1:]
file = Path(folder) / tracker / f"{step}.jsonl"
file.parent.mkdir(parents=True, exist_ok=True)
with file.open("w") as out:
    for line in sys.stdin:
        out.write(line)
        out.flush()
"""
"""A tracker that keeps what it is told."""


def run(recipe: Path) -> RunFolder:
    done = graph.build(load(recipe), recipe, recipe.parent / "runs")
    execution.execute(done, Silent())
    return done.run


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of a training by its logs."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for log, name in (("metrics", "train"), ("heldout", "heldout")):
        for line in lines_of(folder / f"{log}.jsonl"):
            for key, value in line.items():
                if key != "step" and isinstance(value, int | float):
                    curves.setdefault(f"{name}/{key}", []).append((line["step"], value))
    return curves


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    taken = loop._step

    def mortal(job: Any, state: Any, *rest: Any) -> Any:
        if state.step == number:
            raise Killed
        return taken(job, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", mortal)
        with pytest.raises(Killed):
            run(recipe)


@pytest.fixture
def keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of every tracker one that keeps what it is told; all of them are installed."""
    script = tmp_path / "keeps.py"
    script.write_text(WRITES)
    monkeypatch.setattr(tracking, "WRITERS", script)
    monkeypatch.setattr("openbezoar.engine.needs.extras.installed", lambda package: True)
    return script


def told(folder: Path, step: str, tracker: str = "wandb") -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "track" / tracker / f"{step}.jsonl").read_text().splitlines():
        one = json.loads(line)
        for name, value in one["values"].items():
            curves.setdefault(name, []).append((one["step"], value))
    return curves


def test_a_curve_has_each_point_once_after_a_kill_and_keys_stay(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, keeps: Path
) -> None:
    recipe = write_recipe(STEPS, track=["wandb"])
    killed_at(3, monkeypatch, recipe)
    assert (1, 3) in [
        (step, len(points)) for step, points in [(1, told(recipe.parent / "runs/t", "sft")["train/loss"])]
    ]
    made = run(recipe)
    assert told(made.path, "sft") == expected(made.step("sft"))
    steps = [json.loads(line)["step"] for line in (made.path / "track/wandb/sft.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)  # which W&B asks for
    key = graph.build(load(write_recipe(STEPS)), recipe, recipe.parent / "runs").nodes["sft"]
    assert key.state == "done"


def test_scores_have_their_intervals_and_a_finished_run_is_told_later(
    write_recipe: Callable[..., Path], keeps: Path
) -> None:
    made = run(write_recipe(STEPS))
    assert not (made.path / "track").exists()
    run(write_recipe(STEPS, track=["wandb"]))
    assert told(made.path, "sft") == expected(made.step("sft"))
    scores = told(made.path, "scores")
    (name,) = [name for name in scores if name.startswith("result/sft/") and name.endswith("rows")]
    ((_, low),), ((_, value),), ((_, high),) = scores[f"{name}.low"], scores[name], scores[f"{name}.high"]
    assert low <= value <= high
    before = (made.path / "track/wandb/sft.jsonl").stat().st_mtime_ns
    run(write_recipe(STEPS, track=["wandb"]))
    assert (made.path / "track/wandb/sft.jsonl").stat().st_mtime_ns == before  # seen, so not told again


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.stdin.readline(); sys.exit('Boom: no \\x1b[31mroom')", "Boom: no"),
        ("import time; time.sleep(60)", "had not ended after 1 s"),
        ("import os, sys; os.close(0); sys.exit(1)", "its process ended"),
    ],
    ids=["raises", "hangs", "dies"],
)
def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails.py").write_text(script)
    (tmp_path / "both.py").write_text(f"import sys\nif sys.argv[1] == 'wandb':\n    {script}\n{WRITES}")
    monkeypatch.setattr(tracking, "WRITERS", tmp_path / "both.py")
    monkeypatch.setattr(tracking, "PATIENCE", 1.0)
    warnings: list[str] = []
    tracks = Tracks(tmp_path / "run", ["wandb", "mlflow"], warnings.append)
    for step in ("a", "b"):
        with tracks.step(step) as track:
            for number in range(200):
                track.tell("metrics", {"step": number, "loss": 1.0})
            track.ended("m", {})
    (warning,) = warnings
    assert warning.startswith("warning: track: wandb: ") and words in warning and "\n" not in warning
    assert [len(told(tmp_path / "run", step, "mlflow")["train/loss"]) for step in ("a", "b")] == [200, 200]
    assert json.loads((tmp_path / "run/track/seen.json").read_text()) == {"a": {"mlflow": "m"}, "b": {"mlflow": "m"}}


def test_a_tracker_that_is_not_installed_is_one_line_with_the_extra(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("openbezoar.machine.extras.installed", lambda package: package not in ALL)
    recipe = write_recipe({"kept": {"filter": "rows.jsonl"}}, track=["tensorboard", "mlflow"])
    for command in ("plan", "run"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(recipe), "--runs", str(recipe.parent / "runs")])
        out, err = capsys.readouterr()
        assert ended.value.code == (0 if command == "plan" else 2)
        words = "track: tensorboard and mlflow-skinny are not installed; this needs them: pip install"
        assert f"{words} 'openbezoar[track-tensorboard,track-mlflow]'" in " ".join((out + err).split())


def test_a_step_may_not_have_the_folder_s_name_and_other_trackers_are_refused(
    write_recipe: Callable[..., Path],
) -> None:
    with pytest.raises(RecipeError, match=r"steps: a run keeps trackers' files in its folder 'track'"):
        load(write_recipe({"track": STEPS["sft"]}))
    with pytest.raises(RecipeError, match=r"track.0: .*'tensorboard', 'trackio', 'wandb' or 'mlflow'"):
        load(write_recipe(STEPS, track=["neptune"]))


@pytest.mark.parametrize("tracker", ALL)
def test_what_a_tracker_wrote_its_own_reader_reads(
    tracker: str, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed(tracker):
        pytest.skip(f"{EXTRAS[tracker][0]} is not installed")
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # what would go over a network fails
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    recipe = write_recipe(STEPS, track=[tracker])
    killed_at(3, monkeypatch, recipe)
    made = run(recipe)
    folder = made.path / "track" / tracker
    reader = Path(__file__).with_name("track_readers.py")

    def curves(step: str) -> dict[str, list[tuple[int, float]]]:
        done = subprocess.run(
            [sys.executable, reader, tracker, folder, "t", step], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)
        return {name: [(step, pytest.approx(value, rel=1e-6)) for step, value in found[name]] for name in found}

    assert curves("sft") == expected(made.step("sft"))
    assert any(name.startswith("result/sft/") for name in curves("scores"))
    assert not [file for file in made.path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
