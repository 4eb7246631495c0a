"""A reward model on pairs that people have compared, and a judge that is asked twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener, context_of, recipe_in
from test_human_pairs import PAIRS, Judge

from openbezoar.judging.rewards import LocalRewards
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Counts, Turn, write_jsonl
from openbezoar.stats.intervals import proportion_interval
from openbezoar.verbs.judge import agreement as stage
from openbezoar.verbs.judge.human_pairs import read_pairs


def test_preference_pairs_are_pairs_whose_chosen_answer_people_preferred() -> None:
    dialogue = "\n\nHuman: One?\n\nAssistant: Yes.\n\nHuman: Two?\n\nAssistant: "
    rows = [
        {"subset": "helpful", "chosen": dialogue + "Two.", "rejected": dialogue + "No."},
        {"prompt": "Three?", "chosen": "Three.", "rejected": "No."},
        {"chosen": "nothing", "rejected": dialogue + "No."},
    ]
    counts = Counts()
    first, second = read_pairs(rows, counts)
    assert (first.answers, first.labels, first.dataset) == (("Two.", "No."), (0,), "helpful")
    assert first.talk == (Turn("user", "One?"), Turn("assistant", "Yes."), Turn("user", "Two?"))
    assert first.question.turns[0] == "user: One?\n\nassistant: Yes.\n\nuser: Two?"
    assert (second.question.turns[0], second.dataset) == ("Three?", "all")
    assert sum(counts.by_reason.values()) == 1


def test_a_reward_model_is_held_against_people(tmp_path: Path, tiny: Path, tiny_reward: Path, commands: Any) -> None:
    models = {"base": {"model": str(tiny)}, "rm": {"reward": str(tiny_reward), "dtype": "float32", "prompt": {}}}
    steps = {"check": {"agreement": "rm", "pairs": ["human.jsonl", "pairs.jsonl"]}, "report": {"report": "all"}}
    recipe = recipe_in(tmp_path, tiny, steps, models=models)
    write_jsonl(tmp_path / "human.jsonl", PAIRS)
    done = commands("run", str(recipe), "--runs", str(tmp_path / "runs"))
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "t" / "check"
    rows = [json.loads(line) for line in (folder / "comparisons.jsonl").read_text().splitlines()]
    scores = json.loads((folder / "scores.json").read_text())
    assert len(rows) == 24 and scores["mode"] == "reward"
    model = LocalRewards("rm", Checkpoint("rm", str(tiny_reward), (), "none", "float32", PromptSpec()))
    (expected,) = model.scores([((Turn("user", "I1"),), ("one1", "two 1"))])
    assert rows[0]["rewards"] == pytest.approx(expected, abs=1e-5)
    gap = rows[0]["rewards"][0] - rows[0]["rewards"][1]
    assert rows[0]["winner"] == ("model_a" if gap > 0 else "model_b")
    assert math.exp(rows[0]["logprobs"][0][0]) == pytest.approx(1 / (1 + math.exp(-gap)))
    assert scores["flips"]["value"] == 0.0
    # by hand: of the pairs with a preferred answer, 3 of people's and 20 others
    known = [(row, pair) for row, pair in zip(rows[:3], PAIRS[:3], strict=True)]
    right = sum((r["rewards"][0] > r["rewards"][1]) == (p["human_majority"] == 1) for r, p in known)
    right += sum(r["rewards"][0] > r["rewards"][1] for r in rows[4:])
    found = scores["rewards"]
    assert (found["accuracy"]["n"], found["accuracy"]["value"]) == (23, pytest.approx(right / 23))
    assert set(found["subsets"]) == {"all", "helpful"}
    html = (tmp_path / "runs" / "t" / "report" / "report.html").read_text()
    assert "preferred answer has the higher reward" in html and "Right by how sure it was" in html


def test_pairs_of_one_instruction_go_together_in_a_reward_model_s_accuracy() -> None:
    rows = [
        {"instruction": f"I{place // 8}", "output_1": f"one {place}", "output_2": f"two {place}", "human_majority": 1}
        for place in range(40)
    ]
    pairs = read_pairs(rows, Counts())
    said = [
        {"group": pair.question.turns[0], "rewards": [float(place < 24), 0.5], "lengths": [5, 4]}
        for place, pair in enumerate(pairs)
    ]
    found = stage._accuracy(pairs, said, 0)
    assert found is not None and found.accuracy.value == 0.6 and found.accuracy.n == 40
    low, high = proportion_interval(24, 40)
    assert found.accuracy.high - found.accuracy.low > 2 * (high - low)


@pytest.mark.parametrize(("steady", "share"), [(True, 1.0), (False, 0.0)])
def test_a_judge_that_is_asked_twice_says_how_often_it_said_the_same(
    tmp_path: Path, steady: bool, share: float
) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    asked = []

    def reply(first: str, second: str) -> str:
        asked.append(first)
        again = len(asked) > 2 * len(PAIRS)
        wanted = "one" if steady or not again else "two"
        return "[[A]]" if first.startswith(wanted) else "[[B]]"

    settings = {"agreement": "judge", "pairs": str(tmp_path / "pairs.jsonl"), "retest": True}
    context = context_of(tmp_path, settings, opener=Opener({"judge": Judge(reply)}))
    stage.run(context.recipe.steps["step"], context)
    scores = json.loads((context.out / "scores.json").read_text())
    assert len(asked) == 4 * len(PAIRS)
    assert (scores["retest"]["value"], scores["retest"]["n"]) == (share, len(PAIRS))
