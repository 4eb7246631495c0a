"""What a step leaves for others to read: written and read by one class, of this version, an older or a newer one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import FUNNEL, evaluation, failures, make_run, step

from openbezoar.errors import RunError
from openbezoar.reporting.facts import read_facts
from openbezoar.reporting.results import SCORES, Result
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.evaluate.result import EvaluateScores
from openbezoar.verbs.failures.result import FailuresScores
from openbezoar.verbs.filter.result import FilterNumbers
from openbezoar.verbs.judge.result import AgreementScores, MtBenchScores
from openbezoar.verbs.report.page import write_report


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "demo")


def report_of(run: RunFolder, tmp_path: Path) -> str:
    write_report(run, tmp_path / "out")
    return (tmp_path / "out/report.md").read_text(encoding="utf-8")


def edit(run: RunFolder, name: str, **change: Any) -> None:
    path = run.step(name) / SCORES
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("kind", "content"),
    [(EvaluateScores, evaluation()), (FailuresScores, failures())],
)
def test_what_is_given_is_written_as_it_is_in_the_same_order(kind: type[Result], content: dict[str, Any]) -> None:
    assert json.dumps(kind.model_validate(content).written()) == json.dumps(content)


def test_a_filter_s_numbers_are_written_as_they_were_given() -> None:
    assert json.loads(json.dumps(FilterNumbers.model_validate(FUNNEL).written())) == FUNNEL


@pytest.mark.parametrize(("name", "kind"), [("talks", MtBenchScores), ("check", AgreementScores)])
def test_a_judge_s_file_is_written_as_it_was_read(run: RunFolder, name: str, kind: type[Result]) -> None:
    content = json.loads((run.step(name) / SCORES).read_text())
    assert kind.model_validate(content).written() == content


def test_a_file_says_its_version_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    EvaluateScores.model_validate(evaluation()).write(tmp_path)
    text = (tmp_path / SCORES).read_text()
    assert text.startswith('{\n "version": 1,\n "checkpoints"') and json.loads(text) == {"version": 1, **evaluation()}
    assert '"items": [\n      1,\n' in text


def test_every_verb_of_a_run_has_a_typed_result(run: RunFolder) -> None:
    by_verb = {s.verb: type(s.result).__name__ for s in read_facts(run).steps.values()}
    assert by_verb == {
        "generate": "GenerateNumbers",
        "filter": "FilterNumbers",
        "sft": "SftNumbers",
        "merge": "MergeNumbers",
        "dpo": "DpoNumbers",
        "evaluate": "EvaluateScores",
        "mt_bench": "MtBenchScores",
        "agreement": "AgreementScores",
        "failures": "FailuresScores",
    }


def test_a_file_without_a_version_is_of_the_first_and_lacks_nothing(run: RunFolder) -> None:
    result = read_facts(run).steps["scores"].result
    assert result.version == 1 and result.missing() == []


def test_what_an_older_version_did_not_say_is_named_in_one_line_a_step(run: RunFolder, tmp_path: Path) -> None:
    path = run.step("kept") / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["numbers"]["funnel"]
    path.write_text(json.dumps(manifest))
    said = "how many rows were left after each rule: the manifest of step kept is of a version that did not say."
    assert f"- **Not known:** {said}" in report_of(run, tmp_path).splitlines()
    assert read_facts(run).steps["SFT"].result.missing() == []


def test_of_a_newer_file_what_is_known_is_told_and_one_line_says_that_there_is_more(
    run: RunFolder, tmp_path: Path
) -> None:
    edit(run, "scores", version=7, surprises={"DPO": 1})
    text = report_of(run, tmp_path)
    lines = [line for line in text.splitlines() if "scores.json of step scores" in line]
    assert lines == [
        "- **Not known:** what scores.json of step scores says: it is of a newer openbezoar (version 7, this one reads"
        " up to 1)."
    ]
    assert "0.500 [0.400, 0.600]" in text


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("scores", {"checkpoints": [1, 2]}, "checkpoints: input should be a valid dictionary"),
        ("scores", {"version": "old"}, "version: input should be a valid integer"),
        ("talks", {"models": {"base": 3}}, "models.base: input should be a valid dictionary or instance of"),
        ("wrong", {"differences": {"a": "b"}}, "differences: input should be a valid list"),
        ("check", {"flips": {"n": 1.5}}, "flips.n: input should be a valid integer"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_in_one_line_and_the_rest_is_told(
    run: RunFolder, tmp_path: Path, name: str, change: dict[str, Any], why: str
) -> None:
    edit(run, name, **change)
    text = report_of(run, tmp_path)
    (line,) = [line for line in text.splitlines() if f"scores.json of step {name}" in line]
    assert line.startswith(f"- **Not known:** what scores.json of step {name} says: it cannot be read (")
    assert why in line.replace("\\", "")
    assert "## Training" in text and "## Data" in text


def test_a_gate_on_a_file_that_cannot_be_read_is_one_line(run: RunFolder) -> None:
    edit(run, "scores", checkpoints=[1, 2])
    folder = run.step("scores")
    with pytest.raises(RunError) as refused:
        EvaluateScores.left_by("scores", folder)
    assert str(refused.value) == (
        f"{folder / SCORES}: checkpoints: input should be a valid dictionary; delete the folder and run again"
    )


def test_a_step_of_a_verb_that_is_not_known_has_an_empty_result(run: RunFolder, tmp_path: Path) -> None:
    step(run.path, "later", "distil", {"distil": "DPO"}, ["DPO"], {SCORES: {"checkpoints": 3}}, 10)
    result = read_facts(run).steps["later"].result
    assert type(result) is Result and result.outcome() == "" and result.missing() == []
    assert "| later | distil |" in report_of(run, tmp_path)


def test_steps_that_read_one_another_are_one_line(run: RunFolder) -> None:
    step(run.path, "x", "filter", {}, ["y"])
    step(run.path, "y", "filter", {}, ["x"])
    with pytest.raises(RunError, match="its steps read one another: x → y → x; run the recipe again"):
        read_facts(run)
