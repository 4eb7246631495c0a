"""``samples`` and ``by`` of generate: every scheme's answers are the best of several, and nothing else changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pairs import Liking, length
from test_schemes import FLAN, INSTRUCTIONS, PRE_QUERY, SETTINGS, Killed, Teacher, good_teacher, some_judge
from test_schemes import Bench as Schemes

from openbezoar.engine.graph import build
from openbezoar.errors import RecipeError
from openbezoar.judging import answer_scores
from openbezoar.llm import Call, Completion
from openbezoar.llm.scripted import Scripted, last
from openbezoar.plan.estimates import estimate
from openbezoar.recipe.file import load, parse
from openbezoar.recipe.refs import not_in_key
from openbezoar.rows.records import Row
from openbezoar.schemes import SCHEMES


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> Liking:
    """A reward model 'judge' that likes long answers."""
    rewarder = Liking(length)
    monkeypatch.setattr(answer_scores, "is_reward_model", lambda recipe, name: name == "judge")
    monkeypatch.setattr(answer_scores, "open_rewards", lambda context, name: rewarder)
    return rewarder


def wordy_teacher(system: str, user: str, seed: int) -> str:
    """Answers whose lengths the seed draws; instructions as every scheme wants them."""
    said = good_teacher(system, user, seed)
    asked = "#Given" in user or "<example>" in said or user == PRE_QUERY
    return said if asked else said + " Indeed." * random.Random(seed).randint(0, 9)


def run(bench: Schemes, scheme: str, out: str = "out", teacher: Teacher | None = None, **settings: Any) -> list[Row]:
    own = {name: value for name, value in SETTINGS[scheme].items() if name != "equality_judge"}
    seeds = bench.seeds(FLAN if scheme == "orca" else INSTRUCTIONS)
    teacher = teacher or Teacher(wordy_teacher)
    return bench.run(
        teacher, out, Teacher(some_judge), cached=True, generate=scheme, seeds=seeds, **{**own, **settings}
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_s_answers_are_the_best_of_several(bench: Schemes, rewards: Liking, scheme: str) -> None:
    one, best = run(bench, scheme, "one"), run(bench, scheme, "best", samples=4, by="judge")
    assert [row["instruction"] for row in best[:4]] == [row["instruction"] for row in one[:4]]
    assert all(len(row["scores"]) == 4 and max(row["scores"]) == len(row["response"]) for row in best)
    # the first of several is the one that would be the only one
    assert [row["scores"][0] for row in best[:4]] == [len(row["response"]) for row in one[:4]]
    assert any(row["scores"][0] < max(row["scores"]) for row in best) and "scores" not in one[0]
    assert bench.numbers["best_score"] > bench.numbers["first_score"] and rewards.closed == 1
    assert {row["instruction"] for row in best} <= {turns[-1].content for turns, _ in rewards.asked}


def test_of_several_answers_a_finished_one_is_kept_and_one_that_says_nothing_never(
    bench: Schemes, rewards: Liking
) -> None:
    def teacher(system: str, user: str, seed: int) -> str | Completion:
        kind = random.Random(seed).choice(("long", "short", "empty", "lost"))
        if kind == "long":
            return Completion("a long answer that was cut off", "length", 1, 1)
        return "short" if kind == "short" else "" if kind == "empty" else Completion("", "error", 1, 0)

    rows = run(bench, "orca", teacher=Teacher(teacher), samples=3, by="judge")
    dropped = sum(n for reason, n in bench.counts.items() if reason.startswith("dropped: "))
    assert len(rows) + dropped == 14 and {row["response"] for row in rows} == {
        "short",
        "a long answer that was cut off",
    }
    for row in rows:
        known = {score for score in row["scores"] if score is not None}
        assert known == ({5.0} if row["response"] == "short" else {30.0}) and row["finish"] in ("stop", "length")


def test_a_judge_s_ratings_pick_too_and_without_one_the_first_answer_stays(bench: Schemes) -> None:
    def rate(call: Call) -> str:
        return f"Status: accept\nRating: {min(10, 1 + last(call).count('Indeed.'))}\nReason: so."

    seeds, teacher = bench.seeds(FLAN), Teacher(wordy_teacher)
    settings = {"generate": "orca", "seeds": seeds, "samples": 3, "by": "judge", "rating": {"retries": 0}}
    rows = bench.run(teacher, judge=Scripted(rate), **settings)
    assert all(row["response"].count("Indeed.") + 1 == max(row["scores"]) for row in rows)
    first = bench.run(Teacher(wordy_teacher), "two", Scripted(lambda call: "hm"), **settings)
    assert all(row["scores"] == [None] * 3 for row in first) and bench.counts["answers unscored: unparsable"] == 18
    assert [row["response"] for row in first] == [
        row["response"] for row in bench.run(Teacher(wordy_teacher), "three", generate="orca", seeds=seeds)
    ]


def test_a_killed_run_with_several_answers_goes_on_and_ends_the_same(bench: Schemes, rewards: Liking) -> None:
    settings = {"samples": 3, "by": "judge"}
    whole = Teacher(wordy_teacher)
    rows = run(bench, "evol_instruct", "whole", whole, **settings)
    for die_after in range(0, len(whole.temperatures), 5):
        with pytest.raises(Killed):
            run(bench, "evol_instruct", f"k{die_after}", Teacher(wordy_teacher, die_after), **settings)
        rest = Teacher(wordy_teacher)
        assert run(bench, "evol_instruct", f"k{die_after}", rest, **settings) == rows
        assert len(rest.temperatures) == len(whole.temperatures) - die_after


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"samples": 4}, "by: name a reward model or a judge that says which of several answers is the best"),
        ({"by": "t"}, "samples: of one answer there is none to be picked"),
        ({"by": "t", "samples": 0}, "samples: Input should be greater than or equal to 1"),
        ({"by": "t", "samples": 2, "pick": "worst"}, "pick: Input should be 'best'"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings: dict[str, Any], line: str) -> None:
    step = {"generate": "orca", "teacher": "t", "rows": 4, **settings}
    with pytest.raises(RecipeError) as told:
        parse({"name": "t", "models": {"t": "m"}, "steps": {"g": step}}, "t.yaml")
    assert str(told.value).startswith(f"t.yaml: steps.g: {line}") and "\n" not in str(told.value)


def test_a_step_that_asks_once_has_the_key_that_it_had_and_plans_the_tokens_that_it_asks(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    asked = {"generate": "magpie", "teacher": "base", "rows": 10, "pre_query": "u"}
    path = write_recipe({"one": asked, "best": {**asked, "samples": 4, "by": "base"}})
    steps = load(path).steps
    assert not_in_key(steps["one"]) >= {"samples", "pick", "by", "rating"}
    assert not_in_key(steps["best"]) & {"samples", "pick", "by", "rating"} == {"pick", "rating"}
    planned = estimate(build(load(path), path, tmp_path / "runs"))
    one, best = planned["one"], planned["best"]
    assert one.tokens_out and one.tokens_in and best.tokens_out and best.tokens_in
    assert best.tokens_out > 2.5 * one.tokens_out and best.tokens_in > 2.5 * one.tokens_in
    assert (best.seconds or 0) > (one.seconds or 0) > 0 and (best.memory_bytes or 0) > (one.memory_bytes or 0) > 0
    assert one.ratio and not best.ratio  # of the sum of two models' tokens nothing is learnt
