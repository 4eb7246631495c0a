"""``filter: reward``: which rows a reward model drops, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import recipe_in

from openbezoar.cleaning.rewards import reward_numbers, screen_rewards
from openbezoar.judging.rewards import LocalRewards
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.data_steps import ByReward
from openbezoar.rows.records import Turn


def screened(rewards: list[float], **settings: Any) -> list[str]:
    drops = screen_rewards(rewards, ByReward(model="rm", **settings)).drops
    return ["" if drop is None else str(drop.why) for drop in drops]


def test_a_threshold_and_the_best_share_drop_rows_and_say_why() -> None:
    assert screened([3.0, 1.0, 2.0, -1.0]) == [""] * 4
    assert screened([3.0, 1.0, 2.0], at_least=1.0) == [""] * 3
    assert screened([3.0, 0.5, 2.0], at_least=1.0) == ["", "reward 0.5, kept from 1 on", ""]
    assert screened([3.0, 1.0, 2.0, -1.0], best=0.5) == [
        "",
        "reward 1, the 2 highest are from 2 on",
        "",
        "reward -1, the 2 highest are from 2 on",
    ]
    assert [bool(why) for why in screened([1.0, 1.0, 1.0], best=2)] == [False, False, True]  # equal ones in their order
    assert [bool(why) for why in screened([9.0, 1.0, 2.0, 3.0], at_least=1.5, best=2)] == [False, True, True, False]
    assert reward_numbers([3.0, 1.0], screen_rewards([3.0, 1.0], ByReward(model="rm", best=0.5)))["kept_from"] == 3.0


def test_a_part_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="expected a share above 0 and at most"):
        ByReward(model="rm", best=1)


def test_the_better_half_is_kept_each_row_with_its_reward(
    tmp_path: Path, tiny: Path, tiny_reward: Path, commands: Any
) -> None:
    models = {"base": {"model": str(tiny)}, "rm": {"reward": str(tiny_reward), "dtype": "float32", "prompt": {}}}
    steps = {
        "kept": {"filter": "rows.jsonl", "rules": {"near_duplicates": None}, "reward": {"model": "rm", "best": 0.5}}
    }
    recipe = recipe_in(tmp_path, tiny, steps, models=models)
    done = commands("run", str(recipe), "--runs", str(tmp_path / "runs"))
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "t" / "kept"
    kept, rejected = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("rows.jsonl", "rejected.jsonl")
    )
    assert len(kept) == len(rejected) == 12
    assert min(row["reward_score"] for row in kept) >= max(row["reward_score"] for row in rejected)
    assert {row["rule"] for row in rejected} == {"reward_too_low"}
    model = Checkpoint("rm", str(tiny_reward), (), "none", "float32", PromptSpec())
    row = kept[0]
    ((expected,),) = LocalRewards("rm", model).scores([((Turn("user", row["instruction"]),), (row["response"],))])
    assert row["reward_score"] == pytest.approx(expected, rel=1e-5)
    numbers = json.loads((folder / "manifest.json").read_text())["numbers"]
    assert numbers["rewards"]["rows"] == 24 and numbers["rewards"]["model"] == "rm"
    assert numbers["rewards"]["kept_from"] == pytest.approx(min(row["reward_score"] for row in kept), rel=1e-5)


def test_a_model_of_words_is_no_reward_model(tmp_path: Path, tiny: Path, commands: Any) -> None:
    recipe = recipe_in(tmp_path, tiny, {"kept": {"filter": "rows.jsonl", "reward": {"model": "base"}}})
    done = commands("plan", str(recipe))
    assert done.code == 2
    assert "steps.kept.reward: 'base' is a model, expected a reward model; name an entry of models" in done.err
