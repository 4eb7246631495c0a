"""``openbezoar watch``: a run in another process, a killed one, a finished one; hostile texts; damaged files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST

from openbezoar.cli.app import main
from openbezoar.engine import execution, graph
from openbezoar.llm.owners import Process
from openbezoar.people.watch import sparkline
from openbezoar.progress import PlainProgress, Silent
from openbezoar.recipe.file import load
from openbezoar.store.live import LIVE, Recorded, read_live
from openbezoar.training import loop

ASK = "Say \x1b[2J\x1b]0;title\x07 [bold red]hello[/] \u202e"
STEPS: dict[str, dict[str, Any]] = {
    "kept": {"filter": "rows.jsonl", "rules": {"drop_repetition": 1.0}},
    "sft": {
        **{"sft": "kept", "model": "base", "quantize": "none", "epochs": 2, "sample_every": 2, "sample_tokens": 4},
        **{"sample_prompts": [ASK], "save_every": 2, "evaluate_every": 2, **FAST},
    },
}


def watched(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(run), "--once"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_run_is_seen_at_work_when_it_was_killed_and_when_it_is_done(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(STEPS)
    run = recipe.parent / "runs/t"
    taken, frames = loop._step, []

    def seen(job: Any, state: Any, *rest: Any) -> Any:
        if state.step == 3:
            time.sleep(0.6)
        if state.step == 5:
            frames.append(watched(run, capsys))
            raise Killed
        return taken(job, state, *rest)

    def execute() -> None:
        execution.execute(graph.build(load(recipe), recipe, run.parent), Silent())

    monkeypatch.setattr(loop, "_step", seen)
    with pytest.raises(Killed):
        execute()
    (frame,) = frames
    assert "1 step done" in frame and "[2/2] sft" in frame and re.search(r"training +[345]/12 steps", frame)
    assert re.search(r"steps/s  .* left  loss \d", frame) and "tokens/s" in frame
    assert re.search(r"memory  resident [\d.]+ [MG]B", frame)
    assert re.search(r"held out loss +\d\.\d+ +[▁-█]+ +first \d\.\d+, last after step 4", frame)
    assert "asked after step 4" in frame and "\x1b" not in frame and "\u202e" not in frame
    assert "[bold red]hello[/]" in frame and "\\x1b[2J" in frame

    live = run / ".work/sft" / LIVE
    content = read_live(run / ".work/sft")
    gone = {**json.loads(Process.this().text()), "pid": 2**22 - 1, "born": "1"}
    live.write_text(json.dumps({**content, "owner": json.dumps(gone), "warnings": ["\x1b[31mlow", 7]}))
    stopped = watched(run, capsys)
    assert "stopped: its process is gone" in stopped and "\\x1b[31mlow" in stopped

    monkeypatch.setattr(loop, "_step", taken)
    execute()
    done = watched(run, capsys)
    assert "2 steps done" in done and "the last training was sft" in done and "asked after step 12" in done
    assert not list(run.rglob(LIVE))
    (run / "sft/metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo')
    (run / "sft/samples.jsonl").write_text('[]\n{"step": 3, "answers": 5}\n')
    assert "loss" in watched(run, capsys)


@pytest.mark.slow
def test_it_follows_another_process(write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe({"sft": {**STEPS["sft"], "sft": "rows.jsonl", "epochs": 400}})
    run = recipe.parent / "runs/t"
    command = [sys.executable, "-m", "openbezoar", "run", str(recipe), "--runs", str(run.parent), "--quiet"]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as other:
        try:
            deadline, frame = time.monotonic() + 120, ""
            while "loss" not in frame and time.monotonic() < deadline and other.poll() is None:
                time.sleep(0.2)
                frame = watched(run, capsys) if run.is_dir() else ""
            assert "[1/1] sft" in frame and "/2400 steps" in frame and "stopped" not in frame
        finally:
            other.kill()
    assert "stopped: its process is gone" in watched(run, capsys)


def test_a_folder_that_is_none_is_one_line_and_an_empty_one_a_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(tmp_path / "none"), "--once"])
    assert ended.value.code == 2 and "no such folder; expected a run" in capsys.readouterr().err
    assert "0 steps done" in watched(tmp_path, capsys)


def test_what_is_written_for_others_changes_nothing_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(progress: Any) -> str:
        progress.say("one")
        with progress.bar("asking", 3, "rows") as bar:
            bar.advance(3, loss=1.0)
        progress.warn("two")
        return re.sub(r"[\d.e+]+ rows/s", "N rows/s", capsys.readouterr().err)

    plain = work(PlainProgress())
    recorded = Recorded(PlainProgress(), tmp_path, {"place": "1/1"}, dict)
    assert work(recorded) == plain
    assert read_live(tmp_path)["warnings"] == ["two"] and read_live(tmp_path)["bar"]["done"] == 3
    (tmp_path / LIVE).unlink()
    nowhere = Recorded(PlainProgress(), tmp_path / "no folder", {}, dict)  # no disk to write to
    assert work(nowhere) == plain


def test_a_curve_in_a_line() -> None:
    assert sparkline([0, 7], "_.-=+*%#") == "_#"
    assert sparkline([1.0, 1.0], "_.-=+*%#") == "=="
    assert sparkline([0.0, float("nan"), 1.0], "_.-=+*%#") == "_!#"
    assert len(sparkline(list(range(1000)))) == 32 and sparkline([]) == ""
