"""Implicit rewards and the divergence from a reference: hand-worked numbers, and the evaluate stage
against plain passes.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from openbezoar.errors import RecipeError
from openbezoar.stats.intervals import holm
from openbezoar.verbs.evaluate.result import EvaluateScores
from openbezoar.verbs.evaluate.rewards import by_subset, divergence, implicit_rewards, share


def test_an_implicit_reward_is_the_gain_over_the_reference_not_the_likelihood() -> None:
    policy = [[-10.0, -5.0], [-8.0, -9.0], None, [-4.0, -4.0]]
    reference = [[-12.0, -5.0], [-6.0, -9.0], [-1.0, -2.0], [-4.0, -4.0]]
    found = implicit_rewards(policy, reference, ["a", "b", "a", "b"], 0)
    assert found["items"] == [2.0, -2.0, None, 0.0]
    assert found["n"] == 3
    assert found["accuracy"]["value"] == pytest.approx(1 / 3), "an equal reward counts as wrong"
    assert found["margin"]["value"] == 0.0
    assert found["subsets"]["a"]["n"] == 1 and found["subsets"]["a"]["accuracy"]["value"] == 1.0
    assert found["subsets"]["b"]["n"] == 2 and found["subsets"]["b"]["margin"]["value"] == -1.0


def test_margins_that_happen_to_be_zero_or_one_are_no_shares() -> None:
    same = implicit_rewards([[-3.0, -4.0]] * 5, [[-3.0, -4.0]] * 5, [""] * 5, 0)
    assert (same["margin"]["low"], same["margin"]["value"], same["margin"]["high"]) == (0.0, 0.0, 0.0)
    still = divergence([{"logprob": -2.0, "tokens": 3}] * 5, [-2.0] * 5, 0)
    assert (still["low"], still["value"], still["high"]) == (0.0, 0.0, 0.0)


def test_a_subset_without_a_scored_pair_has_no_number() -> None:
    found = {name: share(own) for name, own in by_subset([1, None], ["seen", "unseen"]).items()}
    assert found["seen"]["accuracy"]["value"] == 1.0 and found["unseen"] == {"n": 0, "accuracy": None}
    assert by_subset([1, 0], ["", ""]) == {}


def test_the_divergence_of_two_known_distributions_lies_in_its_interval() -> None:
    p, q, rng = [0.7, 0.3], [0.4, 0.6], random.Random(0)
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    drawn = rng.choices([0, 1], p, k=2000)
    found = divergence([{"logprob": math.log(p[x]), "tokens": 1} for x in drawn], [math.log(q[x]) for x in drawn], 1)
    assert found["low"] < exact < found["high"] and found["value"] == pytest.approx(exact, abs=0.05)
    assert found["tokens"] == 2000 and found["per_token"] == pytest.approx(found["value"])


torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from openbezoar.verbs.evaluate.work import run
from tests.test_evaluate import by_hand, made, place, result  # noqa: F401  the fixture


def test_the_stage_gives_rewards_and_divergence_of_all_but_the_reference(place: Path, tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "prompt": f"Say {w}.", "chosen": f"{w}!", "rejected": "No.", "subset": s}
        for i, (w, s) in enumerate([("snow", "x"), ("rain", "y")])
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"tasks": [], "losses": {}, "pairs": {"words": str(tmp_path / "pairs.jsonl")}}
    step, context = made(place, tmp_path, **settings, reference="one", kl_rows=2, kl_tokens=6)
    run(step, context)
    scored = result(context)
    assert scored["reference"] == "one" and "rewards" not in scored["checkpoints"]["one"]
    found = scored["checkpoints"]["two"]
    margins = []
    for row in rows:
        gain = [
            sum(by_hand(place / "two", row["prompt"], row[k])) - sum(by_hand(place / "one", row["prompt"], row[k]))
            for k in ("chosen", "rejected")
        ]
        margins.append(gain[0] - gain[1])
    rewards = found["rewards"]["words"]
    assert rewards["items"] == pytest.approx(margins, abs=1e-3)
    assert set(rewards["subsets"]) == {"x", "y"} and set(found["pairs"]["words"]["subsets"]) == {"x", "y"}
    assert found["kl"]["words"]["n"] == 2 and 2 <= found["kl"]["words"]["tokens"] <= 12
    assert "samples" not in found, "the drawn ids are of no use in the scores"


def test_a_checkpoint_does_not_diverge_from_itself(place: Path, tmp_path: Path) -> None:
    step, context = made(place, tmp_path, evaluate=["one", "same"], tasks=[], losses={}, reference="one", kl_tokens=8)
    context.recipe.models["same"] = context.recipe.models["one"]
    run(step, context)
    found = result(context)["checkpoints"]["same"]
    assert found["kl"]["polite"]["value"] == pytest.approx(0.0, abs=1e-4)
    assert found["rewards"]["polite"]["margin"]["value"] == pytest.approx(0.0, abs=1e-4)


def test_reward_accuracies_are_compared_with_chance_and_pair_by_pair_corrected_with_the_rest(
    place: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Say {w}.", "chosen": f"{w}!", "rejected": "No."} for w in ("snow", "rain", "hail")]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"losses": {}, "pairs": {"polite": str(tmp_path / "odd.jsonl")}}
    step, context = made(place, tmp_path, evaluate=["two", "one", "same"], **settings, reference="one", kl_rows=0)
    context.recipe.models["same"] = context.recipe.models["two"]
    run(step, context)
    found = result(context)
    by_pair = {(row["a"], row["b"]): row for row in found["reward_differences"]}
    assert list(by_pair) == [("one", "two"), ("one", "same"), ("two", "same")]
    accuracy = found["checkpoints"]["two"]["rewards"]["polite"]["accuracy"]["value"]
    assert by_pair["one", "two"]["difference"] == pytest.approx(accuracy - 0.5) != 0
    share = found["checkpoints"]["two"]["rewards"]["polite"]["accuracy"]
    ends = (by_pair["one", "two"]["low"] + 0.5, by_pair["one", "two"]["high"] + 0.5)
    assert ends == pytest.approx((share["low"], share["high"]))  # a share of 1 has an interval too
    assert (by_pair["two", "same"]["difference"], by_pair["two", "same"]["p"]) == (0.0, 1.0)
    kinds = ("differences", "loss_differences", "pair_differences", "reward_differences")
    family = [row for kind in kinds for row in found[kind]]
    assert [row["p_holm"] for row in family] == holm([row["p"] for row in family])
    scores = EvaluateScores.model_validate(found)
    told = {(d.before, d.after): d for d in scores.differences() if d.kind == "rewards"}
    assert [d.chance for d in told.values()] == [True, True, False]


def test_prompts_without_room_for_an_answer_are_counted_though_a_killed_run_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "evaluate": ["one", "two"],
        "tasks": [],
        "losses": {},
        "reference": "one",
        "kl_tokens": 505,
    }
    step, context = made(place, tmp_path, **settings)
    monkeypatch.setattr(
        "openbezoar.verbs.evaluate.work._against_reference", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run(step, context)
    monkeypatch.undo()
    step, context = made(place, tmp_path, **settings)
    run(step, context)
    assert context.counts.by_reason["two, pairs polite: prompts too long to be answered for the KL divergence"] == 3
    assert "kl" not in result(context)["checkpoints"]["two"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"reference": "far"}, "not in the list"), ({"reference": "one", "pairs": {}}, "add 'pairs'")],
)
def test_a_reference_that_cannot_serve_is_refused(
    place: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        made(place, tmp_path, **settings)
