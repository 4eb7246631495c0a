"""The recipe's schema and its one-line errors; the command line's exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from openbezoar import graph
from openbezoar.cli import main
from openbezoar.errors import RecipeError
from openbezoar.recipe import json_schema
from openbezoar.recipe_file import load

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SFT = {"sft": "rows.jsonl", "model": "base"}


def run_cli(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_shipped_recipe_parses_and_states_its_own_command(path: Path) -> None:
    recipe = load(path)
    assert recipe.name == path.stem
    assert f"recipes/{path.name}" in path.read_text().splitlines()[0]


@pytest.mark.parametrize("name", ["demo", "openbezoar-3b"])
def test_shipped_recipes_build_a_graph_whose_inputs_come_first(name: str, tmp_path: Path) -> None:
    built = graph.build(load(ROOT / "recipes" / f"{name}.yaml"), ROOT / "recipes" / f"{name}.yaml", tmp_path)
    seen: set[str] = set()
    for node in built.nodes.values():
        assert set(node.inputs) <= seen
        assert node.state == "missing"
        seen.add(node.name)


def test_the_demo_has_a_dpo_step_with_a_literal_beta() -> None:
    text = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text())
    assert text["name"] == "demo"
    assert text["steps"]["dpo"]["beta"] == 0.1


CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"a": {**SFT, "bacth": 4}}, {}, "did you mean 'batch'"),
    ({"a": {**SFT, "lora": {"rank": 4}}}, {}, "steps.a: lora.rank: unknown key"),
    ({"a": {"sft": "rows.jsonl"}}, {}, "steps.a: model: missing"),
    ({"a": {"sfft": "rows.jsonl", "model": "base"}}, {}, "did you mean 'sft'"),
    ({"a": {**SFT, "merge": "b"}}, {}, "two verbs"),
    ({"a": {**SFT, "batch": 0}}, {}, "steps.a: batch"),
    ({"a": {"sft": "missing.jsonl", "model": "base"}}, {}, "no file"),
    ({"a": {"sft": "nowhere", "model": "base"}}, {}, "no step 'nowhere'"),
    ({"a": {"sft": "rows.jsonl", "model": "bas"}}, {}, "did you mean 'base'"),
    ({"a": {"sft": "rows.jsonl", "model": "b"}, "b": {"sft": "rows.jsonl", "model": "a"}}, {}, "steps go in a circle: a → b → a"),
    (
        {"a": {**SFT, "lora": {"r": 4}}, "b": {**SFT, "model": "a"}, "c": {**SFT, "model": "b", "lora": {"r": 8}}},
        {},
        "steps.c.lora.r: 8, but the adapter of 'b', which is continued, has 4",
    ),
    ({"a": SFT, "m": {"merge": "base"}}, {}, "steps.m"),
    ({"a": SFT, "b": {"sft": "a", "model": "base"}}, {}, "'a' is a sft step and has no rows"),
    ({"base": SFT}, {}, "both a model and a step"),
    ({"../x": SFT}, {}, "cannot be a folder's name"),
    ({"a": {"generate": "lamini", "teacher": "base", "seeds": "rows.jsonl", "rows": 4, "topicss": "x"}}, {}, "topicss"),
    ({"a": {"generate": "magic", "teacher": "base", "seeds": "rows.jsonl", "rows": 4}}, {}, "no scheme 'magic'"),
    ({"a": SFT}, {"defaults": {"sft": {"bach": 3}}}, "defaults.sft.bach"),
    ({"a": SFT}, {"defaults": {"stf": {}}}, "did you mean 'sft'"),
    ({"a": SFT}, {"nmae": "x"}, "nmae: unknown key"),
    ({"a": {"sft": "$data/x.jsonl", "model": "base"}}, {}, "has no 'data' folder"),
]


@pytest.mark.parametrize(("steps", "top", "expected"), CASES, ids=[c[2] for c in CASES])
def test_a_mistake_in_a_recipe_is_one_line_with_exit_2(
    steps: dict[str, Any], top: dict[str, Any], expected: str, write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(steps, **top)
    for command in ("plan", "run"):
        code, _, err = run_cli([command, str(path), "--runs", str(tmp_path / "runs")], capsys)
        assert code == 2
        assert expected in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_continued_adapter_may_state_its_own_settings_and_a_new_one_others(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    same = {"r": 4, "targets": ["k_proj", "q_proj"]}
    first = {**SFT, "lora": {"r": 4, "targets": ["q_proj", "k_proj"]}}
    steps = {"a": first, "b": {**SFT, "model": "a", "lora": same}, "c": {**SFT, "model": "b", "adapter": "new", "lora": {"r": 8}}}
    path = write_recipe({**steps, "m": {"merge": "c"}, "d": {**SFT, "model": "m", "lora": {"r": 2}}})
    assert len(graph.build(load(path), path, tmp_path).nodes) == 5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"instruction": "a", "response": "b"}\n{"instruction": ', "line 2 is not JSON"),
        ('{"instruction": "a", "response": "b"}\n[1]\n', "line 2 is not a JSON object"),
        ('{"text": "a"}\n', "no field 'instruction'"),
        ('{"id": "x7", "instruction": "a"}\n', "x7: no field 'response'"),
        ('{"instruction": " ", "response": "b"}\n', "the instruction is empty"),
        ('{"chosen": "hello", "rejected": "b"}\n', "no row is left to train on (1 not a dialogue"),
    ],
)
def test_bad_rows_stop_the_step_with_the_place_and_keep_what_was_done(
    rows: str, expected: str, write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({"good": {"filter": "rows.jsonl"}, "bad": {"sft": "bad.jsonl", "model": "base"}})
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    code, _, _ = run_cli(["run", str(path), "--runs", str(tmp_path / "runs"), "--to", "good"], capsys)
    assert code == 0
    (tmp_path / "bad.jsonl").write_text(rows)
    code, _, err = run_cli(["run", str(path), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("openbezoar: ")
    assert expected in last
    assert (tmp_path / "runs/t/good/manifest.json").is_file()


def test_a_dialogue_that_is_none_is_dropped_and_counted_among_good_ones(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({"a": {"dpo": "pairs.jsonl", "model": "base", "max_steps": 1, "dtype": "float32"}})
    odd = [
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: d"},
    ]
    with (tmp_path / "pairs.jsonl").open("a") as out:
        out.writelines(json.dumps(row) + "\n" for row in odd)
    code, _, _ = run_cli(["run", str(path), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 0
    manifest = json.loads((tmp_path / "runs/t/a/manifest.json").read_text())
    assert manifest["counts"] == {"not a dialogue that ends with an answer": 1, "chosen and rejected have different prompts": 1}
    assert manifest["numbers"]["rows"] == 18


def test_a_model_folder_without_a_tokenizer_is_refused_by_name(
    write_recipe: Callable[..., Path], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tiny / name).read_bytes())
    path = write_recipe({"a": {**SFT, "model": "other"}}, models={"other": str(bare)})
    code, _, err = run_cli(["run", str(path), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 2
    assert "no tokenizer" in err
    assert "Traceback" not in err


def test_an_unreachable_hub_is_one_line_that_says_what_to_do(write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe({"a": {**SFT, "model": "other"}}, models={"other": "nobody/no-such-model@main"})
    code, _, err = run_cli(["run", str(path), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 2
    assert "the hub cannot be reached" in err.strip().splitlines()[-1]


def test_set_changes_one_value_and_refuses_an_unknown_step(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe({"dpo": {"dpo": "pairs.jsonl", "model": "base", "beta": 0.1}})
    assert load(path, ["steps.dpo.beta=0.2"]).steps["dpo"].beta == 0.2  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match="no step 'dop'"):
        load(path, ["steps.dop.beta=0.2"])
    with pytest.raises(RecipeError, match="expected key"):
        load(path, ["steps.dpo.beta"])


def test_plan_and_help_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from openbezoar.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'lm_eval', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', heavy, file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["plan", "recipes/demo.yaml", "--runs", str(tmp_path)]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "HEAVY set()" in done.stderr


def test_plan_json_lists_each_step_with_its_state(write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe({"a": SFT, "m": {"merge": "a"}})
    code, out, _ = run_cli(["plan", str(path), "--runs", str(tmp_path / "runs"), "--json"], capsys)
    steps = json.loads(out)["steps"]
    assert code == 0
    assert [(s["name"], s["verb"], s["state"], s["why"]) for s in steps] == [("a", "sft", "missing", "not run yet"), ("m", "merge", "missing", "not run yet")]
    assert steps[0]["rows"] == 24


def test_the_json_schema_accepts_the_shipped_recipes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for path in RECIPES:
        jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())
