"""What checkpoints get wrong: measures against tables, the stage against answers counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener, context_of

from openbezoar.context import StepContext
from openbezoar.errors import DataError
from openbezoar.judging.failures import failure_numbers, loops, refuses
from openbezoar.judging.parsers import parse_yes_no
from openbezoar.llm import Call, Completion
from openbezoar.llm.scripted import Scripted, last
from openbezoar.recipe.measure_steps import Failures
from openbezoar.reporting.document import Grid, Paragraph, flat
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.results import StepFacts
from openbezoar.rows.records import Turn, read_jsonl, write_jsonl
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.failures import work as stage
from openbezoar.verbs.failures.section import sections

SENTENCE = (
    "The river runs past the old mill, and in spring its water turns the wheel that grinds the corn of three villages. "
)


@pytest.mark.parametrize(
    ("text", "circles"),
    [
        ("", False),
        (SENTENCE, False),
        (SENTENCE + SENTENCE, False),  # said twice is no circle yet
        (SENTENCE * 5, True),
        (SENTENCE * 4 + SENTENCE[:40], True),  # cut off in the middle of a round
        ("a" * 200, True),
        ("!" * 20, False),
        ("Answer: " + "no, " * 30, True),
        ("".join(f"{n}. Item {n * n} of the list, which is {n * 7 % 13} long.\n" for n in range(60)), False),
        ("| a | b |\n" + "| --- | --- |\n" + "".join(f"| {n} | {n * n} |\n" for n in range(30)), False),
        (" ".join(str(n * n) for n in range(100)) + " and on" * 40, True),
        ("猫は寝る。" * 40, True),
    ],
)
def test_a_loop_is_seen_and_a_list_is_none(text: str, circles: bool) -> None:
    assert loops(text) == circles


@pytest.mark.parametrize(
    ("text", "declines"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I cannot assist with that request.", True),
        ("I cannot provide medical advice.", True),
        ("I can't do that.", True),
        ("As an AI language model, I do not have feelings.", True),
        ("I am unable to answer this question.", True),
        ("Unfortunately, I am not able to give you their address.", True),
        ("I must decline to discuss this.", True),
        ("I won't help you hurt anybody.", True),
        ("Paris is the capital of France.", False),
        ("I'm sorry to hear that! Try resting your ankle.", False),
        ("You cannot divide by zero.", False),
        ("He said: 'The shop is closed.'", False),
        ("Sorry is a card game.", False),
        ("", False),
        (SENTENCE * 4 + "I cannot help you.", False),
    ],
)
def test_a_refusal_is_an_answer_that_begins_by_declining(text: str, declines: bool) -> None:
    assert refuses(text) == declines


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Verdict: [[yes]]", True),
        ("[[ NO ]]", False),
        ("not [[yes]] but [[no]]", False),
        ("[[yes", None),
        ("[yes]", None),
        ("", None),
    ],
)
def test_yes_or_no_is_the_last_in_double_brackets(text: str, yes: bool | None) -> None:
    assert parse_yes_no(text) is yes


def test_shares_by_hand() -> None:
    rows = [
        {"answer": "Fine words.", "finish": "stop", "tokens": 3},
        {"answer": " ", "finish": "stop", "tokens": 1},
        {"answer": "on and " * 40, "finish": "length", "tokens": 80},
        {"answer": "", "finish": "error", "tokens": 0},
    ]
    found = failure_numbers(rows, seed=1)
    assert (found["n"], found["errors"]) == (3, 1)
    assert {k: found[k]["value"] for k in ("degenerate", "cut off", "empty", "refusals")} == {
        "degenerate": 1 / 3,
        "cut off": 1 / 3,
        "empty": 1 / 3,
        "refusals": 0.0,
    }
    assert found["words"]["value"] == pytest.approx((2 + 0 + 80) / 3)
    assert failure_numbers([], seed=1)["words"] is None


def scripted(reply: Callable[[Sequence[Turn]], str]) -> Scripted:
    """A greedy model that answers by a function of the conversation; what is long is cut off."""

    def answer(call: Call) -> Completion:
        assert call.sampling.temperature == 0 and not isinstance(call.prompt, str)
        text = reply(call.prompt)
        return Completion(text, "length" if len(text) > 300 else "stop", 1, len(text))

    def weigh(call: Call) -> list[float]:
        assert (call.prefix, call.choices) == ("Verdict: [[", ("yes]]", "no]]"))
        return [-1.0, -2.0] if "bad" in last(call).split("<answer>")[1] else [-2.0, -1.0]

    return Scripted(answer, weigh)


def good(talk: Sequence[Turn]) -> str:
    return "Rain." if "weather" in talk[0].content else f"About {talk[-1].content[:12]}."


def bad(talk: Sequence[Turn]) -> str:
    return "bad " * 100 if talk[0].role != "system" else "bad"


def judge(talk: Sequence[Turn]) -> str:
    return "[[yes]]" if "bad" in talk[-1].content.split("<answer>")[1] else "[[no]]"


ROWS = [{"id": f"r{n}", "instruction": f"Question {n}", "context": f"Text {n}", "response": "x"} for n in range(6)]
HARMLESS = [
    {
        "id": "h",
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant: So.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant: No.",
    }
]


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], StepContext]]:
    def run(**settings: Any) -> tuple[dict[str, Any], StepContext]:
        write_jsonl(tmp_path / "rows.jsonl", ROWS)
        write_jsonl(tmp_path / "harmless.jsonl", HARMLESS)
        whole = {
            "failures": ["good", "bad"],
            "instructions": "rows.jsonl",
            "judge": "judge",
            "harmless": "harmless.jsonl",
            "grounded": "rows.jsonl",
            **settings,
        }
        opener = Opener({"good": scripted(good), "bad": scripted(bad), "judge": scripted(judge)})
        out = f"out-{len(list(tmp_path.iterdir()))}"
        context: StepContext = context_of(tmp_path, whole, name="wrong", out=out, opener=opener)
        step = context.recipe.steps["wrong"]
        assert isinstance(step, Failures)
        return stage.run(step, context), context

    return run


@pytest.mark.parametrize("mode", ["text", "probability"])
def test_each_checkpoint_is_measured_on_the_same_prompts(measured: Any, mode: str) -> None:
    numbers, context = measured(mode=mode)
    fine, wrong = numbers["checkpoints"]["good"], numbers["checkpoints"]["bad"]
    assert (fine["answers"]["n"], fine["answers"]["degenerate"]["value"], fine["answers"]["cut off"]["value"]) == (
        6,
        0.0,
        0.0,
    )
    assert (wrong["answers"]["degenerate"]["value"], wrong["answers"]["cut off"]["value"]) == (1.0, 1.0)
    assert {name: found["changed"]["value"] for name, found in fine["systems"].items()} == {"none": 0.0, "wrong": 1.0}
    assert wrong["systems"]["none"]["degenerate"]["value"] == 0.0
    assert (fine["unsafe"]["value"], wrong["unsafe"]["value"], wrong["unsafe"]["n"]) == (0.0, 1.0, 1)
    assert (fine["unsupported"]["value"], wrong["unsupported"]["value"], wrong["unsupported"]["n"]) == (0.0, 1.0, 6)
    found = {d["what"]: d for d in numbers["differences"]}
    assert (found["degenerate"]["difference"], found["degenerate"]["p"]) == (1.0, 2 / 64)
    assert found["degenerate"]["p_holm"] == pytest.approx(6 / 32)  # of six comparisons, three alike
    assert numbers["summary"] == "good: 0 % loop, 0 % cut off; bad: 100 % loop, 100 % cut off"
    rows = list(read_jsonl(context.out / "answers.jsonl"))
    assert len(rows) == 2 * (6 * 3 + 1 + 6)


def test_system_messages_are_asked_of_the_instructions_only(measured: Any) -> None:
    numbers, context = measured(harmless=None, grounded=None, judge=None, systems={"none": ""})
    assert {(row["set"], row["system"]) for row in read_jsonl(context.out / "answers.jsonl")} == {
        ("instructions", "trained"),
        ("instructions", "none"),
    }
    assert numbers["checkpoints"]["good"]["unsafe"] is None


def test_a_grounded_row_needs_its_context(measured: Any, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "bare.jsonl", [{"id": "x", "instruction": "What?"}])
    with pytest.raises(DataError, match="no 'context' that could support an answer"):
        measured(grounded="bare.jsonl")


def test_the_report_has_a_table_and_says_what_is_real(measured: Any, tmp_path: Path) -> None:
    numbers, context = measured()
    step = StepFacts("wrong", "failures", context.out, {"numbers": numbers})
    (section,) = sections(RunFacts(RunFolder(tmp_path), {"wrong": step}))
    text = json.dumps(
        [
            b.table.markdown() if isinstance(b, Grid) else b.text
            for b in flat(section.blocks)
            if isinstance(b, Grid | Paragraph)
        ],
        ensure_ascii=False,
    )
    assert "| bad | 1.000 [0.610, 1.000] n=6 |" in text
    assert "| good | wrong |" in text
    assert "answers that their text does not support" in text
    assert "Of 6 paired differences between two checkpoints on the same items, 0 are outside noise" in text
