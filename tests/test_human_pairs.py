"""A judge on pairs that people have compared, and what stops a run: numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener, context_of

from openbezoar.context import StepContext
from openbezoar.errors import DataError, RecipeError, RunError
from openbezoar.judging.both_orders import settle
from openbezoar.llm import Call, Completion
from openbezoar.llm.scripted import Scripted, last
from openbezoar.recipe.measure_steps import Agreement, Evaluate, Gate
from openbezoar.recipe.verbs import row_of
from openbezoar.rows.records import Counts, Row, read_jsonl, write_jsonl
from openbezoar.verbs.judge import agreement as stage
from openbezoar.verbs.judge.human_pairs import read_pairs


def pair(number: int, majority: int | None, **more: Any) -> Row:
    return {
        "id": f"p{number}",
        "instruction": f"I{number}",
        "input": "",
        "output_1": f"one{number}",
        "output_2": f"two {number}",
        "human_majority": majority,
        **more,
    }


# By hand, for a judge that calls A the answer with "one" in it, but the first shown for I3 and a tie for I4:
PAIRS = [
    pair(1, 1),  # right
    pair(2, 2),  # wrong
    pair(3, 1),  # inconsistent: a tie, wrong in S1, dropped in S2
    pair(4, 0, dataset="ties"),  # tie, right in S1, dropped in S2
]


class Judge(Scripted):
    """Prefers one of two answers by a function of them; seen: the pairs it was shown, in order."""

    def __init__(
        self, reply: Callable[[str, str], str] | None = None, odds: Callable[[str, str], list[float]] | None = None
    ) -> None:
        self.seen: list[tuple[str, str]] = []

        def answer(call: Call) -> Completion:
            assert reply
            return Completion(reply(*self.shown(call)), "stop", 1, 1)

        def weighed(call: Call) -> list[float]:
            assert odds and (call.prefix, call.choices) == ("Verdict: [[", ("A]]", "B]]", "C]]"))
            return [math.log(p) for p in odds(*self.shown(call))]

        super().__init__(answer, weighed)

    def shown(self, call: Call) -> tuple[str, str]:
        a, b = (last(call).split(f"<answer_{x}>\n")[1].split("\n</")[0] for x in "ab")
        self.seen.append((a, b))
        return a, b

    def answers(self, calls: Sequence[Call]) -> list[Completion]:
        assert len({call.seed for call in calls}) == len(calls)
        return super().answers(calls)


def opinion(a: str, b: str) -> str:
    if "4" in a:
        return "[[C]]"
    return "[[A]]" if "one" in a or "3" in a else "[[B]]"


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], StepContext]]:
    def run(judge: Judge, rows: list[Row] = PAIRS, **settings: Any) -> tuple[dict[str, Any], StepContext]:
        write_jsonl(tmp_path / "pairs.jsonl", rows)
        checked = {"agreement": "j", "pairs": "pairs.jsonl", **settings}
        out = f"out-{len(list(tmp_path.iterdir()))}"
        context: StepContext = context_of(tmp_path, checked, name="check", out=out, opener=Opener({"j": judge}))
        step = context.recipe.steps["check"]
        assert isinstance(step, Agreement)
        return stage.run(step, context), context

    return run


def test_a_judges_agreement_with_people_by_hand(judged: Any) -> None:
    judge = Judge(opinion)
    numbers, context = judged(judge)
    assert judge.seen[:2] == [("one1", "two 1"), ("two 1", "one1")]
    found = {(r["setup"], r["pair"]): (r["n"], r["agreement"]) for r in numbers["agreement"]}
    assert found["S1", "judge-majority"] == found["S1", "judge-human"] == (4, 0.5)
    assert found["S2", "judge-majority"] == (2, 0.5)
    assert found["S1", "human-human"] == (0, None)
    assert (numbers["flips"]["value"], numbers["flips"]["n"]) == (0.25, 4)
    assert (numbers["first"]["value"], numbers["first"]["n"]) == (4 / 6, 6)
    assert (numbers["one_order"]["value"], numbers["one_order"]["n"]) == (5 / 8, 8)  # I1 twice, I3 once, I4 twice
    assert (numbers["longer"]["value"], numbers["longer"]["n"]) == (0.0, 2)
    assert numbers["averaged"]["n"] == 0
    assert {d: s["value"] for d, s in numbers["by_dataset"].items()} == {"all": 1 / 3, "ties": 1.0}
    assert numbers["summary"].startswith("agrees with people on 50.0 % (")
    rows = list(read_jsonl(context.out / "comparisons.jsonl"))
    assert [r["winner"] for r in rows] == ["model_a", "model_a", "tie (inconsistent)", "tie"]
    assert json.loads((context.out / "scores.json").read_text())["n"] == 4


def test_probabilities_of_both_orders_together_favour_neither(judged: Any) -> None:
    # The first shown always gets 0.6, but the answer "one" 0.1 more where it stands.
    def weigh(a: str, b: str) -> list[float]:
        return [0.7, 0.2, 0.1] if "one" in a else [0.5, 0.4, 0.1]

    numbers, _ = judged(Judge(odds=weigh), mode="probability")
    assert numbers["flips"]["value"] == 1.0
    # I1 and I3, not I2; people saw a tie in I4
    assert (numbers["averaged"]["value"], numbers["averaged"]["n"]) == (2 / 3, 3)


def test_each_persons_label_is_a_vote(judged: Any) -> None:
    numbers, context = judged(
        Judge(opinion), [pair(1, 1, human_labels=[1, 1, 2]), pair(2, None, human_labels=[0, 1, 2]), pair(5, None)]
    )
    found = {(r["setup"], r["pair"]): (r["n"], r["agreement"]) for r in numbers["agreement"]}
    assert found["S1", "judge-human"] == (6, 0.5)
    assert found["S1", "human-human"] == (6, 0.167)
    assert found["S1", "judge-majority"] == (1, 1.0)
    assert context.counts.by_reason == {"people were split": 1}


def test_a_pair_without_a_verdict_is_counted(judged: Any) -> None:
    numbers, context = judged(Judge(lambda a, b: "hm" if a == "two 2" else opinion(a, b)))
    assert (numbers["n"], numbers["unscored"]) == (3, 1)
    assert context.counts.by_reason == {"unscored_unparsable": 1}


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ("A", "B", "model_a"),
        ("B", "A", "model_b"),
        ("tie", "tie", "tie"),
        ("A", "A", "tie (inconsistent)"),
        ("A", "tie", "tie (inconsistent)"),
        ("A", None, None),
        (None, "B", None),
    ],
)
def test_a_model_wins_where_both_orders_say_so(first: str | None, second: str | None, winner: str | None) -> None:
    assert settle(first, second) == winner


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "x"}, "row 1: no field 'output_1'"),
        (pair(1, 3), "row p1: people's labels are \\[3\\]"),
        (pair(1, 1, human_labels=[]), "labels are \\[\\]"),
        (pair(1, None), "no pair with people's verdict"),
    ],
)
def test_a_bad_pair_is_named(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs([row], Counts())


def test_an_answer_that_is_a_bare_truth_value_is_a_text() -> None:
    (found,) = read_pairs([pair(1, 1, output_1=True, output_2=7)], Counts())
    assert found.answers == ("True", "7")


# -------------------------------------------------------------------------------- gates


def gate_of(step: Any, scores: dict[str, Any], folder: Path) -> list[str]:
    (folder / "scores.json").write_text(json.dumps(scores))
    return list(row_of(step).part("gate")("s", step, folder, 1))


def test_a_judge_below_the_minimum_stops_the_run(judged: Any, tmp_path: Path) -> None:
    numbers, _ = judged(Judge(opinion))
    step = Agreement(agreement="j", pairs="p.jsonl", min_agreement=0.5)
    assert gate_of(step, numbers, tmp_path) == []
    with pytest.raises(
        RunError, match=r"judge 'j' agrees with people on 50.0 % of 4 pairs .*, expected 60.0 % or more"
    ):
        gate_of(step.model_copy(update={"min_agreement": 0.6}), numbers, tmp_path)
    lost, _ = judged(Judge(lambda a, b: "no idea"))
    with pytest.raises(RunError, match="no verdict of judge 'j' could be read on 4 pairs"):
        gate_of(step, lost, tmp_path)


def scores(before: list[int], after: list[int]) -> dict[str, Any]:
    tasks = {
        name: {"tasks": {"mmlu": {"items": items}}, "losses": {"mine": {"items": [2.0 - i for i in items]}}}
        for name, items in (("base", before), ("dpo", after))
    }
    return {"checkpoints": tasks}


def evaluate(**gate: Any) -> Evaluate:
    return Evaluate(evaluate=["base", "dpo"], gate=[Gate(measure="mmlu", fall=1, **gate)])


GOOD = [1, 0] * 200


def test_a_gate_holds_is_broken_or_open(tmp_path: Path) -> None:
    assert gate_of(evaluate(), scores(GOOD, GOOD), tmp_path) == []
    fallen = [0] * 100 + GOOD[100:]  # 50 of 400 items lost: 12.5 points
    with pytest.raises(
        RunError,
        match=(
            r"gate on mmlu is broken: base → dpo -12.50 points \(95 %: -\d+.\d+ to -\d+.\d+, n=400\), allowed: a fall"
            r" of 1"
        ),
    ):
        gate_of(evaluate(), scores(GOOD, fallen), tmp_path)
    (warning,) = gate_of(evaluate(broken="warn"), scores(GOOD, fallen), tmp_path)
    assert "is broken" in warning
    (warning,) = gate_of(evaluate(), scores(GOOD, [0] * 6 + [1] * 2 + GOOD[8:]), tmp_path)  # 3 lost, 1 won
    assert "is open: too few items to say: base → dpo -0.50 points" in warning
    (warning,) = gate_of(evaluate(before="dpo", after="base", broken="warn"), scores(fallen, GOOD), tmp_path)
    assert "dpo → base -12.50" in warning


def test_a_gate_on_a_few_items_that_all_fell_is_open(tmp_path: Path) -> None:
    for n in (1, 3):
        (warning,) = gate_of(evaluate(), scores([1] * n, [0] * n), tmp_path)
        assert "is open: too few items to say: base → dpo -100.00 points" in warning
    with pytest.raises(RunError, match="is broken"):  # ten of ten
        gate_of(evaluate(), scores([1] * 10, [0] * 10), tmp_path)
    (warning,) = gate_of(
        Evaluate(evaluate=["base", "dpo"], gate=[Gate(measure="mine", fall=0.01)]), scores([1], [0]), tmp_path
    )
    assert "is open" in warning


def test_a_gate_on_a_task_of_which_less_is_better_is_broken_by_a_rise(tmp_path: Path) -> None:
    fallen = [0] * 100 + GOOD[100:]
    for before, after, held in ((GOOD, fallen, True), (fallen, GOOD, False)):
        table = scores(before, after)
        for found in table["checkpoints"].values():
            found["tasks"]["mmlu"]["higher_is_better"] = False
        warnings = gate_of(evaluate(broken="warn"), table, tmp_path)
        assert (
            warnings == []
            if held
            else "is broken: base → dpo +12.50 points (95 %: +" in warnings[0] and "a rise of 1" in warnings[0]
        )


def test_a_gate_on_a_loss_counts_nats_upwards(tmp_path: Path) -> None:
    step = Evaluate(evaluate=["base", "dpo"], gate=[Gate(measure="mine", fall=0.01, broken="warn")])
    (warning,) = gate_of(step, scores(GOOD, [0] * 100 + GOOD[100:]), tmp_path)
    assert "gate on mine is broken: base → dpo +0.12 nats (95 %: +" in warning
    assert gate_of(step, scores([0] * 100 + GOOD[100:], GOOD), tmp_path) == []


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"after": "sft"}, "no checkpoint 'sft'; the step scores base, dpo"),
        ({"measure": "arc"}, "'arc' is not measured; the step measures mmlu, mine"),
    ],
)
def test_a_gate_on_nothing_is_the_recipes_mistake(tmp_path: Path, gate: dict[str, str], message: str) -> None:
    step = Evaluate(evaluate=["base", "dpo"], gate=[Gate(**{"measure": "mmlu", "fall": 1, **gate})])
    with pytest.raises(RecipeError, match=message):
        gate_of(step, scores(GOOD, GOOD), tmp_path)


def test_gates_are_no_part_of_a_steps_key(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    from openbezoar.engine import graph
    from openbezoar.recipe.file import load

    def keys(gate: list[Any], least: float | None) -> list[str]:
        steps = {
            "scores": {"evaluate": ["base"], "losses": {"mine": "rows.jsonl"}, "gate": gate},
            "check": {"agreement": "base", "pairs": "rows.jsonl", "min_agreement": least},
            "talks": {"mt_bench": ["base"], "questions": "rows.jsonl", "judge": "base", "judge_check": "check"},
        }
        path = write_recipe(steps)
        return [node.key for node in graph.build(load(path), path, tmp_path / "runs").nodes.values()]

    assert keys([], None) == keys([{"measure": "mine", "fall": 0}], 0.7)


def test_judge_check_names_an_agreement_step(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    from openbezoar.engine import graph
    from openbezoar.recipe.file import load

    for check, message in (
        ("nothing", "no step or model 'nothing'"),
        ("base", "'base' is a model as it came|no step"),
        ("scores", "'scores' is a evaluate step"),
    ):
        steps = {
            "scores": {"evaluate": ["base"], "losses": {"mine": "rows.jsonl"}},
            "talks": {"mt_bench": ["base"], "questions": "rows.jsonl", "judge": "base", "judge_check": check},
        }
        path = write_recipe(steps)
        with pytest.raises(RecipeError, match=message):
            graph.build(load(path), path, tmp_path / "runs")
