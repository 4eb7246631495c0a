"""Two processes with one call cache never ask the same, and what was sent and not answered is on the account."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_calls import ME, Fake, Unit, answer, ask, remembered

from openbezoar.errors import BudgetError, ModelError
from openbezoar.llm import Call, Completion, calls
from openbezoar.llm.calls import CallStore, Spent
from openbezoar.llm.owners import Process
from openbezoar.llm.side_by_side import CalledOff
from openbezoar.recipe.blocks import Budget

COST = Spent(1, 20, 10)


@contextmanager
def another(
    folder: Path, keys: list[str], then: Callable[[CallStore], Any] = lambda _: time.sleep(60)
) -> Iterator[int]:
    """Another process that claims keys and then does something; its number, once it has claimed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            store = CallStore(folder)
            assert store.claim(keys, ME, COST)
            os.write(writing, b"x")
            then(store)
        finally:
            os._exit(0)
    os.read(reading, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("unit", ["call", "row", "batch"])
def test_two_runs_side_by_side_ask_each_call_once_and_get_the_same(unit: Unit, tmp_path: Path) -> None:
    llm, texts = Fake(), [f"t{n}" for n in range(30)]
    models = [remembered(tmp_path, llm, unit) for _ in range(2)]
    answers: list[list[str]] = [[], []]
    threads = [threading.Thread(target=lambda i=i: answers[i].extend(ask(models[i], texts))) for i in range(2)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[0] == answers[1] and len(answers[0]) == 30 and len(llm.asked) + sum(llm.batches) == 30
    (spent,) = CallStore(tmp_path).accounts().values()
    assert spent == Spent(30, 210, 90)


def test_an_answer_that_another_process_waits_for_is_waited_for(tmp_path: Path) -> None:
    def answers(store: CallStore) -> None:
        time.sleep(0.3)
        store.keep({"k": [answer("theirs")]}, ME)
        time.sleep(60)

    with another(tmp_path, ["k"], answers):
        store = CallStore(tmp_path)
        assert not store.claim(["k", "l"], ME, COST) and store.claim(["l"], ME, COST)
        store.wait(["k"])
        assert store.find(["k"]) == {"k": [answer("theirs")]} and not store.claim(["k"], ME, COST)


def test_a_claim_that_is_given_up_is_free(tmp_path: Path) -> None:
    def gives_up(store: CallStore) -> None:
        store.release(["k"], sent=False)
        time.sleep(60)

    with another(tmp_path, ["k"], gives_up):
        store = CallStore(tmp_path)
        store.wait(["k"])
        assert store.claim(["k"], ME, COST) and store.accounts() == {}


@pytest.mark.parametrize("way", ["seen when it is opened", "waited for"])
def test_a_killed_process_s_claims_are_taken_over_and_its_calls_counted_at_their_worst_case(
    way: str, tmp_path: Path
) -> None:
    store = CallStore(tmp_path)
    with another(tmp_path, ["k"]) as pid:
        # under way, elsewhere
        assert not store.claim(["k"], ME, COST) and list(store.accounts().values()) == [Spent(0, 20, 10, 1)]
        os.kill(pid, signal.SIGKILL)
        while Process("", "", "", pid, "").pid and (
            Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        ):
            time.sleep(0.01)
        if way == "seen when it is opened":
            store = CallStore(tmp_path)
        else:
            store.wait(["k"])
        assert store.claim(["k"], ME, COST)
    store.keep({"k": [answer("mine")]}, ME)
    assert list(store.accounts().values()) == [Spent(1, 7 + 20, 3 + 10, 1)]


def test_one_that_is_stopped_or_out_of_sight_is_waited_for_while_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "SILENT", 0.3)
    store = CallStore(tmp_path)
    elsewhere = replace(Process.this(), host="another").text()
    for owner in ("beats", "silent"):
        store._db.execute("INSERT INTO owners VALUES (?, ?, 0)", (owner, elsewhere))
        store._db.execute("INSERT INTO claims VALUES (?, ?, 'r', 's', 'm', 1, 20, 10)", (f"k {owner}", owner))
    stop = threading.Event()

    def beat() -> None:
        heart = CallStore(tmp_path)
        while not stop.wait(0.05):
            heart._db.execute("UPDATE owners SET beat = beat + 1 WHERE owner = 'beats'")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        store.wait(["k silent"])
        assert store.claim(["k silent"], ME, COST)
        off = threading.Event()
        threading.Timer(0.8, off.set).start()
        with pytest.raises(CalledOff):
            store.wait(["k beats"], off)
    finally:
        stop.set()
        thread.join()
    store.wait(["k beats"])
    assert store.claim(["k beats"], ME, COST)


def test_a_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BEAT", 0.02)
    store = CallStore(tmp_path)
    store.claim(["k"], ME, COST)
    until = time.monotonic() + 10
    while store._db.execute("SELECT beat FROM owners").fetchone()[0] < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    store.close()
    assert CallStore(tmp_path)._db.execute("SELECT count(*) FROM owners").fetchone()[0] == 0


def test_which_processes_are_gone() -> None:
    here = Process.this()
    assert here.state() == "runs" and Process.of(here.text()) == here
    assert replace(here, born="1").state() == "gone"  # its number was given to another one
    assert replace(here, pid=2**22 + 1).state() == "gone" and replace(here, pid=2**70).state() == "gone"
    assert replace(here, boot="before").state() == "gone"
    assert (
        replace(here, host="another").state() == "out of sight"
        and replace(here, space="a container").state() == "out of sight"
    )
    assert [Process.of(text) for text in ("", "[]", "{}", json.dumps({**json.loads(here.text()), "pid": "1"}))] == [
        None
    ] * 4


def test_a_budget_knows_of_calls_that_a_kill_ended(tmp_path: Path) -> None:
    with another(tmp_path, ["a"]):
        pass
    llm = Fake()
    with pytest.raises(BudgetError, match="0 answers and 1 calls without one, 30 tokens"):
        ask(remembered(tmp_path, llm, "call", budget=Budget(tokens=30)), ["t"])
    ask(remembered(tmp_path, llm, "call", budget=Budget(tokens=31)), ["t"])
    assert len(llm.asked) == 1


class Breaks(Fake):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def answer(self, call: Call, off: threading.Event) -> Completion:
        raise self.error


@pytest.mark.parametrize(
    ("error", "unanswered"),
    [(ModelError("refused"), 0), (CalledOff(), 0), (OSError(5, "I/O"), 1), (KeyboardInterrupt(), 1)],
)
def test_what_a_refused_call_costs_and_what_an_interrupted_one(
    error: BaseException, unanswered: int, tmp_path: Path
) -> None:
    with pytest.raises(type(error)):
        ask(remembered(tmp_path, Breaks(error), "call"), ["t"])
    store = CallStore(tmp_path)
    assert [spent.unanswered for spent in store.accounts().values()] == [1] * unanswered
    assert ask(remembered(tmp_path, Fake(), "call"), ["t"])


def test_calls_under_way_when_the_file_is_let_go_are_counted(tmp_path: Path) -> None:
    store = CallStore(tmp_path)
    store.claim(["k"], ME, COST)
    store.close()
    assert list(CallStore(tmp_path).accounts().values()) == [Spent(0, 20, 10, 1)]
