"""Whole generate and filter steps through a proxy that spoils requests: nothing is lost, nothing
answered is asked twice.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy, Upstream
from warm import Commands, killing

from openbezoar.engine import execution, graph
from openbezoar.errors import BudgetError, RecipeError
from openbezoar.llm.calls import CallStore
from openbezoar.progress import PlainProgress
from openbezoar.recipe.file import load

DEMO = Path(__file__).parent.parent.parent / "recipes" / "demo"


def say(system: str, user: str, seed: int) -> str:
    """A chat model that plays every part: writes examples, evolves, answers, judges."""
    if "Rating" in user or "rating" in user:
        return f"Status: accept\nRating: {seed % 10 + 1}\nReason: Fair enough, number {seed % 7}."
    if "<example>" in user:
        return "\n".join(f"<example>Describe thing {seed % 10**6}-{n} in detail.</example>" for n in range(4))
    if "#Given Prompt#:" in user:
        given = user.split("#Given Prompt#:")[1].split("#")[0].strip()
        return f"#Rewritten Prompt#: {given} Give {seed % 97} reasons."
    return f"An answer of some length, number {seed % 10**6}, to {len(re.findall('[a-z]+', user))} words."


def steps(rows: int) -> dict[str, Any]:
    common = {"teacher": "far", "rows": rows, "max_new_tokens": 64}
    return {
        "lamini": {
            "generate": "lamini",
            "seeds": str(DEMO / "instructions.jsonl"),
            "topics": str(DEMO / "topics.jsonl"),
            **common,
            "instructions_per_prompt": 4,
        },
        "evol": {"generate": "evol_instruct", "seeds": str(DEMO / "instructions.jsonl"), **common},
        "orca": {"generate": "orca", "seeds": str(DEMO / "flan.jsonl"), **common},
        "kept": {"filter": ["lamini", "orca"], "judge": "far", "mode": "text", "min_rating": 1},
    }


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openbezoar.llm.server.pause", lambda tries, asked, seed: 0.02)

    def recipe(*urls: str, rows: int = 12, **far: Any) -> Path:
        models = {"far": {"server": list(urls), "model": "m", "retries": 60, **far}}
        (tmp_path / "recipe.yaml").write_text(
            json.dumps({"name": "t", "seed": 3, "models": models, "steps": steps(rows)})
        )
        return tmp_path / "recipe.yaml"

    return recipe


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream(say)
    yield made
    made.close()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[Proxy]:
    made = Proxy(upstream.port)
    yield made
    made.close()


def run(recipe: Path, runs: Path, to: str | None = None, overrides: tuple[str, ...] = ()) -> dict[str, bytes]:
    execution.execute(graph.build(load(recipe, overrides), recipe, runs), PlainProgress(quiet=True), to)
    return rows_of(runs)


def rows_of(runs: Path) -> dict[str, bytes]:
    return {f.parent.name: f.read_bytes() for f in runs.glob("t/*/rows.jsonl")}


def test_all_schemes_and_the_judge_come_through_a_spoiling_proxy_whole(
    write: Callable[..., Path], upstream: Upstream, proxy: Proxy, tmp_path: Path
) -> None:
    plain = run(write(f"http://127.0.0.1:{upstream.port}/v1"), tmp_path / "plain")
    assert plain.keys() == {"lamini", "evol", "orca", "kept"} and all(
        plain[s].count(b"\n") == 12 for s in ("lamini", "evol", "orca")
    )
    spoilt = run(write(proxy.url), tmp_path / "spoilt")
    assert spoilt == plain
    assert min(proxy.done[what] for what in ("429", "500", "delay", "cut")) >= 2
    assert proxy.twice == {}
    numbers = [
        json.loads((tmp_path / runs / "t/lamini/manifest.json").read_text())["numbers"] for runs in ("plain", "spoilt")
    ]
    assert (
        numbers[0]["tokens"] == numbers[1]["tokens"] > 0 and numbers[0]["prompt_tokens"] == numbers[1]["prompt_tokens"]
    )


def test_a_server_that_dies_and_comes_back_in_mid_run_costs_no_row(
    write: Callable[..., Path], upstream: Upstream, proxy: Proxy, tmp_path: Path
) -> None:
    plain = run(write(f"http://127.0.0.1:{upstream.port}/v1"), tmp_path / "plain")
    recipe, served = write(proxy.url), upstream.served
    again: list[Upstream] = []

    def restart() -> None:
        while upstream.served < served + 15:
            time.sleep(0.005)
        upstream.close()
        while proxy.done["server gone"] < 5:
            time.sleep(0.005)
        again.append(Upstream(say, upstream.port))

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    assert run(recipe, tmp_path / "restarted") == plain
    assert proxy.done["server gone"] >= 5 and proxy.twice == {}
    again[0].close()


@pytest.mark.slow
def test_work_goes_on_at_one_address_while_another_is_down(
    write: Callable[..., Path], upstream: Upstream, proxy: Proxy, tmp_path: Path
) -> None:
    down = Proxy(1)  # nobody listens there
    try:
        recipe = write(down.url, proxy.url)
        rows = run(recipe, tmp_path / "two")
    finally:
        down.close()
    assert rows == run(write(f"http://127.0.0.1:{upstream.port}/v1"), tmp_path / "plain")
    assert sum(down.asked.values()) < sum(proxy.asked.values()) / 2 and proxy.twice == {}


@pytest.mark.parametrize("moment", [7, pytest.param(41, marks=pytest.mark.slow)])
def test_a_killed_run_asks_again_for_nothing_that_was_kept(
    moment: int, write: Callable[..., Path], upstream: Upstream, proxy: Proxy, tmp_path: Path, commands: Commands
) -> None:
    plain = run(write(f"http://127.0.0.1:{upstream.port}/v1"), tmp_path / "plain")
    recipe, runs = write(proxy.url, concurrency=1), tmp_path / "killed"
    killed = commands(
        "run",
        str(recipe),
        "--runs",
        str(runs),
        "--quiet",
        first=killing("openbezoar.llm.calls", "CallStore.keep", moment, "after"),
    )
    assert killed.code == -signal.SIGKILL, killed.err
    assert sum(n for _, n, _ in CallStore(runs).size()) == moment
    assert run(recipe, runs) == plain and proxy.twice == {}


def test_two_runs_side_by_side_pay_for_each_call_once(
    write: Callable[..., Path], upstream: Upstream, tmp_path: Path
) -> None:
    recipe = write(f"http://127.0.0.1:{upstream.port}/v1")
    alone = run(recipe, tmp_path / "alone", "orca")
    served = upstream.served
    second = tmp_path / "second.yaml"
    second.write_text(recipe.read_text().replace('"name": "t"', '"name": "u"'))

    def execute(path: Path) -> None:
        execution.execute(graph.build(load(path), path, tmp_path / "runs"), PlainProgress(quiet=True), "orca")

    with ThreadPoolExecutor(2) as two:
        for outcome in [two.submit(execute, path) for path in (recipe, second)]:
            outcome.result()
    assert upstream.served == 2 * served
    assert [(tmp_path / f"runs/{name}/orca/rows.jsonl").read_bytes() for name in "tu"] == [alone["orca"]] * 2
    spent = CallStore(tmp_path / "runs").accounts()
    assert sum(cost.calls for cost in spent.values()) == served and not any(cost.unanswered for cost in spent.values())


def test_a_second_recipe_and_an_edited_filter_pay_for_nothing_again(
    write: Callable[..., Path], upstream: Upstream, tmp_path: Path
) -> None:
    recipe = write(f"http://127.0.0.1:{upstream.port}/v1")
    first = run(recipe, tmp_path / "runs")
    served = upstream.served
    second = tmp_path / "second.yaml"
    second.write_text(recipe.read_text().replace('"name": "t"', '"name": "u"'))
    execution.execute(graph.build(load(second), second, tmp_path / "runs"), PlainProgress(quiet=True))
    assert {f.parent.name: f.read_bytes() for f in (tmp_path / "runs").glob("u/*/rows.jsonl")} == first
    run(recipe, tmp_path / "runs", overrides=("steps.kept.min_rating=5", "steps.kept.rules={max_response_words: 15}"))
    assert upstream.served == served
    assert {run for run, _, _ in CallStore(tmp_path / "runs").accounts()} == {"t"}


def test_a_budget_in_money_without_prices_is_refused(
    write: Callable[..., Path], upstream: Upstream, tmp_path: Path
) -> None:
    recipe = write(f"http://127.0.0.1:{upstream.port}/v1")
    with pytest.raises(RecipeError, match=r"models\.far: no price, but a budget in money"):
        run(recipe, tmp_path / "runs", overrides=("steps.lamini.budget={money: 1}",))
    assert upstream.served == 0


def test_a_budget_stops_a_run_which_goes_on_with_more_to_the_same_rows(
    write: Callable[..., Path], upstream: Upstream, tmp_path: Path
) -> None:
    recipe = write(f"http://127.0.0.1:{upstream.port}/v1")
    plain = run(recipe, tmp_path / "plain")
    runs = tmp_path / "runs"
    longest = 400  # no call of this teacher takes more words
    for budget in (1000, 3000):
        with pytest.raises(
            BudgetError, match=rf"step \w+: the budget of {budget:,} tokens is used up: .* raise budget and run again"
        ):
            run(recipe, runs, overrides=(f"budget={{tokens: {budget}}}",))
        spent = sum(cost.prompt_tokens + cost.tokens for cost in CallStore(runs).accounts().values())
        assert budget <= spent < budget + longest
    served = upstream.served
    assert run(recipe, runs, overrides=("budget={tokens: 1000000}",)) == plain
    whole = sum(cost.calls for cost in CallStore(tmp_path / "plain").accounts().values())
    assert sum(cost.calls for cost in CallStore(runs).accounts().values()) == whole and upstream.served - served < whole
