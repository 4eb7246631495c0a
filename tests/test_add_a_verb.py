"""The verb of docs/how-to/add-a-verb.md: one folder and one row, beside a package that knows nothing of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.recipe.verbs import VERBS

PAGE = (Path(__file__).parents[1] / "docs/how-to/add-a-verb.md").read_text(encoding="utf-8")
ROWS = [{"instruction": "a b a b"}, {"instruction": "c d"}]  # pairs: ab, ba, ab, cd
(DIFF,) = re.findall(r"^```diff\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's package, known for the time of a test, its recipe, and rows."""
    subprocess.run(["git", "apply", "-"], input=DIFF, text=True, cwd=tmp_path, check=True)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = dict(VERBS)
    import diversity  # type: ignore[import-not-found]  # noqa: F401

    yield tmp_path
    VERBS.clear()
    VERBS.update(before)
    for name in [name for name in sys.modules if name.partition(".")[0] == "diversity"]:
        del sys.modules[name]


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_page_s_verb_is_one_of_plans_runs_reports_and_shows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted({name.split("/")[0] for name in re.findall(r"^\+\+\+ b/(.*)$", DIFF, re.M)}) == [
        "diversity",
        "mine.yaml",
    ]

    assert command("plan", "mine.yaml", "--json") == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [step["rows"] for step in plan["steps"] if step["name"] == "wide"] == [2]

    assert command("run", "mine.yaml") == 0
    capsys.readouterr()
    report = (folder / "runs/mine/report/report.md").read_text(encoding="utf-8")
    assert "## Diversity" in report and re.search(r"wide +\| 4 +\| 0.750", report)
    assert "counts different word pairs" in report and "distinct-2 0.75" in report

    assert command("show", "runs/mine") == 0
    assert "75% of 4 word pairs are different" in capsys.readouterr().out


def test_its_key_holds_its_rows_and_settings_and_leaves_out_what_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def states(*overrides: str) -> dict[str, str]:
        assert command("plan", "mine.yaml", "--json", *(f"--set={text}" for text in overrides)) == 0
        return {step["name"]: step["why"] for step in json.loads(capsys.readouterr().out)["steps"]}

    assert command("run", "mine.yaml") == 0
    capsys.readouterr()
    assert states()["wide"] == "" and states("steps.wide.least=0.9")["wide"] == ""
    assert states("steps.wide.field=response")["wide"] == "field: instruction → response"
    (folder / "rows.jsonl").write_text('{"instruction": "other words here"}\n')
    assert states()["wide"] == "file rows.jsonl changed"


def test_mistakes_in_its_steps_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan", "mine.yaml", "--set=steps.wide.diversity=none.jsonl") == 2
    assert re.search(r"steps.wide.diversity: no file .*none.jsonl; paths are relative", capsys.readouterr().err)
    assert command("plan", "mine.yaml", "--set=steps.wide.lest=1") == 2
    assert "steps.wide: lest: unknown key (did you mean 'least' for 'lest'?)" in capsys.readouterr().err
    assert command("plan", "mine.yaml", "--set=steps.report.diversity=wide") == 2
    assert "two verbs (report, diversity)" in capsys.readouterr().err
