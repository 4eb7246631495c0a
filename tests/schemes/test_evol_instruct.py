"""Evol-Instruct: the rules of elimination, operations, rounds, provenance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from test_schemes import INSTRUCTIONS, Bench, Teacher, evol_teacher

from openbezoar.context import StepContext
from openbezoar.errors import ModelError
from openbezoar.llm import Completion
from openbezoar.llm.scripted import last
from openbezoar.recipe.blocks import ServerModel
from openbezoar.rows.records import Turn
from openbezoar.schemes import elimination, evol_instruct


@pytest.mark.parametrize(
    ("rule", "caught", "passed"),
    [
        (elimination.apologises, "I'm Sorry, I can't do that.", "I cannot say, but the Rhine is long."),
        (elimination.apologises, "sorry " + "word " * 78, "sorry " + "word " * 79),
        (elimination.says_nothing, "", "42"),
        (elimination.says_nothing, "...", "Paris."),
        (elimination.says_nothing, "___ *** --", "x_1"),
        (elimination.says_nothing, "It is not, and THEY don’t!", "It is not raining."),
        (elimination.leaks_prompt, "Make the Given Prompt longer.", "Make the given speech prompt more laughter."),
        (elimination.leaks_prompt, "The CREATED\n  prompt is this.", "The prompt was created."),
        (elimination.leaks_prompt, "#Created Prompt#: name a fish", "Name a prompt reply."),
        (elimination.leaks_prompt, "Here is the rewritten prompt", "Here is the rewritten letter"),
        (lambda t: elimination.same_as_source("Name a  Fish.", t), "name a fish?\n", "Name two fish."),
        (lambda t: elimination.gains_information(t) is True, "**not** equal.", "not, they are equal"),
        (lambda t: elimination.gains_information(t) is False, " equal.", " not equal."),
        (lambda t: elimination.gains_information(t) is True, "NOT EQUAL because", "unequal"),
        (lambda t: elimination.gains_information(t) is None, "hard to compare, unequalled", "equal"),
    ],
)
def test_an_elimination_rule_catches_what_it_must_and_lets_the_rest_pass(
    rule: Callable[[str], bool], caught: str, passed: str
) -> None:
    assert rule(caught) is True
    assert rule(passed) is False


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("#Rewritten Prompt#: Name a fish.", "Name a fish."),
        ('#Created Prompt#:\n"Name a fish."', "Name a fish."),
        ('"Yes" or "no"', '"Yes" or "no"'),
        ("“Sing.”", "Sing."),
        ('"', '"'),
        ("", ""),
    ],
)
def test_an_evolution_loses_its_label_and_quotation_marks_around_the_whole(reply: str, text: str) -> None:
    assert evol_instruct.without_labels(reply) == text


def test_evol_instruct_keeps_provenance_and_no_operation_in_breadth(bench: Bench) -> None:
    rows = bench.run(
        Teacher(evol_teacher), generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS), rows=16, rounds=4
    )
    assert len(rows) == 16 and [r["id"] for r in rows][-1] == "evol_instruct-00016"
    assert {r["source"] for r in rows} == {"in-depth", "in-breadth"}
    assert all((r["operation"] is None) == (r["source"] == "in-breadth") for r in rows)
    by_id = {r["id"]: r for r in rows}
    assert {r["depth"] for r in rows} == {1, 2, 3, 4}
    for row in rows:
        if row["depth"] == 1:
            assert row["parent"] == row["seed_id"]
        else:
            parent = by_id[row["parent"]]
            assert (
                parent["depth"] == row["depth"] - 1
                and parent["seed_id"] == row["seed_id"]
                and row["instruction"].startswith(parent["instruction"])
            )
    assert not any("Rewritten" in r["instruction"] for r in rows)


def test_evol_instruct_draws_all_operations_per_item_and_one_per_epoch_and_category(bench: Bench) -> None:
    seeds = bench.seeds(
        [
            {**s, "id": f"{i}-{s['id']}", "instruction": f"{s['instruction']} ({i})"}
            for i in range(10)
            for s in INSTRUCTIONS
        ]
    )
    per_item = Counter(
        r["operation"]
        for r in bench.run(Teacher(evol_teacher), generate="evol_instruct", seeds=seeds, rows=80, batch=32)
    )
    assert set(per_item) == {*evol_instruct.OPERATIONS, None} and min(per_item.values()) >= 5
    rows = bench.run(
        Teacher(evol_teacher),
        "other",
        generate="evol_instruct",
        seeds=seeds,
        rows=160,
        rounds=2,
        draw="epoch_category",
        batch=32,
    )
    drawn: dict[tuple[int, str], set[str | None]] = {}
    for row in rows:
        drawn.setdefault((row["round"], row["category"]), set()).add(row["operation"])
    assert len(drawn) == 4 and all(len(operations) == 1 for operations in drawn.values())
    rows = bench.run(
        Teacher(evol_teacher), "third", generate="evol_instruct", seeds=seeds, rows=80, complicate_input=True, batch=32
    )
    assert "complicate-input" in {r["operation"] for r in rows}


def test_evol_instruct_counts_failures_by_rule_and_tries_their_originals_again(bench: Bench) -> None:
    tries: Counter[str] = Counter()

    def teacher(system: str, user: str, seed: int) -> str | Completion:
        if "#Given Prompt#:" not in user:
            return (
                "sorry, no."
                if "rivers of Europe. ap" in user
                else "of the, and..."
                if "rivers of Europe. st" in user
                else ""
                if "em" in user[-3:]
                else "Rhine."
            )
        given = user.split("#Given Prompt#:")[1].split("#")[0].strip()
        tries[given] += 1
        if tries[given] > 1:
            return given + " Why so?"
        bad = {
            "0": given.upper(),
            "1": "the given prompt is fine",
            "2": "",
            "3": given + " ap",
            "4": given + " st",
            "5": given + " em",
        }
        if given[5] == "6":
            return Completion(given + " and", "length", 1, 1)
        return bad.get(given[5], given + " Why so?")

    rows = bench.run(Teacher(teacher), generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS), rows=8)
    assert {k.removeprefix("evolution failed: "): v for k, v in bench.counts.items() if k.startswith("evolution")} == {
        "same as the source": 1,
        "rule 4, leaks the prompt's words": 1,
        "no text": 1,
        "not finished": 1,
        "rule 2, a short apology": 1,
        "rule 3, the answer says nothing": 2,
    }
    assert len(rows) == 8 and Counter(r["round"] for r in rows) == {1: 1, 2: 7}
    assert all(r["depth"] == 1 and r["parent"] == r["seed_id"] for r in rows)


LONG = "Name 0 rivers of Europe. " + "x" * evol_instruct.LONGER


@pytest.mark.parametrize(
    ("rule", "evolved", "answer", "passing"),
    [
        (
            "refused by the server",
            Completion("Name two.", "error", 1, 0),
            "Rhine.",
            Completion("Name two.", "stop", 1, 1),
        ),
        ("no text", "?! ...", "Rhine.", "¿Qué?"),
        ("not finished", Completion("Name two", "length", 1, 1), "Rhine.", Completion("Name two", "stop", 1, 1)),
        ("more than 4000 characters added", LONG, "Rhine.", LONG[:4000]),
        ("same as the source", "name 0 RIVERS of Europe!", "Rhine.", "Name 0 rivers of Asia."),
        ("rule 4, leaks the prompt's words", "Rewritten prompt: name two.", "Rhine.", "Rewrite the prompt: name two."),
        (
            "answer refused by the server",
            "Name two.",
            Completion("", "error", 1, 0),
            Completion("Rhine.", "stop", 1, 0),
        ),
        ("rule 2, a short apology", "Name two.", "Sorry.", "Sorrow."),
        ("rule 3, the answer says nothing", "Name two.", "It is that.", "It is Rhine."),
    ],
)
def test_each_rule_takes_out_the_row_it_must_and_not_its_like(
    bench: Bench, rule: str, evolved: str | Completion, answer: str | Completion, passing: str | Completion
) -> None:
    """``passing`` stands for the evolution, or for the answer where the rule is about answers."""
    about_answers = "answer" in rule or "rule 2" in rule

    def teacher(bad: bool) -> Teacher:
        first = passing if not bad and not about_answers else evolved
        second = passing if not bad and about_answers else answer
        return Teacher(
            lambda system, user, seed: (
                first if "#Given Prompt#:" in user and "Name 0" in user else second if "Rhine" not in user else ""
            )
        )

    settings: dict[str, Any] = {
        "generate": "evol_instruct",
        "seeds": bench.seeds(INSTRUCTIONS[:1]),
        "rows": 1,
        "retry_rounds": 0,
    }
    with pytest.raises(ModelError, match=f"evolution failed: {re.escape(rule)}: 1"):
        bench.run(teacher(True), "bad", **settings)
    assert len(bench.run(teacher(False), "good", **settings)) == 1


def test_evol_instruct_tries_unused_seeds_before_failed_ones(bench: Bench) -> None:
    def teacher(system: str, user: str, seed: int) -> str:
        return "" if "Name 0" in user and "#Given" in user else evol_teacher(system, user, seed)

    rows = bench.run(Teacher(teacher), generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS), rows=3)
    assert [r["seed_id"] for r in rows] == ["s1", "s2", "s3"] and rows[-1]["round"] == 2


def test_evol_instruct_reports_a_shortfall_and_fails_only_without_a_row(bench: Bench) -> None:
    seeds = bench.seeds(INSTRUCTIONS[:2])
    rows = bench.run(Teacher(evol_teacher), generate="evol_instruct", seeds=seeds, rows=5)
    assert len(rows) == 2 and bench.counts["short of the rows wanted"] == 3
    with pytest.raises(ModelError, match=r"not one of 5 rows could be made .*no text: 8"):
        bench.run(Teacher(lambda system, user, seed: "?!"), "other", generate="evol_instruct", seeds=seeds, rows=5)


def test_the_equality_judge_is_asked_up_to_six_times_and_only_about_what_passed_the_cheap_rules(bench: Bench) -> None:
    asked: Counter[str] = Counter()

    def judge(system: str, user: str, seed: int) -> str:
        number = re.findall(r"Name (\d)", user)[0]
        asked[number] += 1
        match number:
            case "0":
                return "The two prompts are equal."
            case "1":
                return "hm"
            case "2":
                return "The two prompts are not equal." if asked[number] == 6 else "I would say so"
        return '"the two prompts are" not equal'

    teacher = Teacher(lambda system, user, seed: "" if "Name 3" in user else evol_teacher(system, user, seed))
    judged = Teacher(judge)
    rows = bench.run(
        teacher,
        judge=judged,
        generate="evol_instruct",
        seeds=bench.seeds(INSTRUCTIONS[:5]),
        rows=5,
        retry_rounds=0,
        temperature=0,
        equality_judge="judge",
    )
    assert judged.temperatures == [0.0] + [0.7] * 5  # greedy again would bring the same reply again
    assert asked == {"0": 1, "1": 6, "2": 6, "4": 1}
    assert [r["seed_id"] for r in rows] == ["s2", "s4"]
    assert bench.counts["evolution failed: rule 1, no information gained"] == 1
    assert bench.counts["evolution failed: rule 1, undecided after 6 asks"] == 1


def test_a_local_judge_is_made_to_begin_with_the_sentence(bench: Bench) -> None:
    class Formatter:
        adds_bos = True

        def prompt_text(self, turns: Sequence[Turn]) -> str:
            return f"<s>[user]{turns[-1].content}[assistant]"

    judge = Teacher(lambda system, user, seed: " not equal")
    judge.formatter, judge.tokenizer = Formatter(), type("T", (), {"bos_token": "<s>"})()  # type: ignore[attr-defined]
    bench.run(
        Teacher(evol_teacher),
        judge=judge,
        generate="evol_instruct",
        seeds=bench.seeds(INSTRUCTIONS),
        rows=2,
        equality_judge="judge",
    )
    text = last(judge.asked[0])
    assert text.startswith("[user]Here are two prompts") and text.endswith("[assistant]The two prompts are")


def test_a_raw_completion_server_begins_its_reply_too_by_its_wrapper(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ServerModel(server="http://x/v1", model="m", wrapper="<human>: {prompt}\n<bot>: ")
    monkeypatch.setattr(StepContext, "model_spec", lambda self, name: spec)
    teacher = Teacher(evol_teacher)
    bench.run(teacher, generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS), rows=1)
    text = last(teacher.asked[0])
    assert text.startswith("<human>: Your job is") and text.endswith(
        ("<bot>: #Rewritten Prompt#:", "<bot>: #Created Prompt#:")
    )


def test_long_seeds_are_cut_and_counted(bench: Bench) -> None:
    teacher = Teacher(evol_teacher)
    seeds = [{"instruction": "Sum this up.", "context": "word " * 2000}]
    rows = bench.run(teacher, generate="evol_instruct", seeds=bench.seeds(seeds), rows=1, seed_tokens=16)
    assert bench.counts["seeds cut to 16 tokens"] == 1 and len(rows[0]["instruction"]) < 100
