"""``openbezoar init``: what is written runs from its new place, and nothing is overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from openbezoar.cli.app import main
from openbezoar.cli.init import TEMPLATES
from openbezoar.recipe import shipped
from openbezoar.recipe.file import load


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_template_all_are_listed_in_a_line_each_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    code, out, _ = said(capsys, "init")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[: len(TEMPLATES)]] == list(TEMPLATES)
    assert list(elsewhere.iterdir()) == []
    assert {file for file, _ in TEMPLATES.values()} <= set(shipped.names())


@pytest.mark.parametrize("template", ["demo", "paper", "pairs", "judge"])
def test_a_template_has_what_it_reads_and_the_two_printed_commands_take_it(
    template: str, capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    code, out, err = said(capsys, "init", "own/mine.yaml", "--template", template)
    assert (code, err) == (0, "")
    text = Path("own/mine.yaml").read_text(encoding="utf-8")
    assert "recipes/" not in text and "make " not in text.partition("\nname:")[0]
    commands = re.findall(r"^  .*openbezoar (plan|run) (\S+)$", out, re.M) or re.findall(
        r"^  .* (plan|run) (\S+)$", out, re.M
    )
    assert commands == [("plan", "own/mine.yaml"), ("run", "own/mine.yaml")]
    code, planned, err = said(capsys, "plan", "own/mine.yaml", "--json", "--device", "h100")
    assert code == 0, err
    recipe = load(Path("own/mine.yaml"))
    assert recipe.name == "mine" and [step["name"] for step in json.loads(planned)["steps"]] == list(recipe.steps)
    assert load(shipped.FOLDER / f"{TEMPLATES[template][0]}.yaml").steps == recipe.steps
    read = {path.name for path in Path("own/demo").iterdir()} - {"README.md"}
    assert read == set(re.findall(r"demo/([\w-]+\.jsonl)", text))


def test_the_recipe_for_a_folder_of_data_says_where_the_folder_goes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "init", "--template", "small")
    assert code == 0 and "into data," in out and load(Path("my.yaml")).data == "data"
    code, _, err = said(capsys, "plan", "my.yaml")
    assert code == 2 and len(err.splitlines()) == 1 and "data/dolly.jsonl.gz" in err


def test_nothing_is_overwritten_and_nothing_half_written(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    Path("my.yaml").write_text("mine")
    code, _, err = said(capsys, "init", "my.yaml", "--template", "pairs")
    assert code == 2 and err.splitlines() == [
        "openbezoar: init: my.yaml is there already, and is not overwritten; name another file, such as"
        " new-my.yaml, or move it away"
    ]
    assert Path("my.yaml").read_text() == "mine" and not Path("demo").exists()
    Path("demo").mkdir()
    Path("demo/pairs.jsonl").write_text("my pairs")
    code, _, err = said(capsys, "init", "other.yaml", "--template", "pairs")
    assert code == 2 and "demo/pairs.jsonl is there already" in err and not Path("other.yaml").exists()
    assert Path("demo/pairs.jsonl").read_text() == "my pairs"


def test_two_recipes_in_a_folder_share_what_they_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "init", "one.yaml", "--template", "pairs")[0] == 0
    code, out, _ = said(capsys, "init", "two.yaml", "--template", "judge")
    assert code == 0 and "wrote two.yaml" in out and "wrote demo/pairs.jsonl" not in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["init", "--template", "pair"], "did you mean 'pairs'"),
        (["init", "my.txt", "--template", "pairs"], "expected the name of a recipe's file, such as my.yaml"),
        (["init", "-x-.yaml", "--template", "pairs"], "see openbezoar init --help"),
        (["init", "é.yaml", "--template", "pairs"], "expected the name of a recipe's file, such as my.yaml"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    code, _, err = said(capsys, *arguments)
    assert code == 2 and len(err.splitlines()) == 1 and expected in err
    assert list(elsewhere.iterdir()) == []
