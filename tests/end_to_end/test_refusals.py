"""Every step that asks a server goes on when it turns single calls down, in every way of asking."""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest
from hostile import Body, Hostile

from openbezoar.engine import execution, graph
from openbezoar.progress import PlainProgress
from openbezoar.recipe.file import load

DEMO = Path(__file__).parent.parent.parent / "recipes" / "demo"
WINDOW = {"error": {"message": "This model's maximum context length is 64 tokens.", "code": "context_length_exceeded"}}


def say(prompt: str) -> str:
    if "<example>" in prompt:
        return "\n".join(f"<example>Describe thing {len(prompt)}-{n} in detail.</example>" for n in range(4))
    if "#Given Prompt#:" in prompt:
        return (
            f"#Rewritten Prompt#: {prompt.split('#Given Prompt#:')[1].split('#')[0].strip()} Give {len(prompt)}"
            " reasons."
        )
    if "not equal" in prompt:
        return "not equal"
    if "[[" in prompt or "Rating" in prompt:
        return "Status: accept\nRating: 8\nReason: fair.\nRating: [[8]]\nVerdict: [[A]]"
    return f"An answer of some length, to a prompt of {len(re.findall('[a-z]+', prompt))} words."


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Hostile(say)
    made.refuses = every(6)
    yield made
    made.close()


def every(n: int) -> Callable[[Body], tuple[int, Any] | None]:
    """Turns each n-th different request down, always the same ones."""
    seen: dict[str, int] = {}

    def refuses(request: Body) -> tuple[int, Any] | None:
        return (400, WINDOW) if seen.setdefault(json.dumps(request), len(seen)) % n == n - 2 else None

    return refuses


def steps(folder: Path) -> dict[str, Any]:
    questions = [{"question_id": n, "category": "c", "turns": [f"Question {n}?", "And then?"]} for n in range(4)]
    pairs = [
        {"instruction": f"Ask {n}.", "output_1": f"One {n}.", "output_2": f"Two {n}.", "human_majority": n % 2 + 1}
        for n in range(6)
    ]
    rows = [
        {"id": f"r{n}", "instruction": f"Name {n}.", "context": f"Text {n}.", "response": f"It is number {n}."}
        for n in range(6)
    ]
    for name, data in (("questions", questions), ("pairs", pairs), ("rows", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    made = {"teacher": "far", "rows": 8, "max_new_tokens": 64}
    seeds = str(DEMO / "instructions.jsonl")
    return {
        "lamini": {"generate": "lamini", "seeds": seeds, **made, "instructions_per_prompt": 4},
        "evol": {"generate": "evol_instruct", "seeds": seeds, **made, "equality_judge": "judge"},
        "orca": {"generate": "orca", "seeds": str(DEMO / "flan.jsonl"), **made},
        "magpie": {"generate": "magpie", **made, "pre_query": "User: "},
        "kept": {"filter": ["lamini", "orca"], "judge": "judge", "retries": 1},
        "agree": {"agreement": "judge", "pairs": "pairs.jsonl"},
        "bench": {"mt_bench": ["far"], "questions": "questions.jsonl", "judge": "judge"},
        "wrong": {
            "failures": ["far"],
            "instructions": "rows.jsonl",
            "harmless": "rows.jsonl",
            "grounded": "rows.jsonl",
            "judge": "judge",
            "rows": 6,
        },
    }


@pytest.mark.slow
def test_every_step_goes_on_where_a_server_turns_single_calls_down_and_counts_them(
    server: Hostile, tmp_path: Path
) -> None:
    models = {name: {"server": server.url, "model": name, "concurrency": 1} for name in ("far", "judge")}
    recipe = {
        "name": "t",
        "models": models,
        "steps": {name: {**step, "max_refused": 1} for name, step in steps(tmp_path).items()},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    execution.execute(
        graph.build(load(tmp_path / "recipe.yaml"), tmp_path / "recipe.yaml", tmp_path / "runs"),
        PlainProgress(quiet=True),
    )
    for name in recipe["steps"]:
        folder = tmp_path / "runs/t" / name
        counts = json.loads((folder / "manifest.json").read_text())["counts"]
        assert any(reason.endswith("without an answer: a prompt over the model's window") for reason in counts), (
            name,
            counts,
        )
        for file in folder.glob("*.jsonl"):
            assert "maximum context" not in file.read_text()
    # A refused answer is shown to no judge, and a refused first turn has no second one.
    answers = [json.loads(line) for line in (tmp_path / "runs/t/bench/answers.jsonl").read_text().splitlines()]
    judged = [json.loads(line) for line in (tmp_path / "runs/t/bench/judgments.jsonl").read_text().splitlines()]
    lost = [(row["question_id"], turn) for row in answers for turn in (1, 2) if row["finish"][turn - 1] == "error"]
    assert lost and lost == [(row["question_id"], row["turn"]) for row in judged if row["unscored"] == "answer_error"]
    assert all("refused" in row for row in answers if "error" in row["finish"])


def test_a_server_of_whose_replies_many_are_none_changes_no_byte(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbezoar.llm.server.pause", lambda tries, asked, seed: 0.001)
    server.refuses = lambda request: None
    some = {name: step for name, step in steps(tmp_path).items() if name in ("lamini", "orca", "kept", "bench")}
    models = {name: {"server": server.url, "model": name, "concurrency": 4, "retries": 40} for name in ("far", "judge")}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "t", "models": models, "steps": some}))

    def made(runs: str) -> dict[str, bytes]:
        execution.execute(
            graph.build(load(tmp_path / "recipe.yaml"), tmp_path / "recipe.yaml", tmp_path / runs),
            PlainProgress(quiet=True),
        )
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in (tmp_path / runs).glob("t/*/*.jsonl")}

    plain, asked = made("plain"), len(server.requests)
    faults = [body for name, body in hostile.MALFORMED.items() if name not in hostile.ENCODED]
    times, kinds = Counter[str](), itertools.cycle(faults)

    def strikes(number: int, prompt: str) -> bool:
        """None, one or two of a prompt's replies are spoilt; a server that has never answered is
        given up after three.
        """
        with server.lock:
            times[prompt] += 1
            return times[prompt] <= zlib.crc32(prompt.encode()) % 3

    def spoilt(text: str) -> Any:
        with server.lock:
            return next(kinds)(text)

    server.strikes, server.body = strikes, spoilt
    assert made("spoilt") == plain and len(server.requests) > 2.5 * asked
