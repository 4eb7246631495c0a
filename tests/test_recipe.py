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

from openbezoar.cli.app import main
from openbezoar.engine import execution, graph
from openbezoar.errors import RecipeError
from openbezoar.progress import Silent
from openbezoar.recipe.file import load
from openbezoar.recipe.schema import json_schema

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
    (
        {"a": {"sft": "rows.jsonl", "model": "b"}, "b": {"sft": "rows.jsonl", "model": "a"}},
        {},
        "steps go in a circle: a → b → a",
    ),
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
    (
        {"a": {"sft": {"data": "rows.jsonl", "limit": -1}, "model": "base"}},
        {},
        "steps.a: sft.limit: Input should be greater",
    ),
    (
        {"a": {"sft": ["rows.jsonl", {"dta": "rows.jsonl"}], "model": "base"}},
        {},
        "sft.1.dta: unknown key (did you mean 'data'",
    ),
    ({"a": {"sft": {"file": "rows.jsonl"}, "model": "base"}}, {}, "sft.file: unknown key; see"),
    (
        {"a": {**SFT, "model": "strong"}},
        {"models": {"strong": {"server": "http://x", "modle": "y"}}},
        "models.strong.modle: unknown key (did you mean 'model'",
    ),
    ({"a": SFT}, {"models": {"base": {"modell": "y"}}}, "models.base.modell: unknown key (did you mean 'model'"),
    (
        {"a": SFT},
        {"models": {"base": {"server": "localhost:8000", "model": "y"}}},
        "models.base.server: expected an address that begins with http://",
    ),
    ({"a": SFT}, {"models": {"base": 5}}, "models.base: expected a mapping (it is 5)"),
    ({"a": SFT}, {"models": {"base": "/nowhere/model"}}, "models.base: no folder or file /nowhere/model"),
    ({"a": SFT}, {"defaults": {"sft": 3}}, "defaults.sft: expected a mapping"),
    ({"a": {**SFT, "epochs": float("inf")}}, {}, "epochs: Input should be a finite number"),
    ({"a": {**SFT, "batch": True}}, {}, "steps.a: batch: expected a number (it is True)"),
    (
        {"a": SFT},
        {"defaults": {"sft": {"learning_rate": False}}},
        "steps.a: learning_rate: expected a number (it is False)",
    ),
    (
        {"a": {"generate": "magpie", "teacher": "base", "rows": True}},
        {},
        "steps.a: rows: expected a number (it is True)",
    ),
    (
        {"a": {"generate": "magpie", "teacher": "base", "rows": 1, "instruction_tokens": True}},
        {},
        "instruction_tokens: expected a number (it is True)",
    ),
    ({"a": SFT}, {"budget": {"tokens": True}}, "budget.tokens: expected a number (it is True)"),
    ({"a": {"filter": {"data": "rows.jsonl", "limit": True}}}, {}, "limit: expected a number (it is True)"),
    ({"a": {**SFT, "learning_rate": 1e31}}, {}, "learning_rate: expected a number of at most 1e+30"),
    ({"a": {**SFT, "lora": {"r": 10**18}}}, {}, "lora.r: Input should be less than or equal to 65536"),
    ({"a": {**SFT, "lora": {"targets": []}}}, {}, "lora.targets: List should have at least 1 item"),
    (
        {"a": SFT},
        {"prompt": {"template": "mine.jinja"}},
        "prompt.template: 'mine.jinja' is none of openbezoar, own, and there is no file",
    ),
    ({"a": {"sft": "x" * 300, "model": "base"}}, {}, "File name too long"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: x\nsteps:\n  a: {filter: r.jsonl}\n  a: {filter: r.jsonl, min_rating: 9}\n",
            "line 4: 'a' is there already, in line 3",
        ),
        ("name: x\nseed: 2024-13-45\n", "not YAML: month must be in 1..12"),
        ("[" * 5000, "nested too deeply"),
        ("caf\xe9", "not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_bytes(text.encode("latin-1"))
    code, _, err = run_cli(["plan", str(tmp_path / "r.yaml")], capsys)
    assert code == 2 and expected in err and err.count("\n") == 1
    code, _, err = run_cli(["plan", str(tmp_path)], capsys)
    assert code == 2 and "Is a directory; expected a recipe's file" in err


def test_a_key_may_be_overridden_where_a_mapping_is_merged(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe({})
    path.write_text(
        "name: t\nmodels: {base: a/b}\nsteps:\n  a: &a {sft: rows.jsonl, model: base, batch: 2}\n  b: &b {<<: *a,"
        " batch: 4}\n  c: {<<: *b, batch: 8}\n"
    )
    assert [step.batch for step in load(path).steps.values()] == [2, 4, 8]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan"], "openbezoar: Missing argument 'RECIPE'; see openbezoar plan --help\n"),
        (
            ["cache", "--prune", "-1"],
            "Invalid value for '--prune': ",  # in typer's words, or click's
        ),
        (["nothing"], "No such command 'nothing'; see openbezoar --help\n"),
        (["plan", "r.yaml", "--set", "seed=2024-13-45"], "r.yaml: no such recipe"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_argument(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_cli(arguments, capsys)
    assert code == 2 and expected in err and err.count("\n") == 1


def test_without_a_command_the_help_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli([], capsys)
    assert code == 2 and err.startswith("Usage: openbezoar") and "see openbezoar" not in err


def test_what_the_machine_refuses_is_one_line(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_recipe({"kept": {"filter": "rows.jsonl"}})
    code, _, err = run_cli(["run", str(path), "--runs", str(tmp_path / "rows.jsonl")], capsys)
    assert code == 2 and "Not a directory; name another path" in err and "Traceback" not in err

    for error in (
        OSError(28, "No space left on device", "runs/t/x"),
        RuntimeError("Error while serializing: No space left on device (os error 28)"),
    ):

        def full(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(execution, "execute", full)
        code, _, err = run_cli(["run", str(path), "--runs", str(tmp_path / "runs")], capsys)
        assert (
            code == 2
            and "No space left on device" in err
            and "make room and give the same command again" in err
            and err.count("\n") == 1
        )


def test_a_recipe_that_is_edited_while_it_runs_ends_as_it_began(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_recipe({"kept": {"filter": "rows.jsonl"}})
    execute = execution.execute

    def edited(*arguments: Any, **named: Any) -> list[str]:
        path.write_text("half a reci")
        return execute(*arguments, **named)

    monkeypatch.setattr(execution, "execute", edited)
    code, _, err = run_cli(["run", str(path), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 0, err
    assert (tmp_path / "runs/t/run.json").is_file()


def test_a_huge_limit_is_no_limit(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(
        {"kept": {"filter": {"data": "rows.jsonl", "limit": 10**30}, "rules": {"drop_repetition": 1.0}}}
    )
    execution.execute(graph.build(load(path), path, tmp_path / "runs"), Silent())
    assert (tmp_path / "runs/t/kept/manifest.json").is_file()


def test_a_change_of_the_chat_template_s_file_runs_its_steps_again(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    def keys() -> dict[str, str]:
        return {name: node.key for name, node in graph.build(load(path), path, tmp_path / "runs").nodes.items()}

    (tmp_path / "mine.jinja").write_text("A")
    own = {"base": {"model": "pypi:x", "prompt": {"template": "mine.jinja"}}}
    for top in ({"prompt": {"template": "mine.jinja"}}, {"models": own}):
        path = write_recipe({"a": SFT}, **top)
        before = keys()
        (tmp_path / "mine.jinja").write_text((tmp_path / "mine.jinja").read_text() + "B")
        assert keys() != before


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"{"])
def test_a_damaged_manifest_is_one_line(
    content: bytes, write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({"kept": {"filter": "rows.jsonl"}})
    (tmp_path / "runs/t/kept").mkdir(parents=True)
    (tmp_path / "runs/t/kept/manifest.json").write_bytes(content)
    for arguments in (
        ["plan", str(path), "--runs", str(tmp_path / "runs")],
        ["show", str(tmp_path / "runs/t")],
        ["report", str(tmp_path / "runs/t")],
    ):
        code, _, err = run_cli(arguments, capsys)
        assert code == 2 and "delete the folder and run again" in err and err.count("\n") == 1


def test_a_release_of_a_copied_run_stays_in_it_and_trains_nothing(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = {"sft": SFT, "chat": {"merge": "sft"}, "release": {"release": ["chat"]}}
    path = write_recipe(steps)
    copy = tmp_path / "runs" / "copy"
    nodes = graph.build(load(path), path, tmp_path / "runs").nodes
    for name, node in nodes.items():
        (copy / name).mkdir(parents=True)
        (copy / name / "manifest.json").write_text(json.dumps({"verb": node.verb, "key": node.key}))
    (copy / "run.json").write_text(json.dumps({"recipe": str(path), "overrides": []}))
    monkeypatch.chdir(copy)
    for named in (str(copy), "."):
        code, out, err = run_cli(["release", named], capsys)
        assert (code, err) == (0, "") and Path(out.strip()) == copy / "release"
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["copy"]
    write_recipe({**steps, "sft": {**SFT, "batch": 3}})
    code, _, err = run_cli(["release", str(copy)], capsys)
    assert code == 2 and "sft is not what" in err and "take the recipe's change back" in err
    (copy / "run.json").write_text("{}")
    code, _, err = run_cli(["release", str(copy)], capsys)
    assert code == 2 and "does not name the run's recipe" in err


def test_plan_takes_manifests_that_say_little(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({"a": {"filter": "rows.jsonl"}})
    node = graph.build(load(path), path, tmp_path / "runs").nodes["a"]
    (tmp_path / "runs/t/a").mkdir(parents=True)
    (tmp_path / "runs/t/a/manifest.json").write_text(json.dumps({"verb": "filter", "key": node.key}))
    code, out, err = run_cli(["plan", str(path), "--runs", str(tmp_path / "runs")], capsys)
    assert (code, err) == (0, "") and "done" in out


@pytest.mark.parametrize(("steps", "top", "expected"), CASES, ids=[c[2] for c in CASES])
def test_a_mistake_in_a_recipe_is_one_line_with_exit_2(
    steps: dict[str, Any],
    top: dict[str, Any],
    expected: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_recipe(steps, **top)
    for command in ("plan", "run"):
        code, _, err = run_cli([command, str(path), "--runs", str(tmp_path / "runs")], capsys)
        assert code == 2
        assert expected in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_continued_adapter_may_state_its_own_settings_and_a_new_one_others(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    same = {"r": 4, "targets": ["k_proj", "q_proj"]}
    first = {**SFT, "lora": {"r": 4, "targets": ["q_proj", "k_proj"]}}
    steps = {
        "a": first,
        "b": {**SFT, "model": "a", "lora": same},
        "c": {**SFT, "model": "b", "adapter": "new", "lora": {"r": 8}},
    }
    path = write_recipe({**steps, "m": {"merge": "c"}, "d": {**SFT, "model": "m", "lora": {"r": 2}}})
    assert len(graph.build(load(path), path, tmp_path).nodes) == 5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"instruction": "a", "response": "b"}\n{"instruction": ', "line 2 is not JSON"),
        ('{"instruction": "a", "response": "b"}\n[1]\n', "line 2 is not a JSON object"),
        ('{"text": "a"}\n', "rows with a 'text' alone have no prompt"),
        ('{"id": "x7", "instruction": "a"}\n', "x7: no field 'response'"),
        ('{"instruction": " ", "response": "b"}\n', "the instruction is empty"),
        ('{"id": "x8", "instruction": null, "response": "b"}\n', "x8: 'instruction' is null; expected a text"),
        ('{"instruction": "", "context": "c", "response": "b"}\n', "the instruction is empty"),
        (
            '{"id": "x9", "instruction": "Translate.", "history": "chat", "output": "cat"}\n',
            "x9: the field 'history' belongs to the prompt and would be left out; put what it says",
        ),
        ('{"chosen": "hello", "rejected": "b"}\n', "no row is left to train on (1 not a dialogue"),
        ('{"system": "s", "messages": [{"role": "user"}]}\n', "row 1: 'messages', message 1 has no 'content'"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "(1 a conversation without an answer to learn)"),
        ('{"chosen": "a", "prompt": "b"}\n{"messages": []}\n', "row 2: it is of the form 'messages'"),
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


def test_no_row_or_manifest_sends_commands_to_a_terminal(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({"a": {"filter": "rows.jsonl"}})
    (path.parent / "rows.jsonl").write_text('{"id": "\\u001b]0;x\\u0007", "\\u009b2J": 1}\n')
    _, _, err = run_cli(["run", str(path), "--runs", str(tmp_path / "runs")], capsys)
    assert "\\x1b]0;x\\x07" in err and "\\x9b2J" in err
    run = tmp_path / "runs" / "hostile"
    (run / "a").mkdir(parents=True)
    (run / "a/manifest.json").write_text(
        json.dumps({"verb": "filter", "summary": "\x1b[2J", "numbers": {"why": "a\u009b2J\u202e\U000e0041 é"}})
    )
    shown = [run_cli(["show", str(run), *more], capsys)[1] for more in ([], ["a"], ["--json"])]
    assert not any(c in text for text in (err, *shown) for c in "\x1b\x07\x9b\u202e\U000e0041")
    assert json.loads(shown[1])["numbers"]["why"] == "a\u009b2J\u202e\U000e0041 é" and "é" in shown[1]


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
    assert manifest["counts"] == {
        "not a dialogue that ends with an answer": 1,
        "chosen and rejected have different prompts": 1,
    }
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


def test_an_unreachable_hub_is_one_line_that_says_what_to_do(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({"a": {**SFT, "model": "other"}}, models={"other": "nobody/no-such-model@main"})
    code, _, err = run_cli(["run", str(path), "--runs", str(tmp_path / "runs")], capsys)
    assert code == 2
    assert "the client is offline (HF_HUB_OFFLINE); go online once" in err.strip().splitlines()[-1]


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
        "from openbezoar.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'lm_eval', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', heavy, file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["plan", "recipes/demo.yaml", "--runs", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "HEAVY set()" in done.stderr


def test_plan_json_lists_each_step_with_its_state(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({"a": SFT, "m": {"merge": "a"}})
    code, out, _ = run_cli(["plan", str(path), "--runs", str(tmp_path / "runs"), "--json"], capsys)
    steps = json.loads(out)["steps"]
    assert code == 0
    assert [(s["name"], s["verb"], s["state"], s["why"]) for s in steps] == [
        ("a", "sft", "missing", "not run yet"),
        ("m", "merge", "missing", "not run yet"),
    ]
    assert steps[0]["rows"] == 22, "two of 24 are held out"


def test_the_json_schema_accepts_the_shipped_recipes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for path in RECIPES:
        jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())
