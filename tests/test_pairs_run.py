"""From a checkpoint's answers to pairs to a trained adapter, with real tiny models, and again for a second round."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST

from openbezoar.engine import execution, graph
from openbezoar.errors import RecipeError
from openbezoar.judging.rewards import is_reward_model
from openbezoar.llm.calls import CallStore
from openbezoar.progress import Silent
from openbezoar.recipe.file import load
from openbezoar.reporting.facts import read_facts
from openbezoar.rows.forms import to_pair
from openbezoar.rows.records import read_jsonl
from openbezoar.store.runs import RunFolder

DOCS = Path(__file__).parents[1] / "docs/how-to"
TRAINED: dict[str, Any] = {**FAST, "max_steps": 2, "heldout_rows": 2, "heldout_every": 4}
OWN: dict[str, Any] = {
    "pairs": {"data": "rows.jsonl", "limit": 12},
    "samples": 3,
    "by": "rm",
    "max_new_tokens": 12,
    "unfinished": "keep",
}


def save_classifier(folder: Path, tiny: Path) -> Path:
    """A random sequence classifier with one output and the tiny model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(str(tiny), num_labels=1)
    AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(tiny)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Any]:
    """The models of a recipe: a random one and a random reward model."""
    rm = save_classifier(tmp_path_factory.mktemp("rm"), tiny)
    return {"base": {"model": str(tiny), "dtype": "float32"}, "rm": {"reward": str(rm), "dtype": "float32"}}


def execute(path: Path, runs: Path) -> list[str]:
    return execution.execute(graph.build(load(path), path, runs), Silent())


def test_a_model_s_own_answers_become_pairs_and_a_dpo_step_trains_on_them_at_once(
    write_recipe: Callable[..., Path], tmp_path: Path, models: dict[str, Any]
) -> None:
    path = write_recipe(
        {"own": {**OWN, "from": "base"}, "dpo": {"dpo": "own", "model": "base", **TRAINED}}, models=models
    )
    runs = tmp_path / "runs"
    assert execute(path, runs) == ["own", "dpo"]
    rows = list(read_jsonl(runs / "t/own/rows.jsonl"))
    kept = list(read_jsonl(runs / "t/own/candidates.jsonl"))
    assert len(kept) == 12 and 6 <= len(rows) <= 12
    by_id = {one["id"]: {answer["text"]: answer.get("score") for answer in one["answers"]} for one in kept}
    for row in rows:
        scores, pair = by_id[row["id"]], to_pair(row, "here")
        assert scores[pair.chosen] == row["chosen_score"] == max(s for s in scores.values() if s is not None)
        assert scores[pair.rejected] == row["rejected_score"] < row["chosen_score"]
    assert (runs / "t/dpo/adapter/adapter_model.safetensors").is_file()
    assert read_facts(RunFolder(runs / "t")).steps["dpo"].numbers["rows"] == len(rows) - 2
    assert execute(path, runs) == []


def test_steps_that_draw_by_one_name_pick_among_the_same_answers_which_are_asked_for_once(
    write_recipe: Callable[..., Path], tmp_path: Path, models: dict[str, Any]
) -> None:
    own = {**OWN, "from": "base"}
    steps = {"own": own, "again": {**own, "pick": "best_worst", "draws_as": "own"}, "else": own}
    path, runs = write_recipe(steps, models=models), tmp_path / "runs"
    assert execute(path, runs) == ["own", "again", "else"]

    def answers(step: str) -> list[list[str]]:
        return [[a["text"] for a in one["answers"]] for one in read_jsonl(runs / f"t/{step}/candidates.jsonl")]

    assert answers("again") == answers("own") != answers("else")
    store = CallStore(runs)
    assert {step for _, step, _ in store.accounts()} == {"own", "else"}
    store.close()


@pytest.mark.slow
def test_two_rounds_are_four_steps_and_the_second_asks_what_the_first_made(
    write_recipe: Callable[..., Path], tmp_path: Path, models: dict[str, Any]
) -> None:
    trained = {**TRAINED, "learning_rate": 1e-2}
    path = write_recipe(
        {
            "sft": {"sft": "rows.jsonl", "model": "base", **trained},
            "SFT": {"merge": "sft", "drift_rows": 2},
            "own": {**OWN, "from": "SFT"},
            "dpo": {"dpo": "own", "model": "SFT", **trained},
            "own-2": {**OWN, "from": ["dpo", "SFT"], "foreign": 0.5},
            "dpo-2": {"dpo": "own-2", "model": "dpo", **trained},
            "report": {"report": "all"},
        },
        models=models,
    )
    runs = tmp_path / "runs"
    execute(path, runs)
    facts = read_facts(RunFolder(runs / "t"))
    by = [{answer["by"] for answer in one["answers"]} for one in facts.steps["own-2"].rows("candidates.jsonl")]
    assert by.count({"dpo"}) == by.count({"dpo", "SFT"}) == 6
    assert facts.steps["dpo-2"].inputs == ("dpo", "own-2") and facts.steps["own-2"].inputs == ("dpo", "SFT")
    assert len(json.loads((runs / "t/dpo-2/model.json").read_text())["adapters"]) == 2
    page = (runs / "t/report/report.md").read_text(encoding="utf-8")
    assert "## Preference pairs" in page and re.search(r"\| own-2 +\| 12 ", page)


def test_the_page_s_diff_gives_own_data_s_recipe_pairs_and_a_step_that_trains_on_them(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^```yaml\n(name: mine\n.*?)^```", (DOCS / "own-data.md").read_text(), re.M | re.S)
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (DOCS / "preference-pairs.md").read_text(), re.M | re.S)
    (tmp_path / "mine.yaml").write_text(recipe)
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    for name in ("mine", "prompts", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text('{"instruction": "Name a sea.", "response": "The Baltic."}\n')
    made = graph.build(load(tmp_path / "mine.yaml"), tmp_path / "mine.yaml", tmp_path / "runs")
    assert made.nodes["own"].inputs == ("chat",) and set(made.nodes["dpo"].inputs) == {"own", "chat"}
    assert "dpo" in made.nodes["scores"].inputs and is_reward_model(made.recipe, "rm")
    with pytest.raises(RecipeError, match=r"steps\.own\.from: 'rm' is a reward model, expected a model"):
        graph.build(load(tmp_path / "mine.yaml", ["steps.own.from=rm"]), tmp_path / "mine.yaml", tmp_path / "runs")
