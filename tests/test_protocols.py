"""The table of judge protocols: what a row and its module say is what steps, keys and plans go by."""

from __future__ import annotations

from typing import Any

import pytest
from test_mt_bench import QUESTIONS, answer, grade, prefers, scripted
from test_mt_bench import bench as bench

from openbezoar.llm.scripted import last
from openbezoar.prompts import names
from openbezoar.recipe.measure_steps import MtBench
from openbezoar.recipe.protocols import GRADINGS, PROTOCOLS, compares, words
from openbezoar.reporting.document import Grid, flat
from openbezoar.reporting.results import StepFacts
from openbezoar.rows.records import read_jsonl
from openbezoar.verbs.judge.protocols import calls, grader, graders, names_of_texts
from openbezoar.verbs.judge.result import MtBenchScores

REPLIES = {
    "[[rating]]": grade,
    "[[A]]": prefers("strong"),
}
"""What a scripted judge says to a text that holds the mark."""


def judge_of_all(talk: Any) -> str:
    return next(reply for mark, reply in REPLIES.items() if mark in talk[-1].content)(talk)


def test_a_recipe_takes_the_protocols_of_the_table() -> None:
    schema = MtBench.model_json_schema()["properties"]["grading"]
    assert schema["enum"] == [*PROTOCOLS, "both"] and schema["default"] == "single"
    assert all(row.gives in schema["description"] for row in PROTOCOLS.values())
    assert [compares(grading) for grading in ("single", "pairwise", "both")] == [False, True, True]
    assert words("both") == "from 1 to 10 and in pairs"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_s_texts_are_files_and_its_official_names_are_of_its_texts(name: str) -> None:
    protocol = grader(name)
    assert set(protocol.texts) <= set(names()) and set(protocol.official) <= set(protocol.texts)
    assert protocol.file.endswith(".jsonl")


def test_files_of_judgments_are_each_protocol_s_own() -> None:
    files = [protocol.file for grading in PROTOCOLS for protocol in graders(grading)]
    assert len(set(files)) == len(files)


def test_the_texts_of_a_step_s_key_are_those_of_both_whatever_grades_and_what_else_grades() -> None:
    mt_bench = (*grader("single").texts, *grader("pairwise").texts)
    assert len(mt_bench) == 8
    for grading in GRADINGS:
        own = () if grading in ("single", "pairwise", "both") else tuple(grader(grading).texts)
        assert names_of_texts(grading) == (*mt_bench, *own)


WITH = [*((grading, {}) for grading in GRADINGS), *((g, {"against": "strong"}) for g in GRADINGS if compares(g))]


@pytest.mark.parametrize(("grading", "against"), WITH)
def test_what_is_planned_to_be_asked_is_what_a_step_asks(grading: str, against: dict[str, str], bench: Any) -> None:
    judge = scripted("judge", judge_of_all)
    contestants = {name: scripted(name, answer(name)) for name in ("weak", "strong", "third")}
    bench({**contestants, "judge": judge}, grading=grading, **against)
    planned = calls(grading, 3, against.get("against"))
    assert len(judge.asked) == planned.calls * 2 * len(QUESTIONS)
    of_first_turns = [last(call) for call in judge.asked if "second" not in last(call)]
    assert sum(text.count(" on Q") for text in of_first_turns) == planned.answers * len(QUESTIONS)


@pytest.mark.parametrize("grading", GRADINGS)
def test_what_a_step_found_is_in_its_scores_its_summary_and_its_report(grading: str, bench: Any) -> None:
    contestants = {name: scripted(name, answer(name)) for name in ("weak", "strong")}
    numbers, context = bench({**contestants, "judge": scripted("judge", judge_of_all)}, grading=grading)
    assert all(name in numbers["summary"] for name in contestants)
    step = StepFacts("mt", "mt_bench", context.out, {"parts": {"settings": {"grading": grading}}})
    result = step.result
    assert isinstance(result, MtBenchScores) and list(result.models) == ["weak", "strong"]
    others = [grader(name) for name in PROTOCOLS if name not in GRADINGS[grading]]
    assert [protocol.blocks(result) for protocol in others] == [[]] * len(others)
    for protocol in graders(grading):
        assert all(row["unscored"] is None for row in read_jsonl(context.out / protocol.file))
        tables = [block.table for block in flat(protocol.blocks(result)) if isinstance(block, Grid)]
        assert any("strong" in table.text() for table in tables)
