"""Cleaning texts, telling languages, near-duplicates and overlap with benchmarks, row by row; hostile rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbezoar.cleaning.contamination import Overlap
from openbezoar.cleaning.duplicates import NearDuplicates, likeness, shingles
from openbezoar.cleaning.language import foreign
from openbezoar.cleaning.text import CLEANERS, clean_row
from openbezoar.engine import graph
from openbezoar.engine.keys import difference
from openbezoar.errors import DataError
from openbezoar.recipe.data_steps import CleanerName
from openbezoar.recipe.file import load, parse
from openbezoar.recipe.schema import Recipe
from openbezoar.verbs.filter.benchmarks import benchmark_digests, benchmarks, read_benchmarks

ALL = list(CLEANERS)

# cleaner → (field, what was asked, text, cleaned text), and a text that it must leave alone
CHANGED: dict[str, tuple[str, str, str, str]] = {
    "line_ends": ("response", "", "one\r\ntwo\rthree\u2028four\x85", "one\ntwo\nthree\nfour\n"),
    "control_characters": (
        "response",
        "",
        "\x1b[31mRed\x1b[0m\x00 \ufeffand\u202e\x07 b\u200blue\ud800\x9b",
        "Red and blue",
    ),
    "unicode_form": ("response", "", "Cafe\u0301", "Café"),
    "thoughts": ("response", "Name a colour.", "<think>\nPerhaps red.\n</think>\n\nBlue.", "Blue."),
    "run_on": ("response", "Name a colour.", "Blue.\n### Instruction:\nName a fruit.\n### Response:\nPear.", "Blue.\n"),
    "markers": ("response", "Name a colour.", "### Response:\n<|im_start|>assistant\nBlue.</s> <|im_end|>\n", "Blue."),
    "quotes": ("instruction", "", '"Name a colour."', "Name a colour."),
    "whitespace": ("response", "", "\n\n one \n \n\t\n\n\n\ntwo\n\n", "one \n\n\ntwo"),
    "unclosed_fence": ("response", "", "Run it:\n```python\nprint(1)", "Run it:\n```python\nprint(1)\n```"),
}
SPARED: dict[str, tuple[str, str, str]] = {
    "line_ends": ("response", "", "one\n\ntwo\n"),
    "control_characters": ("response", "", "a\tb\nc é 日本 👩\u200d👩\u200d👧 x\u0301 ½ \u00a0"),
    "unicode_form": ("response", "", "Café ﬁ ²"),
    "thoughts": ("response", "What does <think> mean?", "<think> opens a thought and </think> closes it."),
    "run_on": (
        "response",
        "What does '### Instruction:' begin in a prompt?",
        "A turn.\n### Instruction:\nThen comes the text.",
    ),
    "markers": ("response", "What does </s> mean?", "</s> ends a text that <s> begins."),
    "quotes": ("instruction", "", '"Yes" or "no": which is longer?'),
    "whitespace": ("response", "", "def f():\n    return 1\n\n\nprint(f())"),
    "unclosed_fence": ("response", "", "```python\nprint('``` no end')\n```\nand ~~~ in a line\n\n~~~~\n```\n~~~~"),
}


def cleaned(name: str, field: str, asked: str, text: str) -> str:
    row: dict[str, Any] = {"instruction": asked, "response": "", field: text}
    made, _ = clean_row(row, [name])
    return str(made[field])


def test_every_cleaner_has_a_text_it_changes_and_one_it_leaves_alone() -> None:
    assert list(CHANGED) == list(SPARED) == list(CLEANERS) == list(get_args(CleanerName))


@pytest.mark.parametrize("name", CLEANERS)
def test_a_cleaner_changes_its_text_and_only_it(name: str) -> None:
    field, asked, text, wanted = CHANGED[name]
    assert cleaned(name, field, asked, text) == wanted
    field, asked, text = SPARED[name]
    assert cleaned(name, field, asked, text) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<bot>: Blue.<|endoftext|><|prompt|>Name a fruit.", "Blue."),
        ("Blue.\n<human>: and a fruit?\n<bot>: Pear.", "Blue."),
        ("Blue.<|im_end|>\n<|im_start|>user\nMore!", "Blue."),
        ("#Rewritten Prompt#:\nName a dark colour.", "Name a dark colour."),
        ("<example>Blue.</example>", "Blue."),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nBlue.<|eot_id|>", "Blue."),
        ("<|im_start|>", ""),
        (
            "The shell's [INST] is no marker in mid-line. ### Response: neither.",
            "The shell's [INST] is no marker in mid-line. ### Response: neither.",
        ),
    ],
)
def test_marks_of_prompt_formats_are_taken_out_of_an_answer(text: str, wanted: str) -> None:
    made, _ = clean_row({"instruction": "Name a colour.", "response": text}, ALL)
    assert made["response"] == wanted


def test_a_row_says_what_was_cleaned_and_the_given_row_is_left_alone() -> None:
    row = {"id": "a", "instruction": "“Name a colour.”", "context": " ", "output": "Blue\r\n", "rating": 3}
    made, changes = clean_row(row, ALL)
    assert made == {
        "id": "a",
        "instruction": "Name a colour.",
        "context": "",
        "output": "Blue",
        "rating": 3,
        "cleaned": ["line_ends", "quotes", "whitespace"],
    }
    assert row["output"] == "Blue\r\n"
    assert [(c.cleaner, c.field) for c in changes] == [
        ("line_ends", "output"),
        ("quotes", "instruction"),
        ("whitespace", "context"),
        ("whitespace", "output"),
    ]
    assert clean_row(row, []) == (row, [])
    assert "cleaned" not in clean_row({"instruction": "Name it.", "response": "Blue."}, ALL)[0]


MARKS = ["```", "### Response:", "<|end|>", "</s>", '"', "\r", "\x1b[1m", "\ud83d", "\u0301", " ", "\n", "a", "Ж"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(MARKS), max_size=30).map("".join),
    st.lists(st.sampled_from(MARKS), max_size=6).map("".join),
)
def test_cleaning_any_text_gives_text_that_can_be_written_and_needs_no_more_cleaning(text: str, asked: str) -> None:
    made, _ = clean_row({"instruction": asked, "response": text}, ALL)
    made["response"].encode("utf-8")
    assert not any(c in made["response"] for c in "\r\x1b")
    again, changes = clean_row(
        {"instruction": asked, "response": made["response"]}, [name for name in ALL if name != "quotes"]
    )
    assert again["response"] == made["response"], changes


HOSTILE = [
    "<|end|>",
    " ",
    "\n",
    "```\n",
    "\u0301",
    "\u0301\u0323",
    "[[",
    "### Response:\n",
    "<s>",
    "</s> ",
    "a ",
    "\x1b[",
    "\x1b]0;",
    '"',
    "~~~~",
    "\t",
    "-",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hundred_kilobytes_of_anything_are_cleaned_in_linear_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    for row in ({"instruction": "Go on.", "response": text}, {"instruction": text, "response": "x" + text + "x"}):
        clean_row(row, ALL)  # a quadratic cleaner would take minutes


# ----------------------------------------------------------------------------- languages


@pytest.mark.parametrize(
    "text",
    [
        "Der Fluss ist ein Gewässer, das von der Quelle zu der Mündung fließt.",
        "La rivière est un cours d'eau qui va de la source à la mer.",
        "El río es una corriente de agua que va de la fuente al mar.",
        "Il fiume è un corso d'acqua che va dalla sorgente al mare e non si ferma.",
        "O rio é um curso de água que vai da nascente para o mar.",
        "De rivier is een stroom van water die van de bron naar de zee gaat.",
        "河は水の流れです。",
        "Река течёт от истока к морю.",
        "Sông là dòng nước và là một phần của tự nhiên trong đời sống của người.",
    ],
)
def test_another_language_is_told(text: str) -> None:
    assert foreign(text)


@pytest.mark.parametrize(
    "text",
    [
        "The river flows from its source to the sea.",
        "def f(x):\n    return x ** 2  # en, de, la",
        "Los Angeles, San Francisco, La Paz, El Paso, Las Vegas",
        "déjà vu",
        "2 + 2 = 4",
        "",
        "α + β = γ",
        "Red, green, blue",
        "The word for river is 河 in Chinese.",
        "Que sera, sera is a song of the fifties that everybody in the room knew by heart.",
    ],
)
def test_english_code_names_and_numbers_are_not_taken_for_another_language(text: str) -> None:
    assert not foreign(text)


# ------------------------------------------------------------------------ near-duplicates


def test_likeness_by_hand() -> None:
    assert shingles("One two, three FOUR") == {"one two three", "two three four"}
    assert shingles("One two") == {"one two"} and shingles("") == {""}
    assert likeness(shingles("a b c d"), shingles("b c d e")) == pytest.approx(1 / 3)


@pytest.mark.slow
def test_near_duplicates_are_found_as_comparing_all_pairs_finds_them() -> None:
    draw = random.Random(3)
    words = [f"w{i}" for i in range(400)]
    texts: list[list[str]] = []
    for _ in range(150):
        texts.append([draw.choice(words) for _ in range(draw.randint(5, 60))])
        changed = list(draw.choice(texts))
        changed[draw.randrange(len(changed))] = "other"
        texts.append(changed)
    near: NearDuplicates[int] = NearDuplicates(0.7)
    found, exact = [], []
    for i, text in enumerate(map(" ".join, texts)):
        hit = near.find(text, "")
        found.append(hit is not None)
        exact.append(max((likeness(shingles(text), shingles(" ".join(t))) for t in texts[:i]), default=0) >= 0.7)
        near.add(i, text, "")
    assert sum(exact) > 60
    assert [f and not e for f, e in zip(found, exact, strict=True)] == [False] * len(texts), (
        "nothing is dropped on an estimate"
    )
    assert sum(found) >= 0.97 * sum(exact)


@pytest.mark.parametrize("threshold", [1e-300, 0.99, 0.995, 1.0])
def test_the_least_likeness_may_be_any_that_a_recipe_takes(threshold: float) -> None:
    near: NearDuplicates[str] = NearDuplicates(threshold)
    near.add("first", "Name the longest river of Europe.", "The Volga.")
    assert near.find("name the longest river of Europe!", "It is the Volga.") == ("first", 1.0)
    assert (near.find("Name the longest river of Asia.", "The Yangtze.") is None) == (threshold > 0.9)


def test_two_questions_about_one_long_passage_are_no_near_duplicates_unless_their_answers_are() -> None:
    passage = " ".join(f"word{i}" for i in range(80))
    near: NearDuplicates[str] = NearDuplicates(0.7)
    near.add("first", f"{passage} Who was it?", "It was the old sailor.")
    assert near.find(f"{passage} Where was it?", "In the harbour, at night.") is None
    assert near.find(f"{passage} Who was that?", "It was the old sailor!") == ("first", pytest.approx(80 / 82))


# -------------------------------------------------------------------------- contamination


def test_a_short_benchmark_text_counts_whole_and_a_shorter_one_not_at_all() -> None:
    overlap = Overlap(13)
    overlap.add("b", [{"question": "Which planet of ours is nearest to the sun?"}, {"question": "What is the sun?"}])
    hit = overlap.find("no", "They ask: which planet of OURS is nearest, to the sun? Mercury.")
    assert hit is not None and (hit.benchmark, hit.row, hit.words) == (
        "b",
        "row 1",
        "which planet of ours is nearest to the sun",
    )
    assert overlap.find("Which planet of ours is nearest to the moon?", "What is the sun?") is None


def test_all_texts_of_a_row_are_looked_for_but_not_those_of_fewshot_rows() -> None:
    overlap = Overlap(8)
    long = "one two three four five six seven eight"
    overlap.add("b", [{"split": "fewshot", "question": long + " nine"}, {"mc1": {"choices": ["x", long]}}])
    assert overlap.rows == {"b": 1} and overlap.find(long) is not None
    again = Overlap(13)
    again.add("b", [{"question": "one two three four five six seven"}])
    assert again.find("one two three four five six seven") is None
    assert overlap.find("two three four five six seven eight nine") is None
    overlap.add("w", [{"sentence": "the cup did not fit into the _ since it was big", "choices": ["bag", "box"]}])
    assert overlap.find("the cup did not fit into the box since it was big") is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def jsonl(name: str, rows: list[dict[str, Any]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    (tmp_path / "tasks").mkdir()
    jsonl(
        "tasks/arc_easy.jsonl",
        [{"id": "a1", "question": "one two three four five six seven eight nine", "choices": ["x", "y"], "gold": 0}],
    )
    jsonl("own.jsonl", [{"question": "own"}])
    jsonl(
        "held.jsonl",
        [
            {"instruction": f"row {i}", "response": f"alpha beta gamma delta epsilon zeta eta theta {i}"}
            for i in range(4)
        ],
    )
    jsonl(
        "questions.jsonl", [{"question_id": 81, "turns": ["first second third fourth fifth sixth seventh eighth", "x"]}]
    )
    jsonl("data.jsonl", [{"instruction": "a", "response": "b"}])
    return tmp_path


def recipe(**scores: Any) -> Recipe:
    steps = {
        "kept": {"filter": "data.jsonl", "rules": {"decontaminate": True}},
        "scores": {
            "evaluate": ["m"],
            "data": "tasks",
            "tasks": ["arc_easy", {"task": "boolq", "name": "mine", "file": "own.jsonl"}],
            **scores,
        },
        "talks": {"mt_bench": ["m"], "questions": "questions.jsonl", "judge": "m"},
    }
    return parse({"name": "t", "models": {"m": "x"}, "steps": steps}, "t.yaml")


def test_the_benchmarks_of_a_recipe_are_its_evaluate_and_mt_bench_steps_rows(folder: Path) -> None:
    made = recipe(losses={"held": {"data": "held.jsonl", "offset": 1, "limit": 1}, "own": "kept", "far": "hub:a/b"})
    assert [(b.name, b.spec is None) for b in benchmarks(made, folder)] == [
        ("scores: arc_easy", False),
        ("scores: mine", False),
        ("scores: held", False),
        ("scores: own", True),
        ("scores: far", True),
        ("talks: questions", False),
    ]
    overlap, elsewhere = read_benchmarks(made, folder, 13, 0)
    assert elsewhere == ["scores: own", "scores: far"]
    assert overlap.rows == {"scores: arc_easy": 1, "scores: mine": 1, "scores: held": 1, "talks: questions": 1}
    assert overlap.find("alpha beta gamma delta epsilon zeta eta theta 1") is not None
    assert overlap.find("alpha beta gamma delta epsilon zeta eta theta 2") is None, (
        "rows that are not evaluated on are no benchmark"
    )


def test_tasks_without_local_rows_are_named(folder: Path) -> None:
    assert [b.name for b in benchmarks(recipe(data=None, tasks=["gsm8k"]), folder) if b.spec is None] == [
        "scores: gsm8k"
    ]


def test_the_digest_of_benchmarks_changes_with_their_bytes_and_with_what_is_taken(folder: Path) -> None:
    before = benchmark_digests(recipe(losses={"held": "held.jsonl"}), folder)
    part = benchmark_digests(recipe(losses={"held": {"data": "held.jsonl", "limit": 2}}), folder)
    (folder / "own.jsonl").write_text('{"question": "changed"}\n')
    after = benchmark_digests(recipe(losses={"held": "held.jsonl"}), folder)
    assert [name for name in before if before[name] != part[name]] == ["scores: held"]
    assert [name for name in before if before[name] != after[name]] == ["scores: mine"]
    (folder / "own.jsonl").unlink()
    with pytest.raises(DataError, match=r"scores: mine: no file .*own.jsonl, which 'decontaminate' needs"):
        benchmark_digests(recipe(), folder)


def test_a_filter_that_decontaminates_depends_on_the_benchmarks_and_on_no_checkpoint(folder: Path) -> None:
    def node(decontaminate: bool) -> graph.Node:
        steps = {
            "kept": {"filter": "data.jsonl", "rules": {"decontaminate": decontaminate}},
            "scores": {"evaluate": ["m"], "tasks": [{"task": "arc_easy", "file": "tasks/arc_easy.jsonl"}]},
        }
        (folder / "r.yaml").write_text(json.dumps({"name": "r", "models": {"m": "x"}, "steps": steps}))
        return graph.build(load(folder / "r.yaml"), folder / "r.yaml", folder / "runs").nodes["kept"]

    before, alone = node(True), node(False)
    assert (
        before.inputs == ()
        and list(before.parts["benchmarks"]) == ["scores: arc_easy"]
        and "benchmarks" not in alone.parts
    )
    (folder / "tasks/arc_easy.jsonl").write_text('{"question": "other", "choices": ["x", "y"], "gold": 1}\n')
    assert node(True).key != before.key and node(False).key == alone.key
    assert difference(before.parts, node(True).parts) == "benchmark scores: arc_easy changed"
    without = {name: part for name, part in before.parts.items() if name != "benchmarks"}
    assert "benchmark scores: arc_easy changed" in difference(before.parts, without)
