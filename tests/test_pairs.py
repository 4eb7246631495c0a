"""The verb ``pairs``: whose answers are asked for, which two make a pair, and what is kept of the others."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from conftest import FAST, Opener, context_of
from synthetic_run import step

from openbezoar.engine.graph import build
from openbezoar.errors import DataError, RecipeError, UserError
from openbezoar.judging import answer_scores
from openbezoar.llm import Call, Completion
from openbezoar.llm.scripted import Scripted, last
from openbezoar.plan.estimates import estimate
from openbezoar.recipe.file import load, parse
from openbezoar.recipe.pair_steps import Pairs
from openbezoar.reporting.facts import read_facts
from openbezoar.rows.forms import to_pair
from openbezoar.rows.records import Row, Turn, read_jsonl, write_jsonl
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.pairs import work
from openbezoar.verbs.pairs.picking import Picked, pick, without_length
from openbezoar.verbs.pairs.section import sections
from openbezoar.verbs.release.sources_of import sources_of

PROMPTS = [{"id": f"q{n}", "instruction": f"Name river {n}.", "licence": "cc0"} for n in range(12)]


class Liking:
    """A reward model whose rewards are a function of turns and answer."""

    def __init__(self, reward: Callable[[Sequence[Turn], str], float]) -> None:
        self.reward, self.closed = reward, 0
        self.asked: list[tuple[Sequence[Turn], Sequence[str]]] = []

    def scores(
        self, asked: Sequence[tuple[Sequence[Turn], Sequence[str]]], done: Callable[[int], None] | None = None
    ) -> list[list[float]]:
        self.asked += asked
        return [[self.reward(turns, answer) for answer in answers] for turns, answers in asked]

    def close(self) -> None:
        self.closed += 1


def length(_: Sequence[Turn], answer: str) -> float:
    return float(len(answer))


class Bench:
    """Runs a pairs step in a folder of its own, with scripted models and a reward model 'rm'."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.rewards = Liking(length)
        self.counts: dict[str, int] = {}
        self.numbers: dict[str, Any] = {}
        self.candidates: list[Row] = []
        monkeypatch.setattr(answer_scores, "is_reward_model", lambda recipe, name: name == "rm")
        monkeypatch.setattr(answer_scores, "open_rewards", lambda context, name: self.rewards)

    def run(
        self,
        models: Mapping[str, Any],
        rows: Sequence[Row] = PROMPTS,
        out: str = "out",
        cached: bool = False,
        **settings: Any,
    ) -> list[Row]:
        write_jsonl(self.folder / "prompts.jsonl", rows)
        opener = Opener({"rm": None, **models}, cached)
        context = context_of(
            self.folder, {"pairs": "prompts.jsonl", **settings}, name="p", out=out, opener=opener, seed=11
        )
        checked = context.recipe.steps["p"]
        assert isinstance(checked, Pairs)
        try:
            self.numbers = work.run(checked, context)
        finally:
            self.counts = context.counts.by_reason
            written = context.out / "candidates.jsonl"
            self.candidates = list(read_jsonl(written)) if written.exists() else []
        return list(read_jsonl(context.out / "rows.jsonl"))


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def of_some_length(call: Call) -> str:
    """An answer of one to 40 words, as the seed says."""
    return f"{last(call)} " + " ".join(["word"] * random.Random(call.seed).randint(1, 40))


# ------------------------------------------------------------------------------ picking


def test_best_and_worst_are_the_ends_and_of_equal_ones_the_first() -> None:
    assert pick([1.0, 3.0, 0.0, 3.0, 0.0], "best_worst") == (1, 2, 3.0)
    assert pick([2.0, 2.0], "best_worst") == (0, 1, 0.0)


def test_two_sigma_below_the_mean_is_where_the_rejected_answer_is_looked_for() -> None:
    scores = [-9.0, 0.0, *[9.0, 10.0, 11.0] * 6]
    assert fmean(scores) - 2 * pstdev(scores) == pytest.approx(-0.74, abs=0.01)
    assert pick(scores, "best_2sigma") == (4, 1, 11.0) and pick(scores, "best_worst") == (4, 0, 20.0)


def test_of_up_to_five_answers_the_one_at_two_sigma_is_the_worst() -> None:
    draw = random.Random(1)
    for n in (2, 3, 4, 5):
        for _ in range(200):
            scores = [draw.gauss(0, 1) ** 3 for _ in range(n)]
            assert pick(scores, "best_2sigma") == pick(scores, "best_worst")
    six = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert fmean(six) - 2 * pstdev(six) > 0  # from six on the worst may lie further out


def test_what_scores_pay_for_length_is_found_within_prompts_and_taken_off() -> None:
    draw = random.Random(5)
    good = [[draw.gauss(0, 1) for _ in range(8)] for _ in range(300)]
    # a prompt of long answers scores higher by its own right: no matter of length within it
    typical = [draw.uniform(2, 6) for _ in good]
    lengths = [[max(1, round(math.exp(m + draw.gauss(0, 0.5)))) for _ in range(8)] for m in typical]
    scores = [
        [g + 3 * m + 2 * math.log(n) for g, n in zip(gs, ns, strict=True)]
        for gs, ns, m in zip(good, lengths, typical, strict=True)
    ]
    level, slope = without_length(scores, lengths)
    assert slope == pytest.approx(2, abs=0.1)

    def longer(of: Sequence[Sequence[float]]) -> float:
        found = [pick(some, "best_2sigma") for some in of]
        assert all(found)
        return fmean(ns[one.chosen] > ns[one.rejected] for ns, one in zip(lengths, found, strict=True) if one)

    assert longer(scores) > 0.8 and 0.4 < longer(level) < 0.6
    for own, told, before in zip(good, level, scores, strict=True):
        assert fmean(told) == pytest.approx(fmean(before)), "a prompt's mean stays"
        spread = [told_one - own_one for told_one, own_one in zip(told, own, strict=True)]
        assert max(spread) - min(spread) < 0.5, "what is left is how good an answer is"


def test_answers_of_one_length_leave_the_scores_as_they_are() -> None:
    assert without_length([[1.0, 2.0], [5.0], []], [[4, 4], [9], []]) == ([[1.0, 2.0], [5.0], []], 0.0)


def test_pairs_alike_in_length_are_of_the_best_answer_that_has_a_fellow() -> None:
    scores, lengths = [9.0, 1.0, 5.0, 4.0, 4.5], [100, 10, 20, 24, 25]
    assert pick(scores, "best_worst", lengths, 1.25) == Picked(2, 3, 1.0)  # the longest has no fellow
    assert pick(scores, "best_worst", lengths, 4.0) == Picked(0, 4, 4.5), "of its fellows the one nearest to the worst"
    assert pick(scores, "best_worst", lengths, 1.1) == Picked(4, 3, 0.5)
    assert pick(scores, "best_worst", lengths, 1.0) is None
    assert pick([3.0, 3.0, 2.0, 1.0], "best_worst", [5, 5, 9, 9], 1.0) == Picked(2, 3, 1.0), "equal scores stand back"


# ---------------------------------------------------------------------------- own answers


def test_an_answer_that_may_not_be_chosen_can_be_rejected_by_one_that_scores_higher() -> None:
    assert pick([3.0, 2.0, 1.0], "best_worst", ended=[False, True, True]) == (1, 2, 1.0)
    assert pick([3.0, 2.0, 1.0], "best_worst", ended=[True, True, False]) == (0, 2, 2.0)
    assert pick([3.0, 2.0], "best_worst", ended=[False, True]) is None  # the one that ended is above none
    assert pick([3.0, 2.0], "best_worst", ended=[False, False]) is None
    assert pick([1.0, 1.0, 0.5], "best_2sigma", [9, 10, 30], 2, [True, True, False]) == (0, 1, 0.0)


def test_a_pair_is_the_best_answer_and_the_one_at_two_sigma_with_their_scores_and_authors(pairs: Bench) -> None:
    rows = pairs.run({"own": Scripted(of_some_length)}, **{"from": "own", "samples": 6, "by": "rm"})
    assert len(rows) == 12 and len(pairs.candidates) == 12 and pairs.rewards.closed == 1
    for row, prompt, kept in zip(rows, PROMPTS, pairs.candidates, strict=True):
        pair = to_pair(row, "here")
        scores = [answer["score"] for answer in kept["answers"] if "score" in answer]
        assert pair.id == prompt["id"] == kept["id"] and row["licence"] == "cc0"
        assert pair.prompt == (Turn("user", prompt["instruction"]),)
        assert row["chosen_score"] == len(pair.chosen) == max(scores)
        found = pick(scores, "best_2sigma")
        assert row["rejected_score"] == len(pair.rejected) == scores[found.rejected]
        assert row["margin"] == found.margin > 0 and row["chosen_by"] == row["rejected_by"] == "own"
        assert len(kept["answers"]) == 6 and len({answer["sample"] for answer in kept["answers"]}) == 6
    assert pairs.numbers["pairs"] == 12 and pairs.numbers["answers"] == 72
    assert pairs.numbers["longer_chosen"] == {"value": 1.0, "low": pytest.approx(0.757, abs=0.01), "high": 1.0, "n": 12}
    assert pairs.numbers["margin"] == pytest.approx(fmean(row["margin"] for row in rows), abs=1e-4)
    assert pairs.numbers["chosen_by"] == {"own": 12}


def test_a_rerun_gives_the_same_rows_whatever_the_batch_and_asks_nothing_again(pairs: Bench) -> None:
    asked = {"from": "own", "samples": 3, "by": "rm"}
    model = Scripted(of_some_length)
    first = pairs.run({"own": model}, cached=True, **asked)
    kept = (pairs.folder / "out/candidates.jsonl").read_bytes()
    assert len(model.asked) == 36
    assert pairs.run({"own": model}, cached=True, **asked) == first and len(model.asked) == 36
    assert pairs.run({"own": Scripted(of_some_length)}, out="other", batch=7, **asked) == first
    assert (pairs.folder / "other/candidates.jsonl").read_bytes() == kept
    fewer = pairs.run({"own": Scripted(of_some_length)}, PROMPTS[:5], out="fewer", **asked)
    assert fewer == first[:5]


def scripted(*replies: str | Completion) -> Scripted:
    """Answers each prompt's samples by these replies, in turn."""
    count = iter(range(10**6))
    return Scripted(lambda call: replies[next(count) % len(replies)])


def test_answers_that_are_empty_cut_off_refused_or_said_before_take_no_part_and_are_counted(pairs: Bench) -> None:
    replies = (
        "good",
        "better",
        " good ",
        "  ",
        Completion("cut off here", "length", 1, 3),
        Completion("", "error", 1, 0),
    )
    rows = pairs.run({"own": scripted(*replies)}, PROMPTS[:2], **{"from": "own", "samples": 6, "by": "rm"})
    assert [(to_pair(row, "").chosen, to_pair(row, "").rejected) for row in rows] == [("better", "good")] * 2
    dropped = {
        "word for word an earlier one": 2,
        "empty": 2,
        "cut off by the token limit": 2,
        "refused by the server": 2,
    }
    assert pairs.numbers["answers_dropped"] == dropped
    assert pairs.counts == {f"answers: {reason}": n for reason, n in dropped.items()}
    assert [answer.get("dropped", "") for answer in pairs.candidates[0]["answers"]] == ["", "", *dropped]
    assert [turns_and_answers[1] for turns_and_answers in pairs.rewards.asked] == [["good", "better"]] * 2

    rows = pairs.run(
        {"own": scripted(*replies)}, PROMPTS[:1], **{"from": "own", "samples": 6, "by": "rm", "unfinished": "keep"}
    )
    assert to_pair(rows[0], "").chosen == "cut off here"


def test_a_prompt_with_one_answer_or_too_small_a_margin_gives_no_pair_and_is_counted(pairs: Bench) -> None:
    def reply(call: Call) -> str:
        number = int(last(call).split()[-1].rstrip("."))
        sample = random.Random(call.seed).random()
        return ("same", f"{sample:.6f}", "a" * (1 + int(sample * 3)), "a" * (1 + int(sample * 40)))[number % 4]

    rows = pairs.run({"own": Scripted(reply)}, **{"from": "own", "samples": 8, "by": "rm", "min_margin": 4})
    assert [row["id"] for row in rows] == ["q3", "q7", "q11"] and all(row["margin"] >= 4 for row in rows)
    reasons = {
        "fewer than two different answers": 3,
        "all answers score the same": 3,
        "margin below min_margin": 3,
    }
    assert pairs.numbers["prompts_dropped"] == reasons
    assert {reason: pairs.counts[reason] for reason in reasons} == reasons
    assert [kept.get("dropped") for kept in pairs.candidates[:4]] == [*reasons, None]


def test_without_what_is_paid_for_length_pairs_are_of_what_else_is_liked(pairs: Bench) -> None:
    def reply(call: Call) -> str:
        draw = random.Random(call.seed)
        return ("Yes. " if draw.random() < 0.5 else "No.  ") + "word " * draw.randint(1, 40)

    pairs.rewards = Liking(lambda turns, answer: 5 * math.log(len(answer.strip())) + answer.startswith("Yes"))
    asked = {"from": "own", "samples": 8, "by": "rm"}
    paid = pairs.run({"own": Scripted(reply)}, **asked)
    assert pairs.numbers["length_pays"] is None and pairs.numbers["longer_chosen"]["value"] == 1
    rows = pairs.run({"own": Scripted(reply)}, out="level", length_bias="remove", **asked)
    assert [row["id"] for row in rows] == [row["id"] for row in paid]
    assert pairs.numbers["length_pays"] == pytest.approx(5 * math.log(2), abs=0.1)
    assert all(to_pair(row, "").chosen.startswith("Yes") > to_pair(row, "").rejected.startswith("Yes") for row in rows)
    for row, kept in zip(rows, pairs.candidates, strict=True):
        told = {answer["text"]: answer for answer in kept["answers"] if "score" in answer}
        chosen, rejected = (told[to_pair(row, "").chosen], told[to_pair(row, "").rejected])
        assert row["margin"] == chosen["level_score"] - rejected["level_score"] > 0.5
        assert row["chosen_score"] == chosen["score"] and row["rejected_score"] == rejected["score"]


def test_a_prompt_without_answers_alike_in_length_gives_no_pair_and_is_counted(pairs: Bench) -> None:
    settings = {"from": "own", "samples": 3, "by": "rm", "max_length_ratio": 1.5}
    rows = pairs.run({"own": scripted("a" * 10, "b" * 14, "c" * 40)}, PROMPTS[:2], **settings)
    assert [(row["chosen_score"], row["rejected_score"]) for row in rows] == [(14, 10)] * 2
    replies = scripted("a" * 10, "b" * 20, "c" * 40, "a" * 10, "b" * 15, "c" * 40)
    assert [row["id"] for row in pairs.run({"own": replies}, PROMPTS[:2], out="one", **settings)] == ["q1"]
    assert pairs.numbers["prompts_dropped"] == {"no two answers alike in length": 1}


def test_answers_cut_off_can_be_rejected_and_are_told_from_those_that_ended(pairs: Bench) -> None:
    ends: dict[str, Any] = {"a": "length", "bb bb": "stop", "ccc ccc ccc": "length"}
    model = scripted(*(Completion(text, end, 1, 1) for text, end in ends.items()))
    asked: dict[str, Any] = {"from": "own", "samples": 3, "by": "rm", "unfinished": "reject"}
    (row,) = pairs.run({"own": model}, PROMPTS[:1], **asked)
    pair = to_pair(row, "here")
    assert (pair.chosen, pair.rejected, pair.cut) == ("bb bb", "a", True)  # the longest would be the best
    assert row["rejected_finish"] == "length" and pairs.numbers["rejected_cut"] == 1
    with pytest.raises(DataError, match=r"no answer that ended is above another.*raise 'max_new_tokens' or 'samples'"):
        pairs.run({"own": scripted(*(Completion(text, "length", 1, 1) for text in ends))}, PROMPTS[:1], **asked)
    (judged,) = pairs.run({}, [row], row_answers=True, by="rm", unfinished="reject", out="anew")
    assert judged["rejected_finish"] == "length"
    with pytest.raises(DataError, match="fewer than two different answers"):
        pairs.run({}, [row], row_answers=True, by="rm", out="dropped")


def test_of_delta_s_two_answers_only_the_weak_one_may_be_cut_off(pairs: Bench) -> None:
    asked: dict[str, Any] = {"pick": "delta", "strong": "big", "weak": "small", "unfinished": "reject"}
    ended, cut = Completion("Yes it is.", "stop", 1, 1), Completion("it is it is", "length", 1, 1)
    (row,) = pairs.run({"big": scripted(ended), "small": scripted(cut)}, PROMPTS[:1], **asked)
    assert row["rejected_finish"] == "length" and "margin" not in row
    with pytest.raises(DataError, match="no answer that ended is above another"):
        pairs.run({"big": scripted(cut), "small": scripted(ended)}, PROMPTS[:1], **asked)


def test_control_tokens_in_an_answer_are_taken_out(pairs: Bench) -> None:
    rows = pairs.run({"own": scripted("yes<|im_end|>", "no")}, PROMPTS[:1], **{"from": "own", "samples": 2, "by": "rm"})
    assert to_pair(rows[0], "").chosen == "yes" and pairs.counts == {"answers: special markers taken out": 1}


# ------------------------------------------------------------------------- foreign answers


def test_answers_of_rows_and_other_models_take_part_in_the_stated_share_of_prompts(pairs: Bench) -> None:
    brought = [
        {**row, "response": "the answer of the row, which is the longest one of all that there are", "finish": "stop"}
        for row in PROMPTS
    ]
    own, far = (Scripted(lambda call, who=who: who + "!" * (call.seed % 29)) for who in ("own", "foreign"))
    settings = {"from": ["own", "far"], "samples": 2, "by": "rm", "row_answers": True}
    rows = pairs.run({"own": own, "far": far}, brought, foreign=0.5, pick="best_worst", **settings)
    assert pairs.numbers["chosen_by"] == {"row": 6, "own": 6} and len(own.asked) == 24 and len(far.asked) == 12
    mixed = [{answer["by"] for answer in kept["answers"]} for kept in pairs.candidates]
    assert mixed.count({"own", "far", "row"}) == mixed.count({"own"}) == 6
    assert all(row["chosen_by"] == ("row" if len(by) == 3 else "own") for row, by in zip(rows, mixed, strict=True))
    again = pairs.run({"own": own, "far": far}, brought, out="other", foreign=0.5, pick="best_worst", **settings)
    assert again == rows
    pairs.run({"own": own, "far": far}, brought, out="all", pick="best_worst", **settings)
    assert pairs.numbers["chosen_by"] == {"row": 12}


def test_pairs_that_are_there_are_judged_anew_whichever_answer_was_the_chosen_one(pairs: Bench) -> None:
    talk = "\n\nHuman: Say {0}.\n\nAssistant: {1}"
    hh = [{"id": f"p{n}", "chosen": talk.format(n, "No."), "rejected": talk.format(n, f"It is {n}.")} for n in range(3)]
    unpaired = [{"prompt": "Name a sea.", "completion": "The Baltic.", "label": False}]
    rows = pairs.run({}, hh, row_answers=True, by="rm")
    assert [to_pair(row, "").chosen for row in rows] == ["It is 0.", "It is 1.", "It is 2."]
    assert {row["chosen_by"] for row in rows} == {"row"}
    rows = pairs.run({"own": scripted("B")}, unpaired, **{"from": "own", "samples": 1, "row_answers": True, "by": "rm"})
    assert to_pair(rows[0], "").chosen == "The Baltic." and "label" not in rows[0]


def test_scores_of_other_answers_that_a_row_brings_are_not_the_new_pair_s(pairs: Bench) -> None:
    """Pairs of pairs: what was said of the old answers goes, what is said of the prompt stays."""
    rows = pairs.run({"own": scripted("a", "bcd")}, PROMPTS[:1], **{"from": "own", "samples": 2, "by": "rm"})
    assert {"margin", "chosen_score", "rejected_score", "chosen_by", "rejected_by"} <= set(rows[0])
    old = [{**rows[0], "reward_score": 3.0, "scores": [1.0, 3.0], "licence": "mit"}]
    models = {"strong": scripted("good"), "weak": scripted("bad")}
    (made,) = pairs.run(models, old, out="delta", pick="delta", strong="strong", weak="weak")
    assert (made["chosen_by"], made["rejected_by"], made["licence"]) == ("strong", "weak", "mit")
    assert not {"margin", "chosen_score", "rejected_score", "reward_score", "scores"} & set(made)


def test_a_cut_off_answer_of_a_row_takes_no_part_and_a_row_without_one_is_named(pairs: Bench) -> None:
    settings = {"from": "own", "samples": 2, "by": "rm", "row_answers": True}
    pairs.run({"own": scripted("a", "bc")}, [{**PROMPTS[0], "response": "cut of", "finish": "length"}], **settings)
    assert pairs.numbers["answers_dropped"] == {"cut off by the token limit": 1}
    with pytest.raises(DataError, match="row q0: no field 'response'"):
        pairs.run({"own": scripted("a", "bc")}, PROMPTS[:1], **settings)


def test_delta_takes_the_strong_model_s_answer_over_the_weak_one_s_and_asks_no_judge(pairs: Bench) -> None:
    strong, weak = Scripted(lambda call: "strong"), scripted("a weak answer that is longer", "strong")
    rows = pairs.run({"strong": strong, "weak": weak}, pick="delta", strong="strong", weak="weak")
    assert [row["id"] for row in rows] == [f"q{n}" for n in range(0, 12, 2)]  # the others are the same twice
    assert {(to_pair(row, "").chosen, row["chosen_by"], row["rejected_by"]) for row in rows} == {
        ("strong", "strong", "weak")
    }
    assert "margin" not in rows[0] and pairs.rewards.asked == [] and len(strong.asked) == len(weak.asked) == 12


# ------------------------------------------------------------------------------ a judge


@pytest.mark.parametrize("mode", ["text", "probability"])
def test_a_judge_rates_each_answer_as_a_filter_s_does(pairs: Bench, mode: str) -> None:
    def rating(call: Call) -> int:
        text = call.prompt[-1].content if not isinstance(call.prompt, str) else ""
        return 9 if "fine" in text else 2 if "poor" in text else 5

    def reply(call: Call) -> str:
        return "I cannot say." if "odd" in last(call) else f"Status: accept\nRating: {rating(call)}\nReason: so."

    judge = Scripted(reply, lambda call: [0.0 if n == rating(call) else -50.0 for n in range(1, 11)])
    system = [{"id": "s", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go?"}]}]
    rows = pairs.run(
        {"own": scripted("odd one", "poor one", "fine one"), "judge": judge},
        system,
        **{"from": "own", "samples": 3, "by": "judge", "rating": {"mode": mode, "retries": 1}},
    )
    assert to_pair(rows[0], "").chosen == "fine one" and to_pair(rows[0], "").rejected == "poor one"
    assert rows[0]["margin"] == pytest.approx(7) and judge.closed == 1
    assert "Be brief.\n\nGo?" in last(judge.asked[0])
    unscored = {"answers unscored: unparsable": 1} if mode == "text" else {}
    assert {r: n for r, n in pairs.counts.items() if "unscored" in r} == unscored
    assert ("score" not in pairs.candidates[0]["answers"][0]) is (mode == "text")


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"from": "own"}, "by: name a reward model or a judge that scores the answers, or set 'pick: delta'"),
        ({"by": "rm"}, "from: name whose answers are paired, or set 'row_answers: true' for those of the rows"),
        ({"by": "rm", "from": ["own", "own"]}, "from: a model stands there twice"),
        ({"by": "rm", "from": "own", "samples": 1}, "samples: a pair of own answers takes two"),
        (
            {"by": "rm", "from": ["own", "far"], "samples": 1, "foreign": 0.5},
            "samples: a pair of own answers takes two",
        ),
        ({"by": "rm", "from": "own", "foreign": 0.5}, "foreign: there are none to be mixed"),
        ({"by": "rm", "row_answers": True, "foreign": 0.5}, "foreign: there are none to be mixed"),
        ({"strong": "own", "weak": "far"}, "strong and weak are of 'pick: delta'"),
        ({"pick": "delta", "strong": "own"}, "pick: delta takes its answers from 'strong' and 'weak'; name both"),
        ({"pick": "delta", "strong": "own", "weak": "own"}, "weak: the same model as 'strong'"),
        ({"pick": "delta", "strong": "own", "weak": "far", "by": "rm"}, "by: 'pick: delta' has no use for it"),
        ({"pick": "delta", "strong": "own", "weak": "far", "from": "own"}, "from: 'pick: delta' has no use for it"),
        (
            {"pick": "delta", "strong": "own", "weak": "far", "length_bias": "remove"},
            "length_bias: 'pick: delta' has no use for it",
        ),
        ({"by": "rm", "from": "own", "max_length_ratio": 0.5}, "max_length_ratio: Input should be greater than"),
        ({"by": "rm", "from": "own", "pick": "best"}, "pick: Input should be 'best_2sigma', 'best_worst' or 'delta'"),
        ({"by": "rm", "form": "own"}, "form: unknown key"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings: dict[str, Any], line: str) -> None:
    models = dict.fromkeys(("own", "far", "rm"), "m")
    with pytest.raises(RecipeError) as told:
        parse({"name": "t", "models": models, "steps": {"p": {"pairs": "x.jsonl", **settings}}}, "t.yaml")
    assert str(told.value).startswith(f"t.yaml: steps.p: {line}") and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("replies", "settings", "remedy"),
    [
        (("same",), {}, "raise 'samples' or 'temperature', or name more models"),
        ((Completion("cut", "length", 1, 1),), {}, "raise 'max_new_tokens', or set 'unfinished: keep'"),
        (("ab", "cd"), {}, "'rm' tells no answers apart: name another"),
        (("ab", "cde"), {"min_margin": 3}, r"lower 'min_margin' \(now 3\)"),
        (("ab", "cde"), {"max_length_ratio": 1.4}, r"raise 'max_length_ratio' \(now 1.4\) or 'samples'"),
        (("ab", "cde"), {"by": "judge"}, "'judge' cannot be understood"),
    ],
)
def test_not_one_pair_is_an_error_with_a_remedy(
    pairs: Bench, replies: Sequence[Any], settings: dict[str, Any], remedy: str
) -> None:
    models = {"own": scripted(*replies), "judge": Scripted(lambda call: "hm")}
    with pytest.raises(DataError, match=remedy) as told:
        pairs.run(models, **{"from": "own", "samples": 2, "by": "rm", **settings})
    assert "\n" not in str(told.value) and pairs.candidates


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"id": "x", "answer": "A."}, "row x"),
        ({"id": "x", "instruction": " "}, "the instruction is empty"),
        ({"id": "x", "instruction": 5}, "'instruction' is 5; expected a text"),
        ({"id": "x", "messages": []}, "messages"),
    ],
)
def test_a_row_without_a_prompt_is_one_line(pairs: Bench, row: Row, line: str) -> None:
    with pytest.raises(UserError) as told:
        pairs.run({"own": scripted("a", "bc")}, [row], **{"from": "own", "samples": 2, "by": "rm"})
    assert line in str(told.value) and "\n" not in str(told.value)


# ----------------------------------------------------------------------------- as a verb


def test_the_key_pairs_of_other_verbs_is_no_verb_there() -> None:
    steps = {
        "scores": {"evaluate": ["own"], "pairs": {"mine": "x.jsonl"}},
        "check": {"agreement": "own", "pairs": "x.jsonl"},
        "own-pairs": {"pairs": "x.jsonl", "from": "own", "by": "rm"},
    }
    recipe = parse({"name": "t", "models": {"own": "m", "rm": "m"}, "steps": steps}, "t.yaml")
    assert [type(step).__name__ for step in recipe.steps.values()] == ["Evaluate", "Agreement", "Pairs"]
    with pytest.raises(RecipeError, match=r"two verbs \(pairs, dpo\); a step has one"):
        parse({"name": "t", "models": {}, "steps": {"p": {"pairs": "x.jsonl", "dpo": "x.jsonl"}}}, "t.yaml")
    with pytest.raises(RecipeError, match=r"defaults\.pairs\.form: unknown key"):
        parse({"name": "t", "models": {}, "defaults": {"pairs": {"form": "own"}}, "steps": steps}, "t.yaml")
    defaults = {"pairs": {"from": "own", "by": "rm"}}
    recipe = parse({"name": "t", "models": {}, "defaults": defaults, "steps": {"p": {"pairs": "x"}}}, "t.yaml")
    assert json.loads(recipe.steps["p"].model_dump_json())["from"] == "own"


def test_the_report_tells_what_was_paired_by_whom_and_what_was_dropped(pairs: Bench) -> None:
    own = scripted("a fine answer", "no", Completion("cut", "length", 1, 1))
    rows = pairs.run({"own": own}, **{"from": "own", "samples": 3, "by": "rm"})
    kept, settings = pairs.folder / "run", {"pairs": "x.jsonl", "pick": "best_2sigma", "by": "rm"}
    step(kept, "own-pairs", "pairs", settings, [], {"rows.jsonl": rows}, numbers=pairs.numbers, counts=pairs.counts)
    facts = read_facts(RunFolder(kept))
    result = facts.steps["own-pairs"].result
    assert result.outcome() == "12 pairs of 12 prompts" and result.missing() == []
    (section,) = sections(facts)
    page = json.dumps(section, default=vars)
    for told in ("best_2sigma by rm", "1.00 [0.76, 1.00]", "11.000", "answers: cut off by the token limit: 12"):
        assert told in page, told
    assert "q0: chosen, by own, 13.000" in page and "q4: prompt" in page and "q8: rejected, by own, 2.000" in page


def test_a_release_names_all_whose_answers_it_was_trained_on(tmp_path: Path) -> None:
    address = "http://localhost:1/v1"
    names = ("mit", "apache-2.0", "cc0-1.0", "rm")
    models = {name: {"server": address, "model": name, "licence": name} for name in names}
    scored = {"pairs": "x.jsonl", "from": ["mit", "apache-2.0"], "by": "rm"}
    delta = {"pairs": "x.jsonl", "pick": "delta", "strong": "mit", "weak": "cc0-1.0"}
    for name, settings in (("own", scored), ("apart", delta)):
        step(tmp_path / "run", name, "pairs", settings, [], {"rows.jsonl": []})
    context = context_of(tmp_path, {"pairs": "own", **{"from": "mit", "by": "rm"}}, top={"models": models})
    facts = read_facts(RunFolder(tmp_path / "run"))
    named = {(source.what, source.stated) for source in sources_of(facts, context, ["own", "apart"])}
    assert named == {("teacher", "mit"), ("teacher", "apache-2.0"), ("teacher", "cc0-1.0"), ("judge", "rm")}


def test_a_plan_knows_whose_answers_are_asked_and_what_scores_them(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    own = {"pairs": "rows.jsonl", "from": "base", "samples": 4, "by": "base"}
    steps = {
        "own": own,
        "more": {**own, "samples": 8},
        "delta": {"pairs": "rows.jsonl", "pick": "delta", "strong": "base", "weak": "sft"},
        "sft": {"sft": "rows.jsonl", "model": "base", **FAST},
        "dpo": {"dpo": "own", "model": "sft", **FAST},
    }
    path = write_recipe(steps)
    graph = build(load(path), path, tmp_path / "runs")
    assert graph.nodes["delta"].inputs == ("sft",) and set(graph.nodes["dpo"].inputs) == {"own", "sft"}
    assert graph.nodes["own"].parts["settings"]["from"] == "base"
    assert set(graph.nodes["own"].parts["texts"]) == {"judge_filter", "judge_filter_probability"}
    assert graph.nodes["delta"].parts["texts"] == {}
    planned = estimate(graph)
    assert planned["own"].rows == 24 and (planned["dpo"].tokens_in or 0) > 0
    assert planned["more"].tokens_out == pytest.approx(2 * (planned["own"].tokens_out or 0), rel=0.01)
    assert 0 < (planned["delta"].tokens_out or 0) < (planned["own"].tokens_out or 0)
    assert (planned["own"].seconds or 0) > 0 and (planned["own"].memory_bytes or 0) > 0
    with pytest.raises(
        RecipeError, match=r"policy: open refuses rows 'rows\.jsonl' .*, teacher 'base' .*, judge 'base'"
    ):
        build(load(path, ["policy=open"]), path, tmp_path / "runs")
    with pytest.raises(RecipeError, match=r"steps\.own\.from: no step or model 'bose'; did you mean 'base'"):
        build(load(path, ["steps.own.from=bose"]), path, tmp_path / "runs")
