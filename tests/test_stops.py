"""How a run is stopped: SIGTERM, SIGHUP and Ctrl-C, a second one, a time limit; and that the same command goes on."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import FAST, recipe_in
from warm import Commands, Running

from openbezoar.cli.app import main
from openbezoar.cli.arguments import seconds
from openbezoar.machine import stops
from openbezoar.progress import Silent

STEPS: dict[str, Any] = {
    "made": {
        "generate": "orca",
        "teacher": "base",
        "seeds": "flan.jsonl",
        "rows": 16,
        "batch": 2,
        "max_new_tokens": 8,
        "submixes": {"cot": 1},
    },
    "kept": {
        "filter": "made",
        "judge": "base",
        "mode": "probability",
        "min_rating": 1,
        "batch": 2,
        "rules": {"min_response_words": 0, "drop_unfinished": False, "drop_repetition": 1.0, "drop_echoes": False},
    },
    "sft": {"sft": "rows.jsonl", "model": "base", "epochs": 1, "save_every": 1000, "evaluate_every": 3, **FAST},
    "scores": {"evaluate": ["base", "sft"], "losses": {"own": "rows.jsonl"}, "loss_rows": 12},
    "graded": {"mt_bench": ["base"], "questions": "questions.jsonl", "judge": "base", "max_new_tokens": 8},
}
# What makes a function take longer, so that there is a moment within it; HERE is told of each call.
SLOW = """
import importlib, sys, time
module, name, seconds, here = {slow!r}
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
original = getattr(owner, last)
def slow(*args, **kwargs):
    made = original(*args, **kwargs)
    with open(here, "a") as calls:
        calls.write("x")
    time.sleep(seconds)
    return made
setattr(owner, last, slow)
for other in list(sys.modules.values()):
    if not path and vars(other).get(last) is original:
        setattr(other, last, slow)
"""
STEP = ("openbezoar.training.loop", "_step")
KINDS = {
    "made": ("openbezoar.llm.local", "LocalLLM.generate"),
    "kept": ("openbezoar.llm.local", "LocalLLM.choice_logprobs"),
    "sft": STEP,
    "scores": ("openbezoar.forest.scorer", "Scorer.logprobs"),
    "graded": ("openbezoar.llm.local", "LocalLLM.generate"),
}


@pytest.fixture(scope="module")
def place(tiny: Path, commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and in ``whole`` its run that nobody stopped."""
    folder = tmp_path_factory.mktemp("stops")
    tasks = [
        {"id": f"f{i}", "submix": "cot", "task": f"t{i % 3}", "input": f"What comes after {i}?", "target": f"{i + 1}"}
        for i in range(20)
    ]
    questions = [{"question_id": i, "category": "writing", "turns": [f"Q{i} first", f"Q{i} more"]} for i in range(3)]
    for name, rows in (("flan", tasks), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = commands("run", str(recipe_in(folder, tiny, STEPS)), "--runs", str(folder / "whole"))
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def recipe(place: Path) -> Path:
    return place / "recipe.yaml"


@pytest.fixture
def whole(place: Path) -> Path:
    return place / "whole/t"


class Slow:
    """A run in which one function takes seconds longer."""

    def __init__(self, place: Path, which: tuple[str, str], seconds: float) -> None:
        self.here = place / "calls"
        self.here.unlink(missing_ok=True)
        self.first = SLOW.format(slow=(*which, seconds, str(self.here)))

    def called(self) -> int:
        return len(self.here.read_text()) if self.here.is_file() else 0

    def when(self, calls: int, run: Running) -> None:
        """Wait for so many calls."""
        until = time.monotonic() + 120
        while self.called() < calls:
            assert run.running() and time.monotonic() < until, run.wait().err
            time.sleep(0.01)


def files(folder: Path) -> dict[str, bytes]:
    """What a step made, but for what tells times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "metrics.jsonl", "data.json")
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_training_is_as_ctrl_c(
    recipe: Path, whole: Path, tmp_path: Path, commands: Commands, number: signal.Signals
) -> None:
    arguments = ["run", str(recipe), "--to", "sft", "--runs", str(tmp_path / "runs")]
    slow = Slow(tmp_path, STEP, 0.2)
    run = commands.start(*arguments, first=slow.first)
    slow.when(3, run)
    run.send_signal(number)
    done = run.wait()
    assert done.code == 128 + number, done.err
    assert "stopping after this optimiser step; a second signal stops at once" in done.err
    assert done.err.splitlines()[-1] == (
        f"openbezoar: stopped by {number.name}; finished steps, answers and checkpoints are kept. To go on: python -m"
        f" openbezoar {shlex.join(arguments)}"
    )
    assert "Traceback" not in done.err
    work = tmp_path / "runs/t/.work/sft"
    assert (work / ".resume.safetensors").is_file(), "the step that was finished is saved before its turn"
    assert len((work / "metrics.jsonl").read_text().splitlines()) == slow.called()
    assert commands(*arguments).code == 0
    assert files(tmp_path / "runs/t/sft") == files(whole / "sft")


def test_a_signal_while_held_out_rows_are_measured_saves_the_last_step_and_stops_at_once(
    recipe: Path, whole: Path, tmp_path: Path, commands: Commands
) -> None:
    arguments = ["run", str(recipe), "--to", "sft", "--runs", str(tmp_path / "runs")]
    slow = Slow(tmp_path, KINDS["scores"], 60)
    run = commands.start(*arguments, first=slow.first.replace("time.sleep(seconds)", AFTER_FIRST))
    slow.when(2, run)
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    assert run.wait().code == 143 and time.monotonic() - began < 20
    work = tmp_path / "runs/t/.work/sft"
    assert (work / ".resume.safetensors").is_file() and len((work / "heldout.jsonl").read_text().splitlines()) == 1
    assert commands(*arguments).code == 0
    assert files(tmp_path / "runs/t/sft") == files(whole / "sft")


AFTER_FIRST = "time.sleep(seconds if len(open(here).read()) > 1 else 0)"
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"


@pytest.mark.parametrize("slowly", ["time.sleep(seconds)", IN_C], ids=["in Python", "in a library"])
def test_a_second_signal_stops_at_once(recipe: Path, tmp_path: Path, commands: Commands, slowly: str) -> None:
    slow = Slow(tmp_path, STEP, 100)
    run = commands.start(
        "run",
        str(recipe),
        "--to",
        "sft",
        "--runs",
        str(tmp_path),
        first=slow.first.replace("time.sleep(seconds)", slowly),
    )
    slow.when(1, run)
    run.send_signal(signal.SIGTERM)
    run.send_signal(signal.SIGHUP)  # as the end of a session sends both
    time.sleep(stops.SAME + 0.2)
    assert run.running(), "which is one request"
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    assert run.wait().code in (143, 129) and time.monotonic() - began < 20  # Python tells the lower one first
    assert not (tmp_path / "t/.work/sft/.resume.safetensors").is_file()


def test_hangups_that_nohup_ignores_stay_ignored(recipe: Path, tmp_path: Path, commands: Commands) -> None:
    slow = Slow(tmp_path, STEP, 0.05)
    run = commands.start(
        "run", str(recipe), "--to", "sft", "--runs", str(tmp_path),
        first=f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{slow.first}",
    )  # fmt: skip
    slow.when(1, run)
    run.send_signal(signal.SIGHUP)
    assert run.wait().code == 0


@pytest.mark.parametrize("step", KINDS)
def test_a_time_limit_stops_each_kind_of_step_before_it_and_the_run_goes_on(
    step: str, recipe: Path, whole: Path, tmp_path: Path, commands: Commands
) -> None:
    arguments = ["run", str(recipe), "--until", step, "--runs"]
    runs = tmp_path / "runs"
    for earlier in list(STEPS)[: list(STEPS).index(step)]:
        shutil.copytree(whole / earlier, runs / "t" / earlier)
    # So long that the limit comes before the last of its calls: a few in scores, four in graded.
    slow = Slow(tmp_path, KINDS[step], {"scores": 2.5, "graded": 1.2}.get(step, 0.7))
    began = time.monotonic()
    done = commands(*arguments, str(runs), "--time-limit", "6s", first=slow.first)
    assert time.monotonic() - began < 7
    assert done.code == 75, done.err
    assert slow.called() >= 1
    left, last = done.err.splitlines()[-3], done.err.splitlines()[-1]
    assert left.startswith("left, by plan's estimate: 1 of ") and f"({step})" in left
    assert last.startswith(
        "openbezoar: stopped before its time limit; finished steps, answers and checkpoints are kept"
    )
    assert last.endswith("--time-limit 6s")
    assert commands(*arguments, str(runs)).code == 0
    assert files(runs / "t" / step) == files(whole / step)


def test_a_run_ends_with_the_words_that_talk_to_its_last_model(recipe: Path, whole: Path, commands: Commands) -> None:
    runs = ["--runs", str(whole.parent)]
    assert commands("run", str(recipe), *runs).out.splitlines()[-1] == f"talk to it: openbezoar chat {whole / 'sft'}"
    assert "talk" not in commands("run", str(recipe), "--to", "kept", *runs).out, "none of its steps made one"


def test_an_answered_batch_is_not_lost_to_a_time_limit(recipe: Path, tmp_path: Path, commands: Commands) -> None:
    slow = Slow(tmp_path, KINDS["made"], 1.0)
    arguments = ["run", str(recipe), "--to", "made", "--runs", str(tmp_path / "runs")]
    assert commands(*arguments, "--time-limit", "6s", first=slow.first).code == 75
    before = slow.called()
    assert before >= 1
    again = Slow(tmp_path, KINDS["made"], 0.0)
    assert commands(*arguments, first=again.first).code == 0
    assert before + again.called() == 8, "16 rows in batches of 2, none twice"


@pytest.mark.parametrize(
    ("text", "expected"), [("11h30m", 41400), ("90m", 5400), ("45s", 45), ("1d2h", 93600), ("1.5h", 5400), (" 5s ", 5)]
)
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "0s", "-5m", "5 parsecs", "m5", "5s3h", "1e3s", "nanh", "٣h"])
def test_what_is_no_time_is_told_in_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.BadParameter):
        seconds(text)
    with pytest.raises(SystemExit) as end:
        main(["run", "demo", f"--time-limit={text}"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "--time-limit" in said and "11h30m" in said


def test_a_signal_as_listening_ends_is_a_stop_and_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What runs a command has returned already, so nothing of it catches the signal.
    monkeypatch.setattr("openbezoar.cli.app._ran", lambda arguments: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        main(["run", "demo"])
    said = capsys.readouterr().err
    assert end.value.code == 128 + signal.SIGTERM
    assert said.count("\n") == 2 and "stopped by SIGTERM" in said and said.endswith(" run demo\n")


def test_a_process_that_is_not_ours_is_left_as_it_was() -> None:
    before = {number: signal.getsignal(number) for number in (*stops.SIGNALS, signal.SIGALRM)}
    said = []
    with pytest.raises(KeyboardInterrupt), stops.finishing(said.append, "this") as held:
        signal.raise_signal(signal.SIGINT)
        assert held.requested and not said.clear()
        signal.raise_signal(signal.SIGINT)
    assert not stops.asked(), "in a notebook the next run begins anew"
    with stops.finishing(Silent().warn, "this") as held:
        assert not held.requested
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_room_before_a_limit_is_learnt_from_what_the_work_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[float] = []
    monkeypatch.setattr(stops, "_arm", armed.append)
    with stops.listening():
        stops.takes("an optimiser step", 9.0)
        assert armed == [], "without a limit nothing is to be learnt"
        stops.limit(1000.0)
        stops.takes("an optimiser step", 8.0)
        stops.takes("saving", 4.0)
        stops.takes("an optimiser step", 6.0)
        stops.begin()
        stops.limit(40_000.0)
        stops.limit(4.0)
    assert armed == [20.0, 30.0, 35.0, 20.0, 60.0, 2.0]
    assert not stops.asked()
