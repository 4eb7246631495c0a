"""The table of judge protocols: what a row and its module say is what steps, keys and plans go by."""

from __future__ import annotations

from typing import Any

import pytest
from test_mt_bench import QUESTIONS, Scripted, answer, grade, prefers
from test_mt_bench import bench as bench

from openbezoar.prompts import names
from openbezoar.recipe.measure_steps import MtBench
from openbezoar.recipe.protocols import GRADINGS, PROTOCOLS, compares, words
from openbezoar.verbs.judge.protocols import calls, grader, graders, names_of_texts


def both(talk: Any) -> str:
    return grade(talk) if "[[rating]]" in talk[-1].content else prefers("strong")(talk)


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


def test_the_texts_of_a_step_s_key_are_those_of_both_whatever_grades() -> None:
    expected = (*grader("single").texts, *grader("pairwise").texts)
    assert len(expected) == 8
    assert {names_of_texts(grading) for grading in GRADINGS} == {expected}


WITH = [*((grading, {}) for grading in GRADINGS), *((g, {"against": "strong"}) for g in GRADINGS if compares(g))]


@pytest.mark.parametrize(("grading", "against"), WITH)
def test_what_is_planned_to_be_asked_is_what_a_step_asks(grading: str, against: dict[str, str], bench: Any) -> None:
    judge = Scripted("judge", both)
    contestants = {name: Scripted(name, answer(name)) for name in ("weak", "strong", "third")}
    bench({**contestants, "judge": judge}, grading=grading, **against)
    planned = calls(grading, 3, against.get("against"))
    assert len(judge.calls) == planned.calls * 2 * len(QUESTIONS)
    of_first_turns = [text for talk, _, _ in judge.calls if "second" not in (text := talk[-1].content)]
    assert sum(text.count(" on Q") for text in of_first_turns) == planned.answers * len(QUESTIONS)
