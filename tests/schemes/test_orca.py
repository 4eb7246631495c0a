"""Orca: messages, their pairing with sub-collections, the sampling of queries."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from pydantic import ValidationError
from test_schemes import FLAN, Bench, Teacher, flan

from openbezoar import prompts
from openbezoar.errors import DataError, RecipeError
from openbezoar.llm.scripted import last, system
from openbezoar.rows.forms import to_example
from openbezoar.rows.records import Row, Turn
from openbezoar.schemes import orca
from openbezoar.schemes.work import shares


def test_orca_pairs_messages_with_sub_collections_as_in_the_table(bench: Bench) -> None:
    seeds = bench.seeds(
        [
            {**row, "id": f"{i}-{row['id']}", "task": f"{row['task']}{i % 2}", "input": f"{i}: {row['input']}"}
            for i in range(20)
            for row in FLAN
        ]
    )
    rows = bench.run(
        Teacher(lambda s, u, _: "Because."),
        generate="orca",
        seeds=seeds,
        rows=600,
        batch=64,
        submixes={"cot": 1, "niv2": 1, "t0": 1, "flan2021": 2},
    )
    used: dict[tuple[str, bool], set[int]] = {}
    for row in rows:
        used.setdefault((row["submix"], row["multiple_choice"]), set()).add(row["message"])
    assert used == {
        ("cot", False): {6, 11, 16},
        ("niv2", False): {1, 2, 5, 7, 9, 12, 13, 14, 15},
        ("t0", False): {1, 2, 3, 5, 7},
        ("flan2021", False): {3, 4, 7},
        ("flan2021", True): {3, 4, 7, 8, 10},
    }


def test_orca_sends_the_system_message_it_keeps_and_an_empty_one_stays_empty(bench: Bench) -> None:
    teacher = Teacher(lambda system, user, seed: f"[{system}] {user}")
    rows = bench.run(teacher, generate="orca", seeds=bench.seeds(flan("niv2", "lists", 60)), rows=60, batch=16)
    messages = orca.parse_messages(prompts.load("orca_system_messages"))
    assert all(
        r["system"] == messages[r["message"]] and r["response"] == f"[{r['system']}] {r['instruction']}" for r in rows
    )
    empty = [r for r in rows if r["message"] == 1]
    assert empty and all(r["system"] == "" for r in empty)
    assert to_example(empty[0], "row").prompt[0] == Turn("system", "")
    assert all(r["seed_target"] == "gold " + r["seed_id"].split("-")[1] and r["task"] == "lists" for r in rows)
    assert not any("gold" in system(c) + last(c) for c in teacher.asked)


def test_the_16_system_messages_are_there_and_only_the_first_is_empty() -> None:
    messages = orca.parse_messages(prompts.load("orca_system_messages"))
    assert list(messages) == list(range(1, 17))
    assert [n for n, text in messages.items() if not text] == [1] and len(set(messages.values())) == 16
    with pytest.raises(RecipeError, match="no message 2"):
        orca.parse_messages("[1]\n\n[3]\nx\n")


def test_orca_draws_tasks_uniformly_and_queries_without_replacement() -> None:
    tasks = {"big": flan("t0", "big", 1000), "small": flan("t0", "small", 1000), "tiny": flan("t0", "tiny", 3)}
    chosen = orca.draw_queries(tasks, 900, random.Random(1))
    counts = Counter(r["task"] for r in chosen)
    assert len({r["id"] for r in chosen}) == 900 and counts["tiny"] == 3 and 400 < counts["big"] < 500
    everything = orca.draw_queries(tasks, 10**6, random.Random(1))
    assert len(everything) == 2003 and len({r["id"] for r in everything}) == 2003


def test_orca_draws_cot_and_niv2_query_by_query_but_t0_and_flan2021_task_by_task(bench: Bench) -> None:
    """Of CoT Orca takes everything and of NIV2 at most 300 a task, so that a part of them keeps the tasks' sizes."""
    seeds = bench.seeds(
        [
            row
            for submix in orca.MESSAGES
            for row in (*flan(submix, f"{submix}-big", 190), *flan(submix, f"{submix}-small", 10))
        ]
    )
    weights = dict.fromkeys(orca.MESSAGES, 1)
    rows = bench.run(
        Teacher(lambda s, u, _: "Fine."),
        generate="orca",
        seeds=seeds,
        rows=80,
        batch=64,
        submixes=weights,
        niv2_per_task=150,
    )
    small = Counter(row["submix"] for row in rows if row["task"].endswith("small"))
    assert small["cot"] <= 4 and small["niv2"] <= 5 and small["t0"] >= 6 and small["flan2021"] >= 6
    assert bench.counts["queries beyond niv2_per_task"] == 40


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"template_type": "fs_opt"}, "seeds with few-shot examples"),
        ({"template_type": "zs_noopt"}, None),
        ({"input": "x" * 65}, "seeds longer than 16 tokens"),
        ({"input": "x" * 64}, None),
        ({"input": "question 1 OF lists"}, "seeds that repeat a query"),
        ({"submix": "Dialog"}, "seeds of a sub-collection without weight: unknown"),
        ({"submix": "NIV2"}, None),
    ],
)
def test_orca_draws_zero_shot_queries_of_its_sub_collections_once_each(
    bench: Bench, row: Row, reason: str | None
) -> None:
    seeds = [*flan("niv2", "lists", 3), {"id": "odd", "submix": "niv2", "task": "odd", "input": "What?", **row}]
    rows = bench.run(
        Teacher(lambda s, u, _: "Fine."), generate="orca", seeds=bench.seeds(seeds), rows=9, query_tokens=16
    )
    assert ("odd" in {r["seed_id"] for r in rows}) is (reason is None) and len(rows) == 3 + (reason is None)
    assert reason is None or bench.counts[reason] == 1


def test_orca_splits_rows_by_weight_and_fills_up_from_the_others(bench: Bench) -> None:
    assert shares(10, {"a": 1, "b": 3}, {"a": 99, "b": 99}) == {"a": 2, "b": 8} or shares(
        10, {"a": 1, "b": 3}, {"a": 99, "b": 99}
    ) == {"a": 3, "b": 7}
    assert shares(10, {"a": 1, "b": 1, "c": 0}, {"a": 2, "b": 99, "c": 9}) == {"a": 2, "b": 8, "c": 0}
    assert shares(10, {"a": 1, "b": 1}, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    rows = bench.run(
        Teacher(lambda s, u, _: "Yes, fine."), generate="orca", seeds=bench.seeds(FLAN), rows=100, batch=64
    )
    assert len(rows) == len(FLAN) and bench.counts["short of the rows wanted"] == 100 - len(FLAN)


def test_orca_names_a_weighted_sub_collection_that_the_seeds_lack(bench: Bench) -> None:
    seeds = bench.seeds(flan("t0", "news", 5))
    with pytest.raises(DataError, match="no row of submix 'cot'"):
        bench.run(Teacher(lambda s, u, _: "x"), generate="orca", seeds=seeds, submixes={"cot": 1, "t0": 1})
    with pytest.raises(ValidationError):
        orca.Options.model_validate({"submixes": {"cot": 0}})
    with pytest.raises(ValidationError):
        orca.Options.model_validate({"submixes": {"dialog": 1}})
    with pytest.raises(DataError, match="no row whose submix is one of"):
        bench.run(Teacher(lambda s, u, _: "x"), generate="orca", seeds=bench.seeds(flan("dialog", "talk", 5)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which?\nOPTIONS:\n- red\n- blue", True),
        ("Which?\n(A) red\n(B) blue", True),
        ("Which?\nA. red\nB. blue", True),
        ("Which?\nA) red\n  B) blue", True),
        ("What are my options: none?", False),
        ("A dog barks.\nBut why?", False),
        ("(a) alone on a line", False),
        ("", False),
    ],
)
def test_multiple_choice_is_seen_in_the_text_where_the_row_does_not_say(text: str, expected: bool) -> None:
    assert orca.is_multiple_choice({"input": text}) is expected
    assert orca.is_multiple_choice({"input": text, "multiple_choice": not expected}) is not expected
