"""``policy: open``: what is closed, non-commercial or unknown is refused by name, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.engine import graph
from openbezoar.errors import RecipeError
from openbezoar.publishing.licences import is_open, normal, of_model_folder, strictest
from openbezoar.recipe.file import load

Make = Callable[..., Path]


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Make:
    """A recipe in which every licence is open, but for what a test changes."""

    def make(
        models: dict[str, Any] | None = None,
        seeds: Any = "data/seeds.jsonl",
        readme: str = "apache-2.0",
        policy: str = "open",
        **steps: Any,
    ) -> Path:
        (tmp_path / "data").mkdir(exist_ok=True)
        for name in ("seeds", "topics", "rows"):
            (tmp_path / f"data/{name}.jsonl").write_text('{"instruction": "a", "response": "b", "title": "t"}\n')
        (tmp_path / "data/README.md").write_text(
            "| file | licence |\n| --- | --- |\n| `topics.jsonl` | MIT |\n| `rows.jsonl` | CC BY-SA 3.0 |\n|"
            f" `seeds.jsonl` | {readme} |\n"
        )
        shutil.copytree(tiny, tmp_path / "teacher", dirs_exist_ok=True)
        (tmp_path / "teacher/source.json").write_text('{"licence": "Apache-2.0"}')
        known = {
            "teacher": "teacher",
            "judge": {"server": "http://localhost:1/v1", "model": "judge", "licence": "mit"},
            "base": "org/base",
            **(models or {}),
        }
        made = {
            "rows": {
                "generate": "lamini",
                "teacher": "teacher",
                "seeds": seeds,
                "topics": "data/topics.jsonl",
                "rows": 2,
            },
            "kept": {"filter": "rows", "judge": "judge"},
            "tuned": {"sft": ["kept", "data/rows.jsonl"], "model": "base"},
            **steps,
        }
        (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "policy": policy, "models": known, "steps": made}))
        return tmp_path / "r.yaml"

    return make


def build(path: Path) -> graph.Graph:
    return graph.build(load(path), path, path.parent / "runs")


def test_open_sources_pass_and_a_base_is_not_asked_for(recipe: Make) -> None:
    assert len(build(recipe()).nodes) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"models": {"teacher": {"server": "https://api.example.com/v1", "model": "big"}}},
            "teacher 'teacher' (no licence is stated)",
        ),
        (
            {"models": {"judge": {"server": "https://x/v1", "model": "big", "licence": "Proprietary"}}},
            "judge 'judge' (proprietary, not a known open licence)",
        ),
        (
            {"models": {"teacher": {"model": "teacher", "licence": "llama 2"}}},
            "teacher 'teacher' (llama2, not a known open licence)",
        ),
        ({"readme": "CC BY-NC 4.0"}, "seeds 'data/seeds.jsonl' (cc-by-nc-4.0, non-commercial)"),
        ({"readme": ""}, "seeds 'data/seeds.jsonl' (no licence is stated)"),
        (
            {"seeds": {"data": "data/seeds.jsonl", "licence": "CC BY-NC-SA 4.0"}},
            "seeds 'data/seeds.jsonl' (cc-by-nc-sa-4.0, non-commercial)",
        ),
        ({"seeds": "hub:org/closed[train]"}, "seeds 'hub:org/closed[train]' (no licence is stated)"),
        (
            {
                "evol": {
                    "generate": "evol_instruct",
                    "teacher": "teacher",
                    "seeds": "data/rows.jsonl",
                    "rows": 2,
                    "equality_judge": "base",
                }
            },
            "judge 'base' (no licence is stated)",
        ),
        (
            {"talks": {"mt_bench": ["base"], "questions": "data/rows.jsonl", "judge": "base"}},
            "judge 'base' (no licence is stated)",
        ),
        (
            {"more": {"dpo": {"data": "data/seeds.jsonl", "licence": "cc-by-nc-4.0"}, "model": "base"}},
            "seeds.jsonl' (cc-by-nc-4.0, non-commercial)",
        ),
    ],
)
def test_what_is_not_open_is_refused_by_name_and_allowed_without_the_policy(
    recipe: Make, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        build(recipe(**change))
    assert said in str(refused.value) and "policy: open refuses" in str(refused.value)
    build(recipe(**change, policy="any"))


@pytest.mark.parametrize(
    "change",
    [
        {"models": {"teacher": {"server": "https://x/v1", "model": "big", "licence": "apache-2.0"}}},
        {"readme": "", "seeds": {"data": "data/seeds.jsonl", "licence": "cc-by-4.0"}},
        {"readme": "see the website", "seeds": {"data": "data/seeds.jsonl", "licence": "cc-by-4.0"}},
        {"seeds": "hub:databricks/databricks-dolly-15k[train]"},
        {"seeds": {"data": "hub:org/other[train]", "licence": "mit"}},
    ],
)
def test_a_licence_that_the_recipe_states_is_taken(recipe: Make, change: dict[str, Any]) -> None:
    build(recipe(**change))


@pytest.mark.parametrize("command", ["plan", "run"])
def test_plan_and_run_refuse_in_one_line_with_every_name(
    recipe: Make, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(models={"judge": {"server": "https://x/v1", "model": "big"}}, readme="CC BY-NC 4.0")
    with pytest.raises(SystemExit) as ended:
        main([command, str(path), "--runs", str(path.parent / "runs")])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "judge 'judge'" in said and "'data/seeds.jsonl'" in said
    assert not (path.parent / "runs").exists()


def test_stating_a_licence_runs_nothing_again_but_the_release(recipe: Make) -> None:
    steps = {"merged": {"merge": "tuned"}, "release": {"release": ["merged"]}}
    before = build(recipe(**steps))
    after = build(recipe(**steps, seeds={"data": "data/seeds.jsonl", "licence": "mit"}))
    plain = build(recipe(**steps, seeds={"data": "data/seeds.jsonl"}))
    assert after.nodes["rows"].key == plain.nodes["rows"].key and after.nodes["merged"].key == plain.nodes["merged"].key
    assert after.nodes["release"].key != plain.nodes["release"].key
    assert set(before.nodes) == set(after.nodes)


def test_the_strictest_recognised_statement_counts() -> None:
    assert strictest("MIT", None, "CC BY-NC 4.0") == "CC BY-NC 4.0"
    assert strictest("see the website", "MIT") == "MIT"
    assert strictest(None, "see the website") == "see the website"
    assert strictest(None, None) is None


@pytest.mark.parametrize(
    ("stated", "open_"),
    [
        ("Apache 2.0", True),
        ("CC BY-SA 3.0", True),
        ("public domain", True),
        ("CC BY-NC 4.0", False),
        ("CC BY-ND 4.0", False),
        ("gemma", False),
        ("Llama 2 Community License", False),
        ("OpenAI terms of use", False),
        (None, False),
    ],
)
def test_what_counts_as_open(stated: str | None, open_: bool) -> None:
    assert is_open(normal(stated)) == open_


@pytest.mark.parametrize(
    "stated",
    [
        "license: [apache-2.0, cc-by-nc-4.0]",
        'license:\n- apache-2.0\n- "cc-by-nc-4.0"\ntags:\n- x',
        "licence:\n  - apache-2.0\n  - cc-by-nc-4.0",
    ],
)
def test_of_several_licences_on_a_card_the_strictest_counts(tmp_path: Path, stated: str) -> None:
    (tmp_path / "README.md").write_text(f"---\nlanguage: en\n{stated}\n---\n# Card\n")
    assert (
        of_model_folder(tmp_path) == "apache-2.0, cc-by-nc-4.0" and normal(of_model_folder(tmp_path)) == "cc-by-nc-4.0"
    )
