"""What a run says while it works, and how Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FAST
from rich.console import Console
from warm import Commands

from openbezoar import progress as progress_module
from openbezoar.progress import PlainProgress, RichProgress, Silent, duration

STEPS = {
    "sft": {"sft": "rows.jsonl", "model": "base", "epochs": 8, "save_every": 1000, **FAST},
    "scores": {"evaluate": ["base", "sft"], "losses": {"own": "rows.jsonl"}},
}


class Started:
    """A command under way whose words go to a terminal of 80 columns, or into a pipe."""

    def __init__(self, commands: Commands, arguments: list[str], place: Path | None) -> None:
        """place: where the named pipe is made; None for a terminal."""
        self._said: list[bytes] = []
        if place is None:
            near, self._far = pty.openpty()
            said_to = Path(os.ttyname(self._far))
        else:
            said_to = place / f"pipe{len(list(place.iterdir()))}"
            os.mkfifo(said_to)
            near = os.open(said_to, os.O_RDONLY | os.O_NONBLOCK)
            os.set_blocking(near, True)
            self._far = os.open(said_to, os.O_WRONLY)  # so that it has no end before the command has
        self._listener = threading.Thread(target=self._listen, args=(near,), daemon=True)
        self._listener.start()
        self.program = commands.start(*arguments, env={"TERM": "xterm", "COLUMNS": "80"}, said_to=said_to, seconds=240)

    def _listen(self, near: int) -> None:
        with contextlib.suppress(OSError):  # the terminal is closed
            while text := os.read(near, 65536):
                self._said.append(text)
        os.close(near)

    def when(self, condition: Callable[[], bool]) -> None:
        """Wait for a moment in its work."""
        until = time.monotonic() + 240
        while not condition():
            assert self.program.running() and time.monotonic() < until, "it ended or hung before the moment came"
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Its exit code, and all that it said."""
        code = self.program.wait().code
        os.close(self._far)
        self._listener.join(60)
        return code, b"".join(self._said).decode()


def lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.is_file() else 0


def test_ctrl_c_on_a_terminal_and_a_signal_in_a_pipe_finish_the_step_and_the_run_goes_on_to_the_same_weights(
    write_recipe: Callable[..., Path], tmp_path: Path, commands: Commands
) -> None:
    recipe = write_recipe(STEPS)
    whole, runs = tmp_path / "whole", tmp_path / "runs"
    assert commands("run", str(recipe), "--runs", str(whole), "--to", "sft", "--quiet").code == 0
    metrics = runs / "t/.work/sft/metrics.jsonl"
    arguments = ["run", str(recipe), "--runs", str(runs), "--to", "sft"]
    done = 0
    for on_terminal in (True, False):
        started = Started(commands, arguments, None if on_terminal else tmp_path)
        started.when(lambda done=done: lines(metrics) > done + 3)  # type: ignore[misc]
        started.program.send_signal(signal.SIGINT)
        code, words = started.end()
        assert code == 130
        assert "stopping after this optimiser step" in words
        assert f"To go on: python -m openbezoar {shlex.join(arguments)}" in words.replace("\r", "")
        assert "Traceback" not in words
        assert ("\x1b[" in words) == on_terminal, "bars are for terminals"
        assert not on_terminal or words.rindex("\x1b[?25h") > words.rindex("\x1b[?25l"), "the cursor is shown again"
        assert (metrics.parent / ".resume.safetensors").is_file(), (
            "the step that was finished is saved, though its turn had not come"
        )
        assert lines(metrics) > done
        done = lines(metrics)
    assert commands(*arguments).code == 0
    assert (runs / "t/sft/adapter/adapter_model.safetensors").read_bytes() == (
        whole / "t/sft/adapter/adapter_model.safetensors"
    ).read_bytes()


def test_on_a_terminal_each_step_leaves_one_line_and_the_table_fits(
    write_recipe: Callable[..., Path], tmp_path: Path, commands: Commands
) -> None:
    recipe = write_recipe({**STEPS, "sft": {**STEPS["sft"], "epochs": 1}})
    code, said = Started(commands, ["run", str(recipe), "--runs", str(tmp_path / "runs")], None).end()
    assert code == 0
    words = said.replace("\r", "")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", words)
    assert re.search(r"✓ \[1/2\] sft \S+ (s|min) 6 steps on 2\d rows; held-out loss", " ".join(plain.split()))
    assert "2 steps done in" in plain
    table = plain[plain.index("checkpoint") :].splitlines()
    assert all(len(line) <= 80 for line in table if not line.startswith(("In brackets", "talk to it: ")))


def test_quiet_says_one_line_a_step_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    said = PlainProgress(quiet=True)
    with said.step("1/2", "sft", "sft; not run yet"), said.bar("training", 3, "steps") as bar:
        said.say("news")
        bar.advance(3, loss=1.0)
    said.warn("a warning")
    said.ended("1/2", "sft", 12.34, "3 steps")
    assert capsys.readouterr().err.splitlines() == ["a warning", "[1/2] sft  done in 12.3 s  3 steps"]


def test_a_bar_s_speed_does_not_count_what_an_earlier_try_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with PlainProgress(every=0).bar("training", 100, "steps", done=90) as bar:
        now[0] += 10
        bar.advance(5, loss=0.5)
        bar.advance(5)
    assert capsys.readouterr().err.splitlines() == [
        "  training: 95/100 steps  0.5 steps/s  10 s left  loss 0.5",
        "  training: 100/100 steps  1 steps/s  loss 0.5",
    ]


def test_silent_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    said = Silent()
    with said.step("1/1", "a", "sft"), said.bar("x", 2, "steps") as bar:
        bar.advance(2)
    said.warn("x")
    said.say("x")
    said.ended("1/1", "a", 1.0, "")
    assert capsys.readouterr() == ("", "")


def test_bars_outside_of_a_step_and_markup_in_texts_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    said = RichProgress()
    with said.bar("judge", 2, "rows") as bar:
        bar.advance(1, **{"tokens/s": 3.0})
    said.say("[bold]not markup[/bold]")
    said.ended("1/2", "[red]x", 3.0, "[/] done")
    err = capsys.readouterr().err
    assert "[bold]not markup[/bold]" in err and "[red]x" in err and "[/] done" in err


def test_a_live_bar_shows_brackets_in_its_label_as_they_are() -> None:
    said, screen = RichProgress(), io.StringIO()
    said.console = Console(file=screen, force_terminal=True, width=100)
    with said.bar("arc [ours]", 2, "rows") as bar:
        bar.advance(1)
        said.say("a line, above which the bar is drawn anew")
    assert "arc [ours]" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, ""), (None, ""), (3.21, "3.2 s"), (84.6, "85 s"), (241, "4 min"), (8000, "2.2 h"), (400_000, "4.6 days")],
)
def test_durations_are_said_in_the_unit_that_fits(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words
