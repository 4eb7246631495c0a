"""``openbezoar judge``: answer files and human pairs, outside of a recipe, with a tiny judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from openbezoar.cli.app import main
from openbezoar.rows.records import read_jsonl, write_jsonl

QUESTIONS = [
    {
        "question_id": n,
        "category": "math",
        "turns": [f"What is {n} + 1?", "And one more?"],
        "reference": [str(n + 1), str(n + 2)],
    }
    for n in range(3)
]
ANSWERS = [
    {"question_id": n, "model_id": m, "turns": [f"It is {n + shift}.", f"It is {n + shift + 1}."]}
    for m, shift in (("good", 1), ("bad", 7))
    for n in range(3)
]
PAIRS = [
    {"instruction": f"Say {n}.", "output_1": f"{n}", "output_2": f"Not {n}!", "human_majority": 1 + n % 2}
    for n in range(4)
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, rows in (("questions", QUESTIONS), ("answers", ANSWERS), ("pairs", PAIRS)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["judge", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def test_answer_files_are_graded_one_at_a_time_and_in_pairs(
    place: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "--judge",
        str(tiny),
        "--questions",
        "questions.jsonl",
        "--answers",
        "answers.jsonl",
        "--grading",
        "both",
        "--mode",
        "probability",
    )
    code, out, _ = call(capsys, *arguments, "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0
    assert list(found["models"]) == ["good", "bad"]
    assert found["models"]["good"]["n"] == 6
    assert found["pairwise"]["n"] == 6
    assert found["differences"][0]["n"] == 3
    assert (place / "runs/judge/grades/comparisons.jsonl").is_file()
    code, out, err = call(capsys, *arguments)  # done already
    assert code == 0
    assert "good against bad" in out
    assert "mean rating" in out
    assert "Every reply: runs/judge/grades" in err
    assert "[1/1]" not in err
    code, out, _ = call(capsys, *arguments, "--models", "good", "--limit", "2", "--json")
    assert code == 2  # nothing to compare


def test_a_judge_earns_its_number_on_human_pairs(place: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        capsys,
        "--judge",
        str(tiny),
        "--pairs",
        "pairs.jsonl",
        "--mode",
        "probability",
        "--limit",
        "3",
        "--out",
        "earned",
        "--json",
    )
    found = json.loads(out)
    assert code == 0
    assert (found["n"], found["unscored"]) == (3, 0)
    assert found["averaged"]["n"] == 3
    assert {r["pair"] for r in found["agreement"]} == {"judge-human", "human-human", "judge-majority"}
    code, out, _ = call(
        capsys, "--judge", str(tiny), "--pairs", "pairs.jsonl", "--mode", "probability", "--out", "earned"
    )
    assert code == 0
    assert "judge-majority" in out
    assert "Verdicts that changed when the answers were swapped:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected either --pairs FILE, or --questions FILE with --answers FILE"),
        (("--questions", "questions.jsonl"), "expected either --pairs FILE"),
        (("--pairs", "none.jsonl"), "no file"),
        (("--pairs", "pairs.jsonl", "--mode", "loud"), "mode"),
    ],
)
def test_mistakes_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = call(capsys)
    assert (code, err) == (2, "openbezoar: judge: expected --judge MODEL; name the model that judges\n")
    code, _, err = call(capsys, "--judge", "nowhere", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


ROWS = [
    {"id": f"a{n}", "prompt": f"Say {n}.", "completion": "It is. " * (n + 1), "acceptable": n / 5} for n in range(6)
]


def test_a_filter_judge_is_held_against_labels_beside_two_that_ask_nobody(
    place: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(place / "rows.jsonl", [*ROWS, {**ROWS[0], "acceptable": 0.5}])
    arguments = ("check", "--judge", str(tiny), "--rows", "rows.jsonl", "--mode", "probability", "--min-rating", "1")
    code, out, _ = call(capsys, *arguments, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["n"], found["good"], found["unscored"], found["label"]) == (6, 3, 0, "acceptable")
    assert found["left_out"] == {"people were split": 1}
    assert list(found["filters"]) == ["judge", "keep all", "length only"]
    assert found["filters"]["judge"]["kept"] == 6  # no rating is below 1
    assert found["filters"]["judge"]["precision"]["value"] == 0.5
    assert found["filters"]["length only"]["auc"]["value"] == 1.0
    assert len((place / "runs/judge-check/check/verdicts.jsonl").read_text().splitlines()) == 6
    code, out, err = call(capsys, *arguments)
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()[2:5]] == ["judge", "keep all", "length only"]
    assert "50.0 % [" in out
    assert "3 of 6 answers are good" in out
    assert "Every verdict: runs/judge-check/check" in err


def test_a_model_s_likelihood_is_held_against_labels_too_and_beside_a_judge(
    place: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(place / "rows.jsonl", ROWS)
    arguments = ("check", "--likelihood", str(tiny), "--rows", "rows.jsonl")
    code, out, _ = call(capsys, *arguments, "--json")
    found = json.loads(out)
    assert code == 0 and found["likelihood"] == str(tiny) and "judge" not in found
    assert list(found["filters"]) == ["IFD", "perplexity", "keep all", "length only"]
    assert found["filters"]["perplexity"]["kept"] == 6  # of so few, 5 % and 95 % are the ends
    verdicts = list(read_jsonl(place / "runs/judge-check/check/verdicts.jsonl"))
    assert found["filters"]["IFD"]["kept"] == sum(row["ifd"] < 1 for row in verdicts)
    assert found["filters"]["length only"]["kept"] == found["filters"]["IFD"]["kept"]
    code, out, _ = call(capsys, *arguments, "--judge", str(tiny), "--mode", "probability", "--min-rating", "1")
    assert code == 0
    filters = [line.split("  ")[0] for line in out.splitlines()[2:7]]
    assert filters == ["judge", "IFD", "perplexity", "keep all", "length only"]
    assert "of the likelihood IFD keeps those below 1" in out
    code, _, err = call(capsys, "check", "--rows", "rows.jsonl")
    assert code == 2 and "expected --judge MODEL, --likelihood MODEL, or both" in err


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (
            [{"prompt": "a", "completion": "b", "right": True, "kind": False}],
            (),
            "Name one of right, kind with --label",
        ),
        ([{"prompt": "a", "completion": "b"}], (), "Name the field that says it, of prompt, completion with --label"),
        (
            [{"prompt": "a", "completion": "b", "label": "yes"}],
            (),
            "the label 'label' is 'yes'; expected true, false or a share from 0 to 1",
        ),
        ([{"prompt": "a", "label": True}], (), "no field 'response' (or 'output' or 'completion')"),
        ([{"prompt": "a", "completion": "b", "label": None}], (), "none of 1 has a label (1 without a label)"),
        ([{"prompt": "a", "completion": "b", "label": True}], ("--label", "good"), "no field 'good'"),
        ([{"prompt": "a", "completion": "b", "label": True}], ("--mode", "loud"), "mode"),
    ],
)
def test_rows_that_cannot_check_a_judge_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], more: tuple[str, ...], message: str
) -> None:
    write_jsonl(place / "rows.jsonl", rows)
    code, _, err = call(capsys, "check", "--judge", "nowhere", "--rows", "rows.jsonl", *more)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_score_prints_a_metric_without_an_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from openbezoar.harness import run

    metrics = {
        "prompt_level_strict_acc": {"value": 0.5, "low": 0.2, "high": 0.8},
        "inst_level_strict_acc": {"value": 0.25, "low": None, "high": None},
    }
    found = {"model": "m", "tasks": {"ifeval": {"metrics": metrics, "n": 4, "fewshot": 0}}}
    monkeypatch.setattr(run, "score_reference", lambda *_, **__: found)
    with pytest.raises(SystemExit) as stop:
        main(["score", "m", "--tasks", "ifeval"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "0.5000  [0.2000, 0.8000]  n=4" in out
    assert "0.2500  (no interval)  n=4" in out


def test_models_are_chosen_by_either_name_of_the_field(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from openbezoar.errors import UserError
    from openbezoar.recipe import file as recipe_file
    from openbezoar.recipe.blocks import DataSpec
    from openbezoar.rows.sources import read

    def told(tree: dict[str, Any], name: str) -> None:
        (ref,) = tree["steps"]["grades"]["answers"]
        raise UserError(
            " ".join(str(row["model_id"]) for _, row in read(DataSpec.model_validate(ref), place, None, {}, 1))
        )

    monkeypatch.setattr(recipe_file, "parse", told)
    arguments = (
        "--judge",
        "j",
        "--questions",
        "questions.jsonl",
        "--answers",
        "answers.jsonl",
        "--models",
        "bad, fair",
    )
    assert call(capsys, *arguments)[2].strip().endswith("bad bad bad")
    write_jsonl(
        place / "answers.jsonl", [{"question_id": 0, "model": m, "turns": ["A", "B"]} for m in ("good", "bad", "fair")]
    )
    assert call(capsys, *arguments)[2].strip().endswith("bad fair")
