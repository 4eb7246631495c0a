"""The call cache, budgets, threads side by side and windows: what was answered is never asked
again, and nothing is overdrawn.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import save

from openbezoar.cli.app import main
from openbezoar.errors import BudgetError, ModelError, RunError
from openbezoar.llm import Call, Completion, Sampling, samples
from openbezoar.llm.budget import SpendingLimits, _Limit, worst_case
from openbezoar.llm.cached import CachedLLM
from openbezoar.llm.calls import FILE, CallStore, Spender
from openbezoar.llm.calls_tables import seal
from openbezoar.llm.endpoints import Clock, Endpoint, Endpoints
from openbezoar.llm.side_by_side import CalledOff, side_by_side
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import Budget, Price, PromptSpec
from openbezoar.rows.records import Turn

ME = Spender("run", "step", "m")
WARM = Sampling(10, 0.8)


def answer(text: str, read: int = 7, written: int = 3) -> Completion:
    return Completion(text, "stop", read, written)


class Fake:
    """Answers like a server one call at a time, or like a local model a batch at a time; notes what it was asked."""

    name, width = "m", 4

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[Call] = []
        self.batches: list[int] = []
        self.fail_at = fail_at
        self.most = self.under_way = 0
        self.lock = threading.Lock()

    def answer(self, call: Call, off: threading.Event) -> Completion:
        with self.lock:
            if self.fail_at is not None and len(self.asked) >= self.fail_at:
                raise ModelError("gone")
            self.asked.append(call)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.001)
        with self.lock:
            self.under_way -= 1
        return answer(f"{call.prompt}/{call.seed}")

    def chat(
        self, conversations: Sequence[Sequence[Turn]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        self.batches.append(len(conversations))
        return [
            answer(f"{c[-1].content}/{seed}/{len(conversations)}") for c, seed in zip(conversations, seeds, strict=True)
        ]

    def complete(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return self.chat([[Turn("user", p)] for p in prompts], sampling, seeds)

    def choice_logprobs(
        self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]
    ) -> list[list[float]]:
        self.batches.append(len(conversations))
        return [[-1.0, float("-inf")] for _ in conversations]

    def close(self) -> None:
        pass


Unit = Literal["call", "row", "batch"]


def remembered(
    folder: Path, llm: Fake, unit: Unit, identity: Any = "x", budget: Budget | None = None, price: Price | None = None
) -> CachedLLM:
    store = CallStore(folder)
    limits = [_Limit("steps.step.budget", budget, "step")] if budget else []
    return CachedLLM(
        "m", identity, lambda: llm, store, SpendingLimits(store, ME, limits, {"m": price or Price()}), unit
    )


def ask(model: CachedLLM, texts: Sequence[str], sampling: Sampling = WARM, seed: int = 100) -> list[str]:
    return [
        c.text for c in model.chat([[Turn("user", t)] for t in texts], sampling, [seed + i for i in range(len(texts))])
    ]


# ------------------------------------------------------------------------------- the file


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [
        Completion("half \ud83d a pair\n\x00", "length", 5, 6, (-0.5, float("-inf")), 1.25),
        Completion("4", "stop", 5, 6, thoughts="2 + 2", left_out=("seed",), notes=("a note",)),
        answer(""),
    ]
    store = CallStore(tmp_path)
    assert store.keep({"k": rows}, ME) == {"k": rows}
    store.close()
    again = CallStore(tmp_path).find(["k", "unknown"])
    assert again == {"k": rows} and again["k"][0].seconds == 1.25


def test_an_answer_that_was_kept_before_a_field_came_is_read(tmp_path: Path) -> None:
    store = CallStore(tmp_path)
    store.keep({"k": [answer("old")]}, ME)
    older = {"text": "old", "finish": "stop", "prompt_tokens": 7, "tokens": 3, "logprobs": None, "seconds": 0.0}
    with sqlite3.connect(tmp_path / FILE) as db:
        text = json.dumps([older])
        db.execute("UPDATE calls SET answers = ?, digest = ?", (text, seal("k", text.encode())))
    assert store.find(["k"]) == {"k": [answer("old")]}


def test_an_answer_is_readable_by_another_connection_as_soon_as_it_is_kept(tmp_path: Path) -> None:
    store, other = CallStore(tmp_path), CallStore(tmp_path)
    for n in range(5):
        store.keep({f"k{n}": [answer(str(n))]}, ME)
        assert other.find([f"k{n}"])[f"k{n}"][0].text == str(n)


def test_the_first_of_two_answers_stays_and_both_are_on_the_account(tmp_path: Path) -> None:
    one, two = CallStore(tmp_path), CallStore(tmp_path)
    one.keep({"k": [answer("first")]}, ME)
    assert two.keep({"k": [answer("second")]}, ME)["k"][0].text == "first"
    (spent,) = two.accounts().values()
    assert (spent.calls, spent.prompt_tokens, spent.tokens) == (2, 14, 6)


def test_many_threads_and_connections_write_at_once_without_a_loss(tmp_path: Path) -> None:
    stores = [CallStore(tmp_path) for _ in range(3)]
    side_by_side(60, lambda n, off: stores[n % 3].keep({f"k{n}": [answer(str(n))]}, ME), 8, name="t")
    found = CallStore(tmp_path).find([f"k{n}" for n in range(60)])
    assert {key: rows[0].text for key, rows in found.items()} == {f"k{n}": str(n) for n in range(60)}


def test_more_keys_than_one_query_takes_are_found(tmp_path: Path) -> None:
    store = CallStore(tmp_path)
    store.keep({f"k{n}": [answer(str(n))] for n in range(1203)}, ME)
    assert len(store.find([f"k{n}" for n in range(1300)])) == 1203


def test_pruning_forgets_by_age_and_model_but_not_what_was_spent(tmp_path: Path) -> None:
    store = CallStore(tmp_path)
    store.keep({"a": [answer("a")]}, ME)
    store.keep({"b": [answer("b")]}, replace(ME, model="other"))
    assert store.prune(days=1) == 0 and store.prune(0, "other") == 1
    assert store.find(["a", "b"]).keys() == {"a"} and [(m, n) for m, n, _ in store.size()] == [("m", 1)]
    assert store.prune() == 1 and len(store.accounts()) == 2


def test_a_file_that_is_no_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("not a data base, " * 100)
    with pytest.raises(RunError, match="the call cache cannot be used") as caught:
        CallStore(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_neither_answer_nor_cost(tmp_path: Path) -> None:
    store = CallStore(tmp_path)
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON spent BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(RunError, match="disk full"):
        store.keep({"k": [answer("a")]}, ME)
    assert store.find(["k"]) == {} and store.accounts() == {}


def test_the_cache_command_shows_what_is_kept_and_paid_and_prunes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CallStore(tmp_path).keep({"a": [answer("a")], "b": [answer("b")]}, ME)

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["cache", "--runs", str(tmp_path), *arguments])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert (
        "m                           2 kept" in command()
        and "run/step  m: 2 answers paid, 14 tokens in, 6 out" in command()
    )
    shown = json.loads(command("--json", "--prune", "0", "--model", "m"))
    assert shown["forgotten"] == 2 and shown["models"] == [] and shown["spent"][0]["tokens"] == 6
    with pytest.raises(SystemExit) as ended:
        main(["cache", "--runs", str(tmp_path / "none")])
    assert ended.value.code == 2 and "no call cache" in capsys.readouterr().err


# ------------------------------------------------------------------------------- never twice


@pytest.mark.parametrize("unit", ["call", "row", "batch"])
def test_what_was_answered_is_not_asked_again_by_a_later_process(tmp_path: Path, unit: Unit) -> None:
    llm = Fake()
    first = ask(remembered(tmp_path, llm, unit), ["a", "b", "c"])
    model = remembered(tmp_path, llm, unit)
    model._opener = lambda: pytest.fail("opened for nothing")  # type: ignore[assignment, return-value]
    assert ask(model, ["a", "b", "c"]) == first and len(llm.asked) + sum(llm.batches) == 3


def test_the_key_has_all_that_an_answer_depends_on_and_nothing_else(tmp_path: Path) -> None:
    llm = Fake()

    def new(
        texts: Sequence[str] = ("a",),
        sampling: Sampling = WARM,
        seed: int = 100,
        identity: Any = "x",
        raw: bool = False,
    ) -> bool:
        before = len(llm.asked)
        model = remembered(tmp_path, llm, "call", identity)
        model.complete(list(texts), sampling, [seed]) if raw else ask(model, texts, sampling, seed)
        return len(llm.asked) > before

    assert new() and not new()
    assert new(["b"]) and new(seed=101) and new(raw=True) and new(identity="y")
    assert all(
        new(sampling=replace(WARM, **change))
        for change in ({"max_new_tokens": 11}, {"temperature": 0.7}, {"top_p": 0.9}, {"stop": ("x",)})
    )
    greedy = Sampling(10, 0.0)
    assert new(sampling=greedy) and not new(sampling=greedy, seed=7) and not new(sampling=replace(greedy, top_p=0.5))


def test_the_same_call_twice_in_one_go_is_asked_once(tmp_path: Path) -> None:
    llm = Fake()
    assert (
        len(set(ask(remembered(tmp_path, llm, "call"), ["a", "a", "b", "a"], Sampling(10)))) == 2
        and len(llm.asked) == 2
    )


def test_answers_before_a_failure_are_kept_and_only_the_rest_is_asked_again(tmp_path: Path) -> None:
    texts = [f"t{n}" for n in range(20)]
    broken, whole = Fake(fail_at=9), Fake()
    with pytest.raises(ModelError, match="gone"):
        ask(remembered(tmp_path, broken, "call"), texts)
    answers = ask(remembered(tmp_path, whole, "call"), texts)
    assert len(broken.asked) == 9 and len(whole.asked) == 11
    assert answers == ask(remembered(tmp_path / "other", Fake(), "call"), texts)


def test_a_batch_of_which_one_row_changed_is_asked_again_whole_and_rows_that_stand_alone_are_not(
    tmp_path: Path,
) -> None:
    for unit, again in (("batch", 3), ("row", 1)):
        llm = Fake()
        ask(remembered(tmp_path / unit, llm, unit), ["a", "b", "c"])  # type: ignore[arg-type]
        rows = ask(remembered(tmp_path / unit, llm, unit), ["a", "b", "d"])  # type: ignore[arg-type]
        assert llm.batches == [3, again]
        if unit == "batch":  # as in a run that had no cache
            assert rows == ask(remembered(tmp_path / "fresh", Fake(), "batch"), ["a", "b", "d"])


@pytest.mark.parametrize("unit", ["row", "batch"])
def test_weights_of_choices_are_kept_by_the_batch(tmp_path: Path, unit: Unit) -> None:
    llm = Fake()
    talks = [[Turn("user", t)] for t in "abc"]
    first = remembered(tmp_path, llm, unit).choice_logprobs(talks, "Rating: ", ["1", "2"])
    assert (
        first
        == [[-1.0, float("-inf")]] * 3
        == remembered(tmp_path, llm, unit).choice_logprobs(talks, "Rating: ", ["1", "2"])
    )
    remembered(tmp_path, llm, unit).choice_logprobs(talks[:2], "Rating: ", ["1", "2"])
    assert llm.batches == [3, 2]


def test_samples_differ_in_their_seeds_and_the_first_is_the_plain_answer(tmp_path: Path) -> None:
    llm = Fake()
    model = remembered(tmp_path, llm, "call")
    (plain,) = model.chat([[Turn("user", "a")]], WARM, [5])
    drawn = samples(model, [[Turn("user", "a")], [Turn("user", "b")]], WARM, seeds=[5, 6], n=3)
    assert (
        [len(row) for row in drawn] == [3, 3]
        and drawn[0][0] == plain
        and len({c.text for row in drawn for c in row}) == 6
    )
    assert len(llm.asked) == 6


def test_a_checkpoint_s_identity_follows_weights_dtype_and_prompt_and_not_the_folder(tmp_path: Path) -> None:
    def made(name: str, weights: bytes = b"w", dtype: Any = "bfloat16", template: str = "own") -> Any:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in (
            ("config.json", b"{}"),
            ("tokenizer.json", b"{}"),
            ("model.safetensors", save({"w": np.array([*weights], "float32")})),
        ):
            (folder / file).write_bytes(content)
        return Checkpoint("m", str(folder), (), "none", dtype, PromptSpec(template=template)).identity()

    first = made("a")
    assert made("b") == first and json.dumps(first)
    assert all(
        other != first for other in (made("c", b"v"), made("d", dtype="float32"), made("e", template="openbezoar"))
    )


# ------------------------------------------------------------------------------- budgets


def test_a_budget_stops_within_one_call_and_more_goes_on_from_there(tmp_path: Path) -> None:
    texts = [f"t{n}" for n in range(30)]
    first, second = Fake(), Fake()
    with pytest.raises(BudgetError) as caught:
        ask(remembered(tmp_path, first, "call", budget=Budget(tokens=105)), texts)
    assert len(first.asked) == 11  # ten tokens a call: the eleventh is the one over
    assert "the budget of 105 tokens is used up: 11 answers, 110 tokens (77 in, 33 out)" in str(caught.value)
    assert "raise steps.step.budget and run again" in str(caught.value)
    with pytest.raises(BudgetError):
        ask(remembered(tmp_path, second, "call", budget=Budget(tokens=110)), texts)
    assert second.asked == []
    ask(remembered(tmp_path, second, "call", budget=Budget(tokens=1000)), texts)
    assert len(second.asked) == 19


def test_calls_run_side_by_side_while_their_worst_cases_fit_and_alone_near_the_end(tmp_path: Path) -> None:
    llm = Fake()
    ask(remembered(tmp_path / "wide", llm, "call", budget=Budget(tokens=100_000)), [f"t{n}" for n in range(40)])
    assert 1 < llm.most <= 4
    tight = Fake()
    with pytest.raises(BudgetError):
        ask(remembered(tmp_path / "tight", tight, "call", budget=Budget(tokens=25)), [f"t{n}" for n in range(40)])
    assert tight.most == 1 and len(tight.asked) == 3


def test_money_is_counted_by_price_and_answers_from_the_cache_cost_nothing(tmp_path: Path) -> None:
    price = Price(input=1000.0, output=10_000.0)  # a call: 7 * 0.001 + 3 * 0.01 = 0.037
    llm = Fake()
    with pytest.raises(BudgetError, match=r"money 0.1 is used up: 3 answers, 30 tokens .*money 0.111"):
        ask(remembered(tmp_path, llm, "call", budget=Budget(money=0.1), price=price), [f"t{n}" for n in range(9)])
    assert len(llm.asked) == 3
    again = remembered(tmp_path, llm, "call", budget=Budget(money=0.1), price=price)
    assert len(again.chat([call.prompt for call in llm.asked], WARM, [call.seed for call in llm.asked])) == 3  # type: ignore[misc]


def test_a_batch_of_a_local_model_counts_as_one_call(tmp_path: Path) -> None:
    llm = Fake()
    model = remembered(tmp_path, llm, "batch", budget=Budget(tokens=45))
    ask(model, ["a", "b", "c"])
    ask(model, ["d", "e", "f"])
    with pytest.raises(BudgetError, match="6 answers, 60 tokens"):
        ask(model, ["g"])


def test_the_worst_case_is_not_less_than_what_a_call_takes() -> None:
    calls = [
        Call("chat", (Turn("system", "Be kind."), Turn("user", "Name a river. " * 20)), Sampling(50)),
        Call("complete", "Once upon a time", Sampling(8)),
    ]
    cost = worst_case(calls)
    assert cost.tokens == 58 and cost.prompt_tokens > 4 * 20 + 4


def test_a_budget_limits_something() -> None:
    with pytest.raises(ValueError, match="expected tokens, money or both"):
        Budget()


# ------------------------------------------------------------------------------- side by side


def test_calls_under_way_at_a_failure_are_waited_for(tmp_path: Path) -> None:
    began, finished = threading.Barrier(2), []

    def one(place: int, off: threading.Event) -> int:
        began.wait(5)
        if place == 0:
            raise ModelError("no")
        assert off.wait(5)
        finished.append(place)
        return place

    with pytest.raises(ModelError, match="no"):
        side_by_side(9, one, 2, name="t")
    assert finished == [1]


# ------------------------------------------------------------------------------- windows


class Hands(Clock):
    """A clock that moves when it is told to."""

    time = 100.0

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float, off: threading.Event) -> bool:
        self.time += seconds
        return off.is_set()


OFF = threading.Event()


def pool(n: int = 1, most: int = 16) -> tuple[Endpoints, Hands]:
    clock = Hands()
    return Endpoints([Endpoint(f"e{i}", most) for i in range(n)], clock), clock


def rounds(pool: Endpoints, clock: Hands, n: int, seconds: float = 1.0, tokens: int = 80) -> None:
    for _ in range(n):
        taken, begun = pool.take(OFF), clock.now()
        clock.time += seconds
        pool.answer(taken, begun, tokens)


def test_a_window_grows_to_its_most_and_halves_once_for_all_that_were_under_way() -> None:
    endpoints, clock = pool()
    (endpoint,) = endpoints.all
    assert endpoint.window == 4
    rounds(endpoints, clock, 30)
    assert endpoint.window == 16
    begun = clock.now()
    taken = [endpoints.take(OFF) for _ in range(16)]
    clock.time += 1
    for one in taken:
        endpoints.lost(one, begun, busy=True)
    assert endpoint.window == 8 and endpoint.under_way == 0
    rounds(endpoints, clock, 8)
    assert 8.5 < endpoint.window <= 9.1  # by one a round of answers now


def test_a_server_of_ours_has_its_whole_window_from_the_first_and_keeps_it_however_slow_it_gets() -> None:
    clock = Hands()
    endpoints = Endpoints([Endpoint("e", 16, ours=True)], clock)
    (endpoint,) = endpoints.all
    begun, taken = clock.now(), [endpoints.take(OFF) for _ in range(16)]
    for one in taken:
        clock.time += 10
        endpoints.answer(one, begun, 1)
    assert endpoint.window == 16
    begun, taken = clock.now(), [endpoints.take(OFF) for _ in range(16)]
    for one in taken:
        endpoints.lost(one, begun, busy=True)
    assert endpoint.window == 8, "one that is busy, or does not answer in time, gets less"


def test_slow_answers_hold_a_window_and_very_slow_ones_shrink_it() -> None:
    endpoints, clock = pool()
    (endpoint,) = endpoints.all
    rounds(endpoints, clock, 2)
    window = endpoint.window
    rounds(endpoints, clock, 40, seconds=6.0)
    held = endpoint.window
    assert window <= held < 16
    rounds(endpoints, clock, 40, seconds=20.0)
    assert endpoint.window == 1


def test_an_address_that_is_gone_is_left_alone_while_another_works_and_tried_again_later() -> None:
    endpoints, clock = pool(2)
    gone, well = endpoints.all
    assert endpoints.take(OFF) is gone
    assert endpoints.lost(gone, clock.now(), gone=True)  # another one can be asked at once
    assert {endpoints.take(OFF).url for _ in range(4)} == {"e1"}
    clock.time += 61
    assert endpoints.take(OFF) is gone and gone.window == 1
    endpoints.answer(gone, clock.now(), 5)
    assert gone.failures == 0 and gone.window > 1 and well.under_way == 4


def test_an_address_that_is_gone_is_left_alone_while_the_other_one_only_asked_for_a_pause() -> None:
    endpoints, clock = pool(2)
    gone, well = endpoints.all
    assert [endpoints.take(OFF) for _ in range(2)] == [gone, well]
    assert endpoints.lost(well, clock.now(), busy=True, hold=5.0)  # the first one can
    assert not endpoints.lost(gone, clock.now(), gone=True)  # nobody can be asked at once
    asked = 0
    while (one := endpoints.take(OFF)) is gone and asked < 40:
        endpoints.lost(one, clock.now(), gone=True)
        asked += 1
    assert one is well and asked <= 2 and clock.time == 105.0


def test_the_least_busy_address_is_taken_and_one_that_asked_to_wait_is_waited_for() -> None:
    endpoints, clock = pool(2)
    assert [endpoints.take(OFF).url for _ in range(4)] == ["e0", "e1", "e0", "e1"]
    alone, clock = pool()
    taken = alone.take(OFF)
    assert not alone.lost(taken, clock.now(), busy=True, hold=17.0)
    alone.take(OFF)
    assert clock.time == 117.0


def test_waiting_for_room_ends_when_the_work_is_called_off() -> None:
    endpoints, _ = pool(most=1)
    endpoints.take(OFF)
    off = threading.Event()
    threading.Timer(0.05, off.set).start()
    with pytest.raises(CalledOff):
        endpoints.take(off)
