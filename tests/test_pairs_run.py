"""From a checkpoint's answers to pairs to a trained adapter, with real tiny models, and again for a second round."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST

from openbezoar.engine import execution, graph
from openbezoar.progress import Silent
from openbezoar.recipe.file import load
from openbezoar.reporting.facts import read_facts
from openbezoar.rows.forms import to_pair
from openbezoar.rows.records import read_jsonl
from openbezoar.store.runs import RunFolder

DOCS = Path(__file__).parents[1] / "docs/how-to"
OWN: dict[str, Any] = {
    "pairs": {"data": "rows.jsonl", "limit": 12},
    "samples": 3,
    "by": "base",
    "rating": {"mode": "probability"},  # a random model's ratings differ in their last digits
    "max_new_tokens": 12,
    "unfinished": "keep",
}


def execute(path: Path, runs: Path) -> list[str]:
    return execution.execute(graph.build(load(path), path, runs), Silent())


def test_a_model_s_own_answers_become_pairs_and_a_dpo_step_trains_on_them_at_once(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    trained = {**FAST, "max_steps": 2, "heldout_rows": 2, "heldout_every": 4}
    path = write_recipe({"own": {**OWN, "from": "base"}, "dpo": {"dpo": "own", "model": "base", **trained}})
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


@pytest.mark.slow
def test_two_rounds_are_four_steps_and_the_second_asks_what_the_first_made(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    trained = {**FAST, "max_steps": 3, "heldout_rows": 2, "heldout_every": 4, "learning_rate": 1e-2}
    path = write_recipe(
        {
            "sft": {"sft": "rows.jsonl", "model": "base", **trained},
            "SFT": {"merge": "sft", "drift_rows": 2},
            "own": {**OWN, "from": "SFT"},
            "dpo": {"dpo": "own", "model": "SFT", **trained},
            "own-2": {**OWN, "from": ["dpo", "SFT"], "foreign": 0.5},
            "dpo-2": {"dpo": "own-2", "model": "dpo", **trained},
            "report": {"report": "all"},
        }
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
