"""Two runs held against one another: what is paired, what is not and why, and that neither run is touched."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import failures, make_run
from synthetic_run import step as finished_step

from openbezoar.cli.app import main
from openbezoar.reporting.facts import read_facts
from openbezoar.reporting.scores import differences
from openbezoar.reporting.scores_table import scores_table
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.report.compare import compare_scores, settings_that_differ
from openbezoar.verbs.report.compare_page import write_comparison


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    """The same run twice, but the second one's last checkpoint answers 0.3 more of a task's questions right."""
    return make_run(tmp_path / "demo"), make_run(tmp_path / "other", 0.3)


def edit(run: RunFolder, step: str, file: str, *change: tuple[list[str], object]) -> None:
    path = run.step(step) / file
    content = json.loads(path.read_text())
    for keys, value in change:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def by_name(first: RunFolder, other: RunFolder) -> dict[tuple[str, str], Any]:
    return {(c.checkpoint, c.title.split(",")[0]): c for c in compare_scores(read_facts(first), read_facts(other))}


def test_the_same_items_are_paired_and_the_difference_is_the_other_less_the_first(
    runs: tuple[RunFolder, RunFolder],
) -> None:
    found = by_name(*runs)
    dpo = found["DPO", "passages: acc"].difference
    # 29 of 48 right (0.61) against 44 (0.91): McNemar's exact p of 15 items that changed one way is
    # 2^-14, times the number of comparisons.
    paired = [c for c in found.values() if c.difference is not None]
    assert (dpo.n, dpo.verdict) == (48, "better") and dpo.value == pytest.approx(15 / 48)
    assert dpo.p == pytest.approx(min(1.0, len(paired) * 2.0**-14), rel=1e-9)
    assert found["base", "passages: acc"].difference.verdict == "noise"
    assert found["DPO", "MT-Bench: answers that stop"].difference.value == 0


@pytest.mark.parametrize(
    ("step", "file", "keys", "value", "measure", "why"),
    [
        (
            "scores",
            "scores.json",
            ["checkpoints", "DPO", "tasks", "passages", "prompt_hash"],
            "p2",
            "passages: acc",
            "other items",
        ),
        (
            "scores",
            "scores.json",
            ["checkpoints", "DPO", "tasks", "passages", "prompt_hash"],
            None,
            "passages: acc",
            "not known",
        ),
        ("talks", "manifest.json", ["parts", "models", "base", "model"], "another", "MT-Bench: mean rating", "judge"),
    ],
)
def test_other_items_or_another_judge_are_not_paired(
    runs: tuple[RunFolder, RunFolder], step: str, file: str, keys: list[str], value: object, measure: str, why: str
) -> None:
    edit(runs[1], step, file, (keys, value))
    compared = by_name(*runs)["DPO", measure]
    assert compared.difference is None and why in compared.why
    assert compared.first is not None and compared.other is not None, "both scores are shown all the same"


def test_ratings_are_paired_on_the_turns_that_both_runs_have(runs: tuple[RunFolder, RunFolder]) -> None:
    path = runs[1].step("talks") / "judgments.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # In the other run the judge could be read on second turns only, in the first one on first turns only.
    path.write_text("".join(json.dumps({**row, "rating": None if row["turn"] == 1 else 2.0}) + "\n" for row in rows))
    found = by_name(*runs)["DPO", "MT-Bench: mean rating"]
    assert (found.difference, found.why) == (None, "no item in common")


def test_rows_shuffled_by_another_seed_are_other_rows(runs: tuple[RunFolder, RunFolder]) -> None:
    for run in runs:
        edit(run, "scores", "scores.json", (["checkpoints", "DPO", "pairs", "hh", "items"], [1, 0] * 10))
        edit(
            run,
            "scores",
            "manifest.json",
            (["parts", "files"], {"p.jsonl": "ab"}),
            (["parts", "settings", "pairs"], {"hh": {"data": "p.jsonl", "shuffle": True}}),
        )
    assert by_name(*runs)["DPO", "hh: likelihood accuracy"].difference.n == 20
    edit(runs[1], "scores", "manifest.json", (["parts", "seed"], 8))
    found = by_name(*runs)["DPO", "hh: likelihood accuracy"]
    assert (found.difference, found.why) == (None, "other items, judge or settings")
    for run in runs:  # in the file's order the seed moves no row
        edit(
            run,
            "scores",
            "manifest.json",
            (["parts", "settings", "pairs"], {"hh": {"data": "p.jsonl", "shuffle": False}}),
        )
    assert by_name(*runs)["DPO", "hh: likelihood accuracy"].difference.n == 20


def test_reward_accuracies_are_paired_only_where_they_are_seen_from_the_same_reference(
    runs: tuple[RunFolder, RunFolder],
) -> None:
    for run, margins in zip(runs, ([1.0, -0.2] * 10, [1.0, 0.3] * 9 + [0.4, None]), strict=True):
        used = [m for m in margins if m is not None]
        share = {"value": sum(m > 0 for m in used) / len(used), "low": 0.1, "high": 1.0}
        found = {"hh": {"n": len(used), "accuracy": share, "items": margins}}
        edit(run, "scores", "scores.json", (["checkpoints", "DPO", "rewards"], found), (["reference"], "SFT"))
        edit(
            run,
            "scores",
            "manifest.json",
            (["parts", "files"], {"p.jsonl": "ab"}),
            (["parts", "settings", "pairs"], {"hh": {"data": "p.jsonl"}}),
        )
    difference = by_name(*runs)["DPO", "hh: reward accuracy"].difference
    assert (difference.value, difference.n) == (pytest.approx(9 / 19), 19), "shares, not nats"
    edit(runs[1], "scores", "scores.json", (["reference"], "base"))
    found = by_name(*runs)["DPO", "hh: reward accuracy"]
    assert (found.difference, found.why) == (None, "other items, judge or settings")


def test_each_of_two_failures_steps_is_compared(runs: tuple[RunFolder, RunFolder]) -> None:
    for run, said in zip(runs, ("Fine.", "on and " * 40), strict=True):
        answers = [
            {"model": "DPO", "set": "instructions", "system": "trained", "id": str(n), "answer": said, "finish": "stop"}
            for n in range(16)
        ]
        settings = {"failures": ["base", "DPO"], "instructions": "i.jsonl", "rows": 16, "max_new_tokens": 9}
        finished_step(
            run.path,
            "yet-more",
            "failures",
            settings,
            ["DPO"],
            {"scores.json": failures(), "answers.jsonl": answers},
            10,
            data_files={"i.jsonl": "ab"},
        )
    found = {
        c.title: c
        for c in compare_scores(*map(read_facts, runs))
        if c.checkpoint == "DPO" and c.title.startswith("degenerate")
    }
    assert list(found) == ["degenerate", "degenerate, yet-more"]
    assert found["degenerate"].why == "not known to be the same items"
    assert found["degenerate, yet-more"].difference.verdict == "worse"


def test_of_some_tasks_less_is_better(runs: tuple[RunFolder, RunFolder]) -> None:
    for run in runs:
        edit(
            run,
            "scores",
            "scores.json",
            *((["checkpoints", c, "tasks", "passages", "higher_is_better"], False) for c in ("base", "SFT", "DPO")),
        )
    (found,) = [
        d for d in differences(read_facts(runs[0])) if (d.before, d.after, d.what) == ("base", "SFT", "passages: acc")
    ]
    assert (found.value, found.verdict) == (0.1, "worse")
    assert by_name(*runs)["DPO", "passages: acc"].difference.verdict == "worse"
    table = scores_table(read_facts(runs[0]))
    assert any(header.startswith("passages: acc, 0-shot, lower is better") for header in table.headers)
    assert table.note.endswith("higher for everything else that does not say otherwise.")


def test_the_last_checkpoints_are_paired_where_the_recipes_call_them_differently(
    runs: tuple[RunFolder, RunFolder],
) -> None:
    for step in ("scores", "talks", "wrong"):
        path = runs[1].step(step) / "scores.json"
        path.write_text(path.read_text().replace('"DPO"', '"KTO"'))
    found = by_name(*runs)
    assert found["DPO / KTO", "passages: acc"].difference.n == 48


def test_published_answers_in_both_runs_do_not_hide_which_checkpoints_are_last(
    runs: tuple[RunFolder, RunFolder],
) -> None:
    for run, name in zip(runs, ("DPO", "KTO"), strict=True):
        for step in ("scores", "talks", "wrong"):
            path = run.step(step) / "scores.json"
            path.write_text(path.read_text().replace('"DPO"', f'"{name}"'))
        path = run.step("talks") / "scores.json"
        scores = json.loads(path.read_text())
        scores["models"]["published"] = scores["models"]["base"]
        path.write_text(json.dumps(scores))
    assert by_name(*runs)["DPO / KTO", "passages: acc"].difference.n == 48


def test_settings_that_differ_are_named_and_equal_ones_are_not(runs: tuple[RunFolder, RunFolder]) -> None:
    assert settings_that_differ(read_facts(runs[0]), read_facts(runs[1])) == []
    edit(
        runs[1],
        "dpo",
        "manifest.json",
        (["parts", "settings", "beta"], 0.5),
        (["parts", "files", "pairs.jsonl"], "cd" * 32),
    )
    found = {
        (s.step, s.key): (s.first, s.other) for s in settings_that_differ(read_facts(runs[0]), read_facts(runs[1]))
    }
    assert found == {
        ("dpo", "beta"): ("0.1", "0.5"),
        ("dpo", "SHA-256 of pairs.jsonl"): ("abababababab…", "cdcdcdcdcdcd…"),
    }


def test_a_step_of_one_run_only_is_named(runs: tuple[RunFolder, RunFolder]) -> None:
    (runs[1].step("check") / "manifest.json").unlink()
    assert [(s.step, s.first, s.other) for s in settings_that_differ(read_facts(runs[0]), read_facts(runs[1]))] == [
        ("check", "agreement", None)
    ]


def test_the_page_and_its_markdown_say_what_got_better_and_what_is_noise(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path
) -> None:
    page = write_comparison(*runs, tmp_path / "out")
    markdown = page.with_suffix(".md").read_text()
    assert "- **Better:** DPO, passages: acc, 0-shot: 0.610 in 'demo', 0.910 in 'other', difference +0.312" in markdown
    assert "the two runs cannot be told apart" in markdown and "No setting and no input differs" in markdown
    assert "| kept | 1 of 4 kept | 1 of 4 kept |" in markdown and "2.500 → 1.250" in markdown
    assert "dpo: training margin" in page.read_text()


def test_runs_of_the_same_name_are_told_apart_by_the_folder_above(tmp_path: Path) -> None:
    first, other = make_run(tmp_path / "a/demo"), make_run(tmp_path / "b/demo")
    text = write_comparison(first, other, tmp_path / "out").with_suffix(".md").read_text()
    assert "Runs 'a/demo' and 'b/demo' compared" in text


def everything(run: RunFolder) -> dict[str, bytes]:
    return {str(p.relative_to(run.path)): p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


def test_the_command_prints_the_path_and_disturbs_neither_run(
    runs: tuple[RunFolder, RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    before = [everything(run) for run in runs]
    with pytest.raises(SystemExit) as ended:
        main(["report", str(runs[0].path), str(runs[1].path)])
    assert ended.value.code == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == runs[0].path / "compare-other" / "compare.html" and page.is_file()
    assert everything(runs[1]) == before[1]
    assert {k: v for k, v in everything(runs[0]).items() if not k.startswith("compare-other/")} == before[0]
    assert (
        list(read_facts(runs[0]).steps) == list(read_facts(RunFolder(runs[0].path)).steps)
        and "compare-other" not in read_facts(runs[0]).steps
    )


def test_a_folder_that_is_no_run_is_refused_in_one_line(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(runs[0].path), str(tmp_path / "nothing")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_report_makes_the_page_again_without_a_recipe(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(runs[0].path)])
    assert Path(capsys.readouterr().out.strip()) == runs[0].path / "report" / "report.html"
    with pytest.raises(SystemExit):
        main(["report", str(runs[0].path), "--out", str(tmp_path / "elsewhere")])
    assert (tmp_path / "elsewhere/report.md").is_file()
