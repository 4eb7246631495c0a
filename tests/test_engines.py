"""Managed engines: every moment of an engine's life, with a program that goes wrong on demand (``fake_engine.py``)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, context_of, recipe_in

from openbezoar.engine import execution, graph
from openbezoar.errors import ModelError, UserError
from openbezoar.llm import Completion, Sampling, open_llm
from openbezoar.llm.engines import managed, servers
from openbezoar.llm.engines.kept import ENGINES, FOLDER, KeptEngines, Lent
from openbezoar.llm.engines.programs import PROGRAMS, width_of
from openbezoar.llm.engines.servers import Patience
from openbezoar.llm.side_by_side import CalledOff
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import LocalModel, RewardModel
from openbezoar.recipe.file import load
from openbezoar.rows.records import Turn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

QUICK = Patience(ready=30, end=0.6, look=0.1, answer=0.5, silent=0.3, misses=2, request=30, restarts=2)
ENGINE = Path(__file__).with_name("fake_engine.py")


class Fake:
    """The fake engine as a program that is found, with what it does and what it has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan, self.seen = folder, folder / "engine.json", folder / "engine.seen"
        self.program = folder / "bin" / "vllm"
        self.program.parent.mkdir()
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {ENGINE} "$@"\n')
        self.program.chmod(0o755)

    def does(self, **plan: Any) -> None:
        self.plan.write_text(json.dumps(plan))

    def lines(self, kind: str) -> list[dict[str, Any]]:
        written = self.seen.read_text().splitlines() if self.seen.exists() else []
        return [line for text in written if kind in (line := json.loads(text))]

    @property
    def starts(self) -> list[dict[str, Any]]:
        return self.lines("start")

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Those that were answered, without the probe of a start."""
        return [line for line in self.lines("call") if not line["body"].get("return_token_ids")]

    def running(self) -> list[int]:
        """Processes that have this engine's plan in their environment."""
        pids = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit() and int(place.name) != os.getpid():
                with suppress(OSError):
                    if (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                        continue
                    if f"FAKE_ENGINE={self.plan}".encode() in (place / "environ").read_bytes().split(b"\0"):
                        pids.append(int(place.name))
        return pids

    def engines(self) -> list[int]:
        """Of these, the engine itself and its children."""
        return [pid for pid in self.running() if b"OPENBEZOAR_ENGINE=" in Path(f"/proc/{pid}/environ").read_bytes()]

    def left(self, seconds: float = 10.0) -> list[int]:
        """Which of them are still there after a while: on a busy machine one that was killed takes its time to go."""
        until = time.monotonic() + seconds
        while (pids := self.engines()) and time.monotonic() < until:
            time.sleep(0.05)
        return pids


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    made = Fake(tmp_path)
    monkeypatch.setenv("OPENBEZOAR_VLLM", str(made.program))
    monkeypatch.setenv("FAKE_ENGINE", str(made.plan))
    monkeypatch.setattr(managed, "PATIENCE", QUICK)
    monkeypatch.setattr("openbezoar.llm.server.pause", lambda tries, asked, seed: 0.001)
    yield made
    ENGINES.stop_all()
    left = made.left(5)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], "an engine outlived its test"


@pytest.fixture
def opened(fake: Fake, tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    """Opens the tiny model behind the call cache with that engine; ``said`` has the lines."""

    def do(**model: Any) -> Any:
        spec = {"model": str(tiny), "dtype": "float32", "engine": "vllm", **model}
        context = context_of(tmp_path, {"sft": "rows.jsonl", "model": "base"}, top={"models": {"base": spec}})
        said: list[str] = []
        context.progress.say = said.append
        context.progress.warn = said.append
        llm = open_llm("base", context)
        llm.said = said  # type: ignore[attr-defined]
        return llm

    return do


def ask(llm: Any, n: int = 4, first: int = 0, **sampling: Any) -> list[Completion]:
    conversations = [[Turn("user", f"Name river {i}.")] for i in range(first, first + n)]
    return list(llm.chat(conversations, Sampling(8, **sampling), list(range(first, first + n))))


def told(llm: Any, words: str) -> list[str]:
    return [line for line in llm.said if words in line]


def test_an_engine_starts_at_the_first_call_that_the_cache_cannot_answer(fake: Fake, opened: Any) -> None:
    with closing(opened()) as llm:
        assert fake.starts == []
        answers = ask(llm)
        assert len(fake.starts) == 1 and len(set(answers)) == 4
    assert fake.left() == [], "without a run it is stopped when it is given back"
    with closing(opened()) as llm:
        assert ask(llm) == answers
        assert len(fake.starts) == 1, "all of it was in the cache"
        ask(llm, 2, first=3)
    assert len(fake.starts) == 2 and len(fake.calls) == 5


def test_it_is_sent_the_ids_of_the_project_s_own_prompt(fake: Fake, opened: Any) -> None:
    with closing(opened(prompt={"template": "openbezoar"})) as llm:
        (answer,) = ask(llm, 1, temperature=0.7, top_p=0.9)
        formatter = llm.formatter
    ids = formatter.prompt_ids([Turn("user", "Name river 0.")])
    (call,) = fake.calls
    assert call["call"] == ids and answer.prompt_tokens == len(ids)
    assert call["body"]["stop_token_ids"] == list(formatter.stop_ids())
    assert "### Instruction:" in call["body"]["stop"] and call["body"]["seed"] == 0
    assert call["body"]["temperature"] == 0.7 and call["body"]["top_p"] == 0.9
    start = fake.starts[0]["argv"]
    assert start[0] == "serve" and start[start.index("--dtype") + 1] == "float32" and "--generation-config" in start


def test_a_prompt_that_fills_its_window_is_not_sent_and_an_answer_ends_with_it(fake: Fake, opened: Any) -> None:
    fake.does(window=200)
    with closing(opened()) as llm:
        short, long = [Turn("user", "Hi")], [Turn("user", "Name a river. " * 90)]
        prompt = len(llm.formatter.prompt_ids(short))
        answers = llm.chat([short, long], Sampling(500), [1, 2])
    assert [answer.refused for answer in answers] == ["", "too long"]
    assert [call["body"]["max_tokens"] for call in fake.calls] == [200 - prompt]


def test_it_is_sent_four_stop_strings_at_most_none_of_a_special_token(fake: Fake, opened: Any) -> None:
    llm = opened()
    special = llm.formatter.tokenizer.special_tokens_map["eos_token"]
    stop = (special, "#1", "#2", "#3", "#4", " ")
    answers = ask(llm, 2, stop=stop)
    llm.close()
    sent = [call["body"]["stop"] for call in fake.calls]
    assert sent == [["#1", "#2", "#3", "#4"]] * 2, "the token's id is in stop_token_ids"
    assert all(answer.text and " " not in answer.text and answer.left_out == () for answer in answers), "cut here"


def test_more_requests_are_under_way_where_it_has_room_for_more() -> None:
    llama, vllm = PROGRAMS["llama.cpp"], PROGRAMS["vllm"]
    assert width_of(llama, []) == 8 and width_of(llama, ["-np", "32"]) == 32
    assert width_of(llama, ["--parallel=16"]) == 16 and width_of(llama, ["-np", "1"]) == 8
    assert width_of(vllm, ["--max-num-seqs", "256"]) == 256 and width_of(vllm, ["--max-num-seqs", "many"]) == 128


def test_a_least_length_is_the_engine_s_to_keep() -> None:
    assert PROGRAMS["vllm"].more([2], 5, 9) == {"stop_token_ids": [2], "min_tokens": 5}
    assert "ignore_eos" not in PROGRAMS["llama.cpp"].more([2], 5, 9)
    assert PROGRAMS["llama.cpp"].more([2], 9, 9)["ignore_eos"] is True


def test_a_slow_start_is_waited_for(fake: Fake, opened: Any) -> None:
    fake.does(slow=1.2)
    begun = time.monotonic()
    with closing(opened()) as llm:
        ask(llm)
        assert told(llm, "vllm answers after") and time.monotonic() - begun > 1.2 and len(fake.starts) == 1


def test_one_that_dies_at_its_start_is_one_line_with_its_last_words(fake: Fake, opened: Any) -> None:
    fake.does(dies_at_start=7)
    with closing(opened()) as llm, pytest.raises(ModelError) as error:
        ask(llm)
    assert "vllm ended before it answered (exit 7)" in str(error.value)
    assert "CUDA out of memory" in str(error.value) and "\n" not in str(error.value)


def test_one_that_does_not_answer_in_time_is_one_line(fake: Fake, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed, "PATIENCE", Patience(ready=0.5, end=0.3))
    fake.does(slow=30)
    with closing(opened()) as llm, pytest.raises(ModelError, match=r"does not answer within 0\.5 s: loading"):
        ask(llm)
    assert fake.left() == []


@pytest.mark.parametrize("how", ["dies_at", "hangs_at"])
def test_one_that_ends_or_hangs_at_a_call_is_started_again(how: str, fake: Fake, opened: Any) -> None:
    fake.does(**{how: 5})
    with closing(opened()) as llm:
        fresh = ask(llm, 12, first=20)
        assert told(llm, "ended by itself" if how == "dies_at" else "started again, 1 of 2 times")
    assert len(fake.starts) == 2 and all(answer.finish == "stop" for answer in fresh)
    paid = [json.dumps(call["call"]) for call in fake.calls]
    assert len(paid) == len(set(paid)) == 12, "no answered call is asked again"


def test_one_that_takes_its_time_to_start_again_is_not_taken_for_one_that_hangs(
    fake: Fake, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # looks that are so far between that the end of the first start falls between two of them
    monkeypatch.setattr(managed, "PATIENCE", replace(QUICK, look=0.8, silent=0.1, misses=1))
    fake.does(dies_at=5, slow_again=2.5)
    with closing(opened()) as llm:
        answers = ask(llm, 12)
    assert len(fake.starts) == 2 and all(answer.finish == "stop" for answer in answers)


def test_one_that_ends_again_and_again_is_given_up_in_one_line_and_its_answers_are_kept(
    fake: Fake, opened: Any
) -> None:
    fake.does(dies_at=4, all=True)
    with closing(opened()) as llm, pytest.raises(ModelError) as error:
        ask(llm, 40)
    assert "after it was started again 2 times" in str(error.value) and "illegal memory access" in str(error.value)
    assert len(fake.starts) == 3
    answered = len(fake.calls)
    fake.does()
    with closing(opened()) as llm:
        ask(llm, 40)
    assert answered >= 3 and len(fake.calls) == 40, "what was answered before was not asked again"


def test_one_that_is_deaf_is_killed_and_what_it_left_is_found(fake: Fake, opened: Any) -> None:
    fake.does(deaf=True, child=True)
    llm = opened()
    ask(llm)
    (child,) = fake.lines("child")
    assert child["child"] in fake.engines() and fake.starts[0]["start"] in fake.engines()
    llm.close()
    assert fake.left() == [] and told(llm, "did not end within 0.6 s and was killed")


@pytest.mark.parametrize("child", ["marked", "nameless"])
def test_a_child_left_behind_by_one_that_obeys_is_stopped(child: str, fake: Fake, opened: Any) -> None:
    fake.does(child=child)
    llm = opened()
    ask(llm)
    (lent,) = ENGINES.lent.values()
    (left,) = (line["child"] for line in fake.lines("child"))
    assert {left, fake.starts[0]["start"]} == set(lent.servers[0].pids)
    llm.close()
    assert fake.left() == [] and left not in fake.running() and told(llm, "left 1 processes behind")


@pytest.mark.parametrize("waits", [False, True])
def test_the_first_process_is_asked_before_its_children_which_it_may_end_itself(
    waits: bool, fake: Fake, opened: Any
) -> None:
    fake.does(worker=True, deaf_to_one=waits)
    llm = opened()
    ask(llm)
    llm.close()
    (told_by,) = fake.lines("worker")
    assert told_by["there"] is not waits, "its worker is asked too where it waits for that"
    assert fake.left() == [] and told_by["worker"] not in fake.running() and not told(llm, "behind")


def test_a_stolen_port_is_answered_by_another_one(fake: Fake, opened: Any) -> None:
    fake.does(thief=True)

    def steal() -> None:
        wait_until(lambda: fake.starts)
        thief.server_address = (servers.HOST, fake.starts[0]["port"])
        thief.server_bind()
        thief.server_activate()
        thief.serve_forever(0.05)

    with ThreadingHTTPServer(("", 0), BaseHTTPRequestHandler, bind_and_activate=False) as thief:
        stealing = threading.Thread(target=steal, daemon=True)
        stealing.start()
        with closing(opened()) as llm:
            answers = ask(llm)
        thief.shutdown()
        stealing.join()
    first, second = fake.starts
    assert first["port"] != second["port"] and all(answer.finish == "stop" for answer in answers)
    assert not told(llm, "started again")


def test_a_tokenizer_that_is_another_one_is_said_once(fake: Fake, opened: Any) -> None:
    fake.does(counts=1)
    with closing(opened()) as llm:
        ask(llm)
        ask(llm, first=10)
        (line,) = told(llm, "its tokenizer is not the model's")
    assert "counts" in line and "tokens in a prompt of" in line


def test_each_gpu_has_an_engine_of_its_own(fake: Fake, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    fake.does(takes=0.05)
    with closing(opened(gpus="all")) as llm:
        ask(llm, 24)
    assert sorted(start["gpu"] for start in fake.starts) == ["2", "5"]
    assert fake.left() == []
    with closing(opened(gpus=3)) as llm, pytest.raises(ModelError, match="gpus: 3, and this machine has 2"):
        ask(llm, first=50)


def test_probabilities_are_the_forest_s(fake: Fake, opened: Any) -> None:
    with closing(opened()) as llm:
        weighed = llm.choice_logprobs([[Turn("user", "Is the sea blue?")]], "", ["Yes", "No"])
    assert fake.starts == [] and len(weighed[0]) == 2
    with closing(opened(engine="forest")) as llm:
        assert llm.choice_logprobs([[Turn("user", "Is the sea blue?")]], "", ["Yes", "No"]) == weighed


def test_answers_of_engines_are_kept_apart(fake: Fake, opened: Any) -> None:
    with closing(opened()) as llm:
        by_engine = ask(llm, 1)
    with closing(opened(args=["--quantization", "fp8"])) as llm:
        ask(llm, 1)
    assert len(fake.starts) == 2 and fake.starts[1]["argv"][-2:] == ["--quantization", "fp8"]
    with closing(opened(engine="auto")) as llm:  # on a CPU the forest
        assert ask(llm, 1)[0].text != by_engine[0].text
    assert len(fake.starts) == 2


def test_what_a_recipe_may_not_say() -> None:
    with pytest.raises(ValueError, match="name it as engine"):
        LocalModel(model="x", args=["--a"])
    with pytest.raises(ValueError, match="read by the forest"):
        RewardModel(reward="x", engine="vllm")


def test_an_argument_that_is_ours_is_refused(opened: Any) -> None:
    with closing(opened(args=["--port", "80"])) as llm, pytest.raises(UserError, match="'--port' is not for a recipe"):
        ask(llm, 1)


def test_one_that_is_not_there_is_named(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBEZOAR_VLLM", "/nowhere")
    with closing(opened()) as llm, pytest.raises(ModelError, match=r"\$OPENBEZOAR_VLLM is '/nowhere'"):
        ask(llm, 1)
    monkeypatch.delenv("OPENBEZOAR_VLLM")
    monkeypatch.setenv("PATH", "/nowhere")
    with closing(opened()) as llm, pytest.raises(ModelError, match="engine 'vllm' is not installed; get it by"):
        ask(llm, 1)


def test_another_program_on_the_port_is_not_taken_for_it() -> None:
    port = servers.free_port()
    assert not servers.listens(port, [os.getpid()])
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
        s.listen()
        assert servers.listens(port, [os.getpid()]) and not servers.listens(port, [os.getppid()])


# ------------------------------------------------------------------------------------ whole runs

ASKS = {"failures": ["base"], "instructions": "rows.jsonl", "rows": 4, "max_new_tokens": 8, "systems": {}}
TRAINS = {"sft": "rows.jsonl", "model": "base", **FAST, "epochs": 1}
FIRST = """
from openbezoar.llm.engines import managed
from openbezoar.llm.engines.servers import Patience
managed.PATIENCE = Patience(ready=60, end=0.6, look=0.1, answer=1.0, silent=1.0, misses=2, request=60, restarts=2)
"""


def recipe_of(folder: Path, tiny: Path, steps: dict[str, Any], **top: Any) -> Path:
    model = {"model": str(tiny), "dtype": "float32", "engine": "vllm"}
    return recipe_in(folder, tiny, steps, models={"base": model}, **top)


def test_it_is_kept_for_the_next_step_and_gone_before_training_loads(
    fake: Fake, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbezoar.models import load as loading

    standing: list[list[int]] = []
    monkeypatch.setattr(loading, "before_loading", [*loading.before_loading, ENGINES.make_room])
    loading.before_loading.append(lambda: standing.append(fake.engines()))
    steps = {
        "first": ASKS,
        "second": {**ASKS, "max_new_tokens": 9},
        "tuned": TRAINS,
        "third": {**ASKS, "failures": ["tuned"]},
    }
    path = recipe_of(tmp_path, tiny, steps)
    execution.execute(graph.build(load(path), path, tmp_path / "runs"), PlainProgress(quiet=True))
    assert standing and all(pids == [] for pids in standing), "no process of an engine while weights are loaded"
    before, after = fake.starts
    assert len({call["call"].__repr__() for call in fake.calls}) == 4
    assert str(before["argv"][1]) == str(tiny), "a model as it came is served from where it lies"
    merged = Path(after["argv"][1])
    assert merged.parent == tmp_path / "runs/t" / FOLDER / "models" and merged.name.startswith("tuned-")
    assert not merged.exists() and fake.left() == [], "nothing is left after the run"
    assert "loading the weights" in (tmp_path / "runs/t" / FOLDER / "base-0.log").read_text()
    manifest = json.loads((tmp_path / "runs/t/third/manifest.json").read_text())
    assert manifest["parts"]["engines"] == {"tuned": {"engine": "vllm", "args": []}}
    assert "engines" not in json.loads((tmp_path / "runs/t/tuned/manifest.json").read_text())["parts"]


def test_what_is_served_merged_is_the_model(fake: Fake, tiny: Path, tmp_path: Path) -> None:
    import torch

    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.llm.engines.weights import readable
    from openbezoar.models.load import load_for_inference, load_tokenizer
    from openbezoar.models.references import Checkpoint, checkpoint_of_step

    path = recipe_of(tmp_path, tiny, {"tuned": TRAINS})
    execution.execute(graph.build(load(path), path, tmp_path / "runs"), PlainProgress(quiet=True))
    checkpoint = checkpoint_of_step("tuned", tmp_path / "runs/t")
    formatter = Formatter(load_tokenizer(checkpoint.folder()), checkpoint.prompt)
    folder = readable(checkpoint, "folder", formatter, tmp_path / "served")
    assert readable(checkpoint, "folder", formatter, tmp_path / "served") == folder
    ids = torch.tensor([formatter.prompt_ids([Turn("user", "Name a river.")])])
    one, _ = load_for_inference(checkpoint)
    other, _ = load_for_inference(Checkpoint("m", str(folder), (), "none", "float32", checkpoint.prompt))
    with torch.no_grad():
        assert torch.allclose(one(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-4)
    file = readable(checkpoint, "gguf", formatter, tmp_path / "served")
    assert file.read_bytes()[:4] == b"GGUF" and not (file.parent / "merged").exists()


def answered(runs: Path) -> int:
    import sqlite3

    with closing(sqlite3.connect(runs / ".calls.sqlite")) as db:
        return int(db.execute("SELECT count(*) FROM calls").fetchone()[0])


def wait_until(what: Callable[[], Any], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    assert what()


@pytest.mark.parametrize("watcher_too", [False, True], ids=["us", "us and the watcher"])
def test_a_kill_of_us_leaves_nothing_and_no_answered_call_is_paid_twice(
    watcher_too: bool, fake: Fake, tiny: Path, tmp_path: Path, commands: Any
) -> None:
    fake.does(takes=0.2, child=True)
    path = recipe_of(tmp_path, tiny, {"asked": {**ASKS, "rows": 20}})
    environment = {name: os.environ[name] for name in ("OPENBEZOAR_VLLM", "FAKE_ENGINE")}
    arguments = ("run", str(path), "--runs", str(tmp_path / "runs"), "--quiet")
    running = commands.start(*arguments, first=FIRST, env=environment)
    wait_until(lambda: len(fake.calls) >= 5)
    watchers = set(fake.running()) - set(fake.engines()) - {running.pid}
    for pid in [*(watchers if watcher_too else ()), running.pid]:
        os.kill(pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    if not watcher_too:
        wait_until(lambda: fake.left() == [], 8)
        assert not list((tmp_path / "runs/t" / FOLDER).glob("*.json.*"))
    else:
        wait_until(lambda: fake.starts[0]["start"] not in fake.engines(), 8)
        assert fake.engines() == [fake.lines("child")[0]["child"]]  # deaf, in a session of its own, and nobody's
    kept, before = answered(tmp_path / "runs"), len(fake.calls)
    fake.does(takes=0.0)
    done = commands(*arguments, first=FIRST, env=environment)
    assert done.code == 0, done.err
    assert fake.left() == [] and not list((tmp_path / "runs/t" / FOLDER).glob("*.json"))
    assert 0 < kept <= before and len(fake.calls) - before == answered(tmp_path / "runs") - kept == 20 - kept


def test_two_runs_at_once_have_an_engine_each(fake: Fake, tiny: Path, tmp_path: Path, commands: Any) -> None:
    fake.does(takes=0.1)
    path = recipe_of(tmp_path, tiny, {"asked": ASKS})
    environment = {name: os.environ[name] for name in ("OPENBEZOAR_VLLM", "FAKE_ENGINE")}
    running = commands.start(
        "run", str(path), "--runs", str(tmp_path / "there"), "--quiet", first=FIRST, env=environment
    )
    execution.execute(graph.build(load(path), path, tmp_path / "here"), PlainProgress(quiet=True))
    assert running.wait().code == 0
    one, other = fake.starts
    assert one["port"] != other["port"] and fake.left() == []
    numbers = [
        json.loads((tmp_path / runs / "t/asked/manifest.json").read_text())["numbers"] for runs in ("here", "there")
    ]
    assert numbers[0] == numbers[1]


def test_a_ctrl_c_stops_it(fake: Fake, tiny: Path, tmp_path: Path, commands: Any) -> None:
    fake.does(takes=0.3)
    path = recipe_of(tmp_path, tiny, {"asked": {**ASKS, "rows": 20}})
    environment = {name: os.environ[name] for name in ("OPENBEZOAR_VLLM", "FAKE_ENGINE")}
    running = commands.start(
        "run", str(path), "--runs", str(tmp_path / "runs"), "--quiet", first=FIRST, env=environment
    )
    wait_until(lambda: len(fake.calls) >= 2)
    os.killpg(running.pid, signal.SIGINT)
    done = running.wait()
    assert done.code == 130 and "Traceback" not in done.err and fake.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["first start", "deaf, with a child", "start after an end"])
def test_a_signal_while_it_starts_ends_all_of_it_and_the_run_goes_on(
    number: signal.Signals, moment: str, fake: Fake, tiny: Path, tmp_path: Path, commands: Any
) -> None:
    again = moment == "start after an end"
    odd = {"deaf": True, "child": True} if moment == "deaf, with a child" else {}
    fake.does(**({"dies_at": 4, "slow_again": 600} if again else {"slow": 600, **odd}))
    path = recipe_of(tmp_path, tiny, {"asked": {**ASKS, "rows": 8}})
    environment = {name: os.environ[name] for name in ("OPENBEZOAR_VLLM", "FAKE_ENGINE")}
    arguments = ("run", str(path), "--runs", str(tmp_path / "runs"), "--quiet")
    running = commands.start(*arguments, first=FIRST, env=environment)
    wait_until(lambda: fake.starts)
    if again:
        wait_until(lambda: len(fake.starts) == 2)
    if odd:
        wait_until(lambda: fake.lines("child"))
    os.killpg(running.pid, number)
    done = running.wait()
    assert done.code == 128 + number and "Traceback" not in done.err
    assert fake.left() == [] and not list((tmp_path / "runs/t" / FOLDER).glob("*.json"))
    paid, starts = len(fake.calls), len(fake.starts)
    kept = answered(tmp_path / "runs") if paid else 0
    fake.does()
    done = commands(*arguments, first=FIRST, env=environment)
    assert done.code == 0, done.err
    assert len(fake.starts) == starts + 1 and len(fake.calls) == paid + 8 - kept and kept <= paid
    assert bool(paid) == again


def test_a_server_is_not_started_after_all_were_called_off(fake: Fake, tmp_path: Path) -> None:
    def server(name: str) -> servers.EngineServer:
        return servers.EngineServer(
            f"model '{name}'", PROGRAMS["vllm"], lambda port: ["/nowhere/vllm"], tmp_path / name, {}, QUICK, print
        )

    off = threading.Event()
    off.set()
    with pytest.raises(CalledOff):
        server("late").open(off)
    assert not (tmp_path / "late").exists() and fake.starts == []
    with pytest.raises(ModelError, match="cannot be started"):
        Lent("m", [server("one"), server("two")]).open(off := threading.Event())
    assert off.is_set(), "one that cannot start calls the others off"


# --------------------------------------------------------------------------- installing, planning


def test_an_engine_is_installed_into_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openbezoar.llm.engines.install import install

    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    for variable in ("OPENBEZOAR_LLAMACPP", "OPENBEZOAR_VLLM"):
        monkeypatch.delenv(variable, raising=False)
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)

    program = install("llama.cpp", False, lambda line: None, run)
    assert program == tmp_path / "engines/llama.cpp/bin/llama-server" and os.access(program, os.X_OK)
    assert PROGRAMS["llama.cpp"].find() == str(program)
    assert commands[0][:3] == [sys.executable, "-m", "venv"]
    assert commands[1][0] == str(tmp_path / "engines/llama.cpp/bin/python") and "xllamacpp" in commands[1][-1]

    def fails(command: list[str]) -> None:
        raise UserError("no network")

    with pytest.raises(UserError, match="no network"):
        install("llama.cpp", False, lambda line: None, fails)
    assert PROGRAMS["llama.cpp"].find() == str(program), "the one that was there stays"
    with pytest.raises(UserError, match=r"brought no vllm"):
        install("vllm", True, lambda line: None, run)
    assert PROGRAMS["vllm"].find() is None
    program = install("vllm", False, lambda line: None, run)
    assert "--yes" in commands[-1] and "torchvision" in commands[-1]
    python = program.with_name("python")
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    said = subprocess.run([program, "serve", "a model", "--port", "1"], capture_output=True, text=True, check=True)
    assert said.stdout == "-m vllm.entrypoints.openai.api_server --model a model --port 1\n"
    with pytest.raises(UserError, match=r"expected one of vllm, llama\.cpp"):
        install("ollama", False, lambda line: None, run)


SHAPE = {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "mlp": 14336, "vocabulary": 128256}


def planned(folder: Path, tiny: Path, models: dict[str, Any], device: str, **step: Any) -> tuple[Any, list[str]]:
    from openbezoar.machine.devices import device_named
    from openbezoar.plan import concerns, estimates

    (folder / "topics.jsonl").write_text('{"topic": "rivers"}\n')
    asked = {"generate": "lamini", "teacher": "teacher", "rows": 8, "seeds": "rows.jsonl", **step}
    path = recipe_in(folder, tiny, {"rows": asked}, models=models)
    plan = graph.build(load(path), path, folder / "runs")
    where = device_named(device)
    made = estimates.estimate(plan, where)
    return made["rows"], [str(one) for one in concerns.concerns(plan, made, where) if one.kind == "memory"]


def test_a_plan_knows_an_engine_s_memory_and_what_does_not_fit_beside_it(tiny: Path, tmp_path: Path) -> None:
    teacher = {"model": "org/teacher", "shape": SHAPE, "engine": "vllm"}
    judge = {"model": "org/judge", "shape": {**SHAPE, "layers": 16}, "engine": "forest"}
    cost, said = planned(tmp_path, tiny, {"teacher": teacher}, "a100")
    weights, keys = 2 * 8.03e9, 8192 * 32 * 2 * 8 * 128 * 2
    assert cost.memory_bytes == pytest.approx(weights + keys + 2.1e9, rel=0.02) and cost.seconds is None
    assert said == []
    _, said = planned(tmp_path, tiny, {"teacher": teacher}, "t4")
    assert len(said) == 1 and "does not fit" in said[0] and "its engine" in said[0]
    two = {"teacher": teacher, "judge": judge}
    _, said = planned(tmp_path, tiny, two, "a100", samples=2, by="judge")
    assert len(said) == 1 and "vllm takes 85% of A100 for 'teacher'" in said[0] and "'judge'" in said[0]
    two["teacher"] = {**teacher, "args": ["--gpu-memory-utilization", "0.6"]}
    assert planned(tmp_path, tiny, two, "a100-80gb", samples=2, by="judge")[1] == []


def test_runs_that_overlap_in_one_process_leave_no_engine_kept(tmp_path: Path) -> None:
    kept = KeptEngines()
    one, other = kept.keeping(tmp_path / "one"), kept.keeping(tmp_path / "other")
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert kept.runs == 1, "the other run goes on"
    other.__exit__(None, None, None)
    assert kept.runs == 0, "what is given back from now on is stopped"
