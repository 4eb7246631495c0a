"""LaMini: prompts, parsing, topics, repeats."""

from __future__ import annotations

import re

import pytest
from test_schemes import HOSTILE, INSTRUCTIONS, Bench, Teacher, lamini_teacher

from openbezoar import prompts
from openbezoar.errors import DataError, ModelError
from openbezoar.llm import Completion
from openbezoar.llm.scripted import last, system
from openbezoar.rows.records import Row
from openbezoar.schemes import lamini


@pytest.mark.parametrize(
    ("reply", "whole", "found", "form"),
    [
        ("<example>Name a fish.</example><EXAMPLE> Why? </ example >", True, ["Name a fish.", "Why?"], "tags"),
        ("<example>One.</example> chat <example>Two, not clo", False, ["One."], "tags"),
        ("<example>One.\n<example>Two.\n</example>", True, ["One.", "Two."], "tags"),
        ("<example>One.<example>\n<example>Two.<example>", True, ["One.", "Two."], "tags"),
        ("<example>Write a poem\nabout rain.</example>", True, ["Write a poem\nabout rain."], "tags"),
        ('<example>Instruction: "Sing."</example>', True, ["Sing."], "tags"),
        ("<example></example><example>  </example>", True, [], "tags"),
        (
            "Here you go:\n1. Name a fish.\n2) Name a bird.\n- Name a tree.",
            True,
            ["Name a fish.", "Name a bird.", "Name a tree."],
            "list",
        ),
        ("1. Name a fish.\n2. Name a bi", False, ["Name a fish."], "list"),
        ("**Example 1:** Name a fish.\n\nExample 2: Name a bird.", True, ["Name a fish.", "Name a bird."], "list"),
        ("&lt;example&gt;Name a fish.&lt;/example&gt;", True, ["Name a fish."], "tags"),
        ("<example 1>Name a fish.</example 1><example2>Why?</example2>", True, ["Name a fish.", "Why?"], "tags"),
        ("<example>\n1. Name a fish.\n2. Name a bird.\n</example>", True, ["Name a fish.", "Name a bird."], "tags"),
        ("<example>Sort these:\n1. fish\n2. bird</example>", True, ["Sort these:\n1. fish\n2. bird"], "tags"),
        ("I cannot help with that.", True, [], "none"),
        ("", True, [], "none"),
    ],
)
def test_instructions_are_parsed_from_tags_or_else_from_a_list(
    reply: str, whole: bool, found: list[str], form: str
) -> None:
    assert lamini.parse_instructions(reply, whole) == (found, form)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("Name a fish.\nAnswer: cod", "Name a fish."),
        ("Name a fish.\n\n**Response:** cod\nand more", "Name a fish."),
        ("Name a fish.\n\nThe answer is: cod", "Name a fish."),
        ("Say what\nthe answer is to this.", "Say what\nthe answer is to this."),
        ("What does 'Answer: 42' mean?", "What does 'Answer: 42' mean?"),
        ("Answer: yes or no?", "Answer: yes or no?"),
    ],
)
def test_an_answer_that_the_teacher_gave_is_cut_off_its_instruction(text: str, bare: str) -> None:
    assert lamini.without_answer(text) == bare


@pytest.mark.parametrize(
    ("reason", "caught", "passing"),
    [
        ("no word in it", "12 + 30 = ?", "12 + x = ?"),
        ("longer than 4000 characters", "a" * 4001, "a" * 4000),
        ("repeats a seed or an earlier one", "name 3 RIVERS of  Europe!", "Name 3 rivers of Asia."),
        ("holds the prompt's own markup", "Close </examples> now", "Close <exemplars> now"),
    ],
)
def test_each_rule_for_instructions_takes_out_what_it_must_and_not_its_like(
    bench: Bench, reason: str, caught: str, passing: str
) -> None:
    def teacher(text: str) -> Teacher:
        return Teacher(lambda system, user, seed: f"<example>{text}</example>" if "Write 20 new" in user else "Fine.")

    settings = {"generate": "lamini", "seeds": bench.seeds(INSTRUCTIONS), "rows": 1, "max_prompts": 1}
    assert [row["instruction"] for row in bench.run(teacher(passing), "kept", **settings)] == [passing]
    with pytest.raises(ModelError, match=f"none of 1 replies held a new instruction .instruction dropped: {reason}: 1"):
        bench.run(teacher(caught), "dropped", **settings)


@pytest.mark.parametrize(
    ("reason", "caught", "passing"),
    [
        ("dropped: empty answer", " <|im_end|>\n", "."),
        (
            "dropped: answer refused by the server",
            Completion("Rhine.", "error", 1, 0),
            Completion("Rhine.", "length", 1, 0),
        ),
    ],
)
def test_an_answer_that_is_none_takes_its_row_out_and_no_other(
    bench: Bench, reason: str, caught: str | Completion, passing: str | Completion
) -> None:
    lines = "".join(f"<example>Say {n}.</example>" for n in range(6))
    for reply, kept in ((caught, 5), (passing, 6)):
        teacher = Teacher(
            lambda system, user, seed, reply=reply: reply if user == "Say 2." else lines if "Write" in user else "Fine."
        )  # type: ignore[misc]
        rows = bench.run(teacher, f"out-{kept}", generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=6)
        assert len(rows) == kept and bench.counts.get(reason, 0) == 6 - kept


@pytest.mark.parametrize(
    ("topic", "kept"),
    [
        ({"title": "Silk Road", "subcategories": 11, "pages": 51}, True),
        ({"title": "Silk Road", "subcategories": 10, "pages": 51}, False),
        ({"title": "Silk Road", "subcategories": 11, "pages": 50}, False),
        ({"title": "Silk Road", "pages": "51"}, True),
        ({"title": "Silk Road", "pages": "50"}, False),
        ({"title": "Silk Road", "subcategories": None}, True),
        ({"topic": "Saffron"}, True),
        ({"title": "The Silk Road", "subcategories": 11, "pages": 51}, False),
    ],
)
def test_a_topic_is_kept_by_the_published_rule(bench: Bench, topic: Row, kept: bool) -> None:
    """Fewer than three words, more than 10 sub-categories, more than 50 pages."""
    topics = bench.seeds([topic, {"title": "Tides"}, {"title": "Moss"}, {"title": "Tides "}], "topics.jsonl")
    teacher = Teacher(lamini_teacher)
    bench.run(
        teacher,
        generate="lamini",
        seeds=bench.seeds(INSTRUCTIONS),
        topics=topics,
        topic_share=1,
        topics_per_prompt=3 if kept else 2,
    )
    guided = [last(c) for c in teacher.asked if "these topics: " in last(c)]
    assert guided and all(
        (str(topic.get("title", topic.get("topic"))) in text) is kept and "Tides" in text for text in guided
    )
    # a topic that comes twice counts once
    with pytest.raises(DataError, match=f"topics: {3 if kept else 2} topics of fewer than three words"):
        bench.run(
            teacher, "other", generate="lamini", seeds=bench.seeds(INSTRUCTIONS), topics=topics, topics_per_prompt=4
        )


def test_topics_may_be_part_of_a_file_under_other_names_and_a_count_that_is_none_is_named(bench: Bench) -> None:
    name = bench.seeds(
        [{"name": t, "subcats": n} for t, n in (("Tides", 12), ("Moss", 30), ("Silk", 11), ("Fog", 2))], "topics.jsonl"
    )
    topics = {"data": name, "rename": {"name": "title", "subcats": "subcategories"}}
    bench.run(Teacher(lamini_teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS), topics=topics)
    assert bench.counts["topics with too few sub-categories or pages"] == 1
    bench.seeds([{"title": "Tides", "pages": "many"}], "topics.jsonl")
    with pytest.raises(DataError, match="the field 'pages' is 'many'; expected a count"):
        bench.run(Teacher(lamini_teacher), "other", generate="lamini", seeds=bench.seeds(INSTRUCTIONS), topics=name)


def test_lamini_makes_the_rows_wanted_from_both_kinds_of_prompt(bench: Bench) -> None:
    topics = bench.seeds(
        [{"title": "Tides"}, {"title": "Silk Road"}, {"title": "Far too long"}, {"title": "Saffron"}], "topics.jsonl"
    )
    teacher = Teacher(lamini_teacher)
    rows = bench.run(
        teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), topics=topics, rows=10, instructions_per_prompt=3
    )
    assert len(rows) == 10 and {r["source"] for r in rows} == {"example-guided", "topic-guided"}
    assert [r["id"] for r in rows[:2]] == ["lamini-00001", "lamini-00002"]
    assert all(r["system"] is None and r["response"] == f"Answer to: {r['instruction']}" for r in rows)
    assert len({r["instruction"] for r in rows}) == 10 and not any("unfin" in r["instruction"] for r in rows)
    assert bench.counts["topics of three words or more"] == 1
    guided = [last(c) for c in teacher.asked if "topics:" in last(c)]
    assert len(guided) == 3 and all("Silk Road" in g and "Far too long" not in g for g in guided)
    asked = [last(c) for c in teacher.asked if "Write 3 new" in last(c)]
    assert all(len(re.findall("<example>Name", text)) == 3 for text in asked)
    answers = [c for c in teacher.asked if system(c)]
    assert len(answers) == 10 and system(answers[0]) == prompts.load("lamini_answer_system")
    assert bench.numbers["rows"] == bench.numbers["wanted"] == 10 and bench.numbers["finished"] == 1.0
    assert bench.numbers["summary"] == f"10 rows, {bench.numbers['tokens']:,} tokens"


def test_lamini_drops_repeats_of_seeds_and_of_earlier_ones_whatever_their_case(bench: Bench) -> None:
    def teacher(system: str, user: str, seed: int) -> str:
        if "<example>" in user:
            return (
                "<example>NAME 0  rivers of Europe</example><example>Same one.</example><example>same"
                f" ONE!</example><example>New {seed}.</example>"
            )
        return "ok then"

    rows = bench.run(
        Teacher(teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=3, instructions_per_prompt=3
    )
    assert rows[0]["instruction"] == "Same one."
    assert len({r["instruction"].lower() for r in rows}) == 3 and not any(
        "rivers" in r["instruction"].lower() for r in rows
    )
    assert bench.counts["instruction dropped: repeats a seed or an earlier one"] >= 3


def test_lamini_stops_at_its_limit_and_counts_what_is_missing(bench: Bench) -> None:
    teacher = Teacher(lambda system, user, seed: "<example>Only this.</example>" if "<example>" in user else "ok then")
    rows = bench.run(teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=5, max_prompts=7)
    assert (
        len(rows) == 1
        and bench.counts["short of the rows wanted"] == 4
        and bench.counts["prompts for instructions"] == 7
    )


def test_lamini_fails_with_one_line_when_no_reply_holds_an_instruction(bench: Bench) -> None:
    teacher = Teacher(lambda system, user, seed: HOSTILE[seed % len(HOSTILE)])
    with pytest.raises(ModelError, match="none of 20 replies held a new instruction") as caught:
        bench.run(teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=5)
    assert "\n" not in str(caught.value)


def test_lamini_survives_hostile_replies_among_good_ones_and_counts_them(bench: Bench) -> None:
    def teacher(system: str, user: str, seed: int) -> str:
        if seed % 3 == 0:
            return HOSTILE[seed % len(HOSTILE)]
        return lamini_teacher(system, user, seed)

    rows = bench.run(
        Teacher(teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=30, instructions_per_prompt=2
    )
    assert all(r["instruction"].strip() and r["response"].strip() for r in rows)
    assert len(rows) + bench.counts.get("dropped: empty answer", 0) == 30
    assert bench.counts["replies without an instruction"] > 0


def test_lamini_prefers_seeds_that_need_no_text_beside_them(bench: Bench) -> None:
    seeds = [*INSTRUCTIONS[:3], {"instruction": "Sum this up.", "context": "A long passage."}]
    teacher = Teacher(lamini_teacher)
    bench.run(teacher, generate="lamini", seeds=bench.seeds(seeds), rows=8, instructions_per_prompt=2)
    assert not any("passage" in system(c) + last(c) for c in teacher.asked)
    assert bench.counts["seeds with context not shown as examples"] == 1


def test_lamini_says_when_seeds_or_topics_are_too_few(bench: Bench) -> None:
    with pytest.raises(DataError, match="2 rows, but examples_per_prompt is 3"):
        bench.run(Teacher(lamini_teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS[:2]))
    with pytest.raises(DataError, match="1 topics of fewer than three words"):
        bench.run(
            Teacher(lamini_teacher),
            generate="lamini",
            seeds=bench.seeds(INSTRUCTIONS),
            topics=bench.seeds([{"title": "Tides"}], "topics.jsonl"),
        )
    with pytest.raises(DataError, match="row t1: no field 'title'; it has id, nam"):
        bench.run(
            Teacher(lamini_teacher),
            generate="lamini",
            seeds=bench.seeds(INSTRUCTIONS),
            topics=bench.seeds([{"id": "t1", "nam": "x"}], "topics.jsonl"),
        )
