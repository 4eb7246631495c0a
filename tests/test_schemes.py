"""What holds for every scheme, and the generate stage, with a teacher that follows a script. Each
scheme's own tests: tests/schemes.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener, context_of
from pydantic import ValidationError

from openbezoar import prompts
from openbezoar.errors import DataError, RecipeError
from openbezoar.llm import Call, Completion
from openbezoar.llm.scripted import Scripted, last, system
from openbezoar.recipe.data_steps import Generate
from openbezoar.rows.records import Row, read_jsonl, write_jsonl
from openbezoar.schemes import SCHEMES, elimination, evol_instruct, lamini, orca
from openbezoar.schemes.work import clean
from openbezoar.verbs.generate import work as generate

DEMO = Path(__file__).parent.parent / "recipes" / "demo"
Say = Callable[[str, str, int], str | Completion]  # (system, user, seed) -> reply


class Killed(BaseException):
    """Stands for kill -9: nothing in the program may catch it."""


class Teacher(Scripted):
    """Its replies are a function of the system message, the prompt and the seed; it may die after some batches."""

    def __init__(self, say: Say, die_after: int | None = None) -> None:
        super().__init__(lambda call: say(system(call), last(call), call.seed), name="fake")
        self.die_after = die_after
        self.temperatures: list[float] = []  # of each batch

    def answers(self, calls: Sequence[Call]) -> list[Completion]:
        if len(self.temperatures) == self.die_after:
            raise Killed
        self.temperatures.append(calls[0].sampling.temperature)
        return super().answers(calls)


class Bench:
    """Runs a generate step in a folder of its own, with scripted models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: dict[str, int] = {}
        self.numbers: dict[str, Any] = {}

    def run(
        self, teacher: Scripted, out: str = "out", judge: Scripted | None = None, cached: bool = False, **settings: Any
    ) -> list[Row]:
        step = {"teacher": "fake", "batch": 4, "rows": 6, **settings}
        opener = Opener({"fake": teacher, "judge": judge}, cached)
        context = context_of(self.folder, step, name="g", out=out, opener=opener, seed=11, top={"seed": 5})
        checked = context.recipe.steps["g"]
        assert isinstance(checked, Generate)
        self.numbers = generate.run(checked, context)
        self.counts = context.counts.by_reason
        return list(read_jsonl(context.out / "rows.jsonl"))

    def seeds(self, rows: Sequence[Row], name: str = "seeds.jsonl") -> str:
        write_jsonl(self.folder / name, rows)
        return name


INSTRUCTIONS = [
    {"id": f"s{n}", "instruction": f"Name {n} rivers of Europe.", "category": "open_qa" if n % 2 else "brainstorming"}
    for n in range(8)
]


def lamini_teacher(system: str, user: str, seed: int) -> str:
    if asked := re.search(r"Write (\d+) new", user):
        draw = random.Random(seed)
        return (
            "Sure!\n"
            + "\n".join(f"<example>Describe thing {draw.randrange(10**9)}.</example>" for _ in range(int(asked[1])))
            + "\n<example>An unfin"
        )
    return f"Answer to: {user}"


PRE_QUERY = "<user>\n"


def magpie_teacher(system: str, user: str, seed: int) -> str:
    return f"How do I mend thing {random.Random(seed).randrange(10**9)}?" if user == PRE_QUERY else f"Answer to: {user}"


def evol_teacher(system: str, user: str, seed: int) -> str:
    if "#Given Prompt#:" in user:
        given = user.split("#Given Prompt#:")[1].split("#")[0].strip()
        return f"#Rewritten Prompt#: {given} Give {seed % 97} reasons."
    return f"Rhine and Danube, because of {seed}."


def flan(submix: str, task: str, n: int, **more: Any) -> list[Row]:
    return [
        {
            "id": f"{task}-{i}",
            "submix": submix,
            "task": task,
            "input": f"Question {i} of {task}?",
            "target": f"gold {i}",
            **more,
        }
        for i in range(n)
    ]


FLAN = [
    *flan("cot", "sums", 9),
    *flan("cot", "puzzles", 2),
    *flan("niv2", "lists", 9),
    *flan("t0", "news", 9),
    *flan("flan2021", "nli", 9, multiple_choice=True),
    *flan("flan2021", "chat", 9),
]


HOSTILE = [
    "",
    " \n\t ",
    "\x00\x01\x02",
    "<example>",
    "</example>" * 50,
    "<example>" + "x" * 100_000 + "</example>",
    "<script>alert(1)</script>",
    "A" * 100_000,
    "<example>!!!</example>",
]


# ------------------------------------------------------------------------------- texts


def test_a_text_is_filled_once_so_that_braces_in_a_seed_stay() -> None:
    assert prompts.fill("{a} and {b}, {c}", a="{b}", b="2") == "{b} and 2, {c}"


def test_every_text_that_a_scheme_names_is_there_and_is_not_empty() -> None:
    for scheme in SCHEMES.values():
        for name in scheme.prompts:
            assert prompts.load(name).strip(), name


def test_an_own_text_replaces_the_built_in_one_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Mine {prompt}\n", encoding="utf-8")
    assert prompts.load("evol_in_depth", {"evol_in_depth": own}) == "Mine {prompt}"
    own.write_text("  \n", encoding="utf-8")
    with pytest.raises(RecipeError, match="is empty"):
        prompts.load("evol_in_depth", {"evol_in_depth": own})
    with pytest.raises(RecipeError, match="cannot be read"):
        prompts.load("evol_in_depth", {"evol_in_depth": tmp_path / "none.txt"})
    with pytest.raises(RecipeError, match="no such text"):
        prompts.load("evol_in_dept")


def test_schemes_are_imported_without_torch_or_the_server_client() -> None:
    code = (
        "import sys, openbezoar.schemes, openbezoar.verbs.generate.work, openbezoar.llm.server; sys.exit(bool({'torch',"
        " 'transformers', 'httpx2', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_options_are_frozen_and_know_no_other_key(scheme: str) -> None:
    options = SCHEMES[scheme].Options()
    with pytest.raises(ValidationError):
        SCHEMES[scheme].Options.model_validate({"misspelt": 1})
    with pytest.raises(ValidationError):
        setattr(options, next(iter(type(options).model_fields)), 1)


# ------------------------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    ("reply", "text", "changed"),
    [
        ("", "", False),
        ("  plain\r\ntext \n", "plain\ntext", False),
        ("<|endoftext|>hello<|im_end|>", "hello", True),
        ("<s> hello </s></s>", "hello", True),
        ("keep <s>struck</s> text", "keep <s>struck</s> text", False),
        ("a\x00b\x1b[0m\x07c\td", "ab[0mc\td", False),
        ("half a pair \ud800 here", "half a pair ? here", False),
        ("x <|> y and a |> b <| c", "x <|> y and a |> b <| c", False),
    ],
)
def test_a_reply_loses_special_markers_and_control_characters_only(reply: str, text: str, changed: bool) -> None:
    assert clean(reply) == (text, clean(reply)[1])
    assert bool(clean(reply)[1]) is changed


@pytest.mark.parametrize(
    "piece",
    [
        "<example>",
        "</example>",
        "<s> ",
        " \n",
        "1. x\n",
        "<|",
        "a",
        "</s>\n",
        "[INST",
        "- \t",
        "**",
        "Answer:\n",
        "&lt;example",
        "Example 1 ",
        "<example> \n",
    ],
)
def test_a_reply_of_100_kilobytes_is_parsed_in_linear_time(piece: str) -> None:
    reply = piece * (100_000 // len(piece))
    begun = time.process_time()
    text, _ = clean(reply)
    for found in lamini.parse_instructions(text, True)[0]:
        lamini.unusable(lamini.without_answer(found))
    evol_instruct.without_labels(text)
    elimination.says_nothing(text)
    orca.is_multiple_choice({"input": text})
    assert time.process_time() - begun < 3


# ------------------------------------------------------------------- resume, determinism


SETTINGS: dict[str, dict[str, Any]] = {
    "lamini": {"rows": 13, "instructions_per_prompt": 2},
    "evol_instruct": {"rows": 14, "rounds": 2, "equality_judge": "judge"},
    "orca": {"rows": 14},
    "magpie": {"rows": 13, "pre_query": PRE_QUERY},
}


def good_teacher(system: str, user: str, seed: int) -> str:
    """Serves every scheme."""
    say = evol_teacher if "#Given" in user else magpie_teacher if user == PRE_QUERY else lamini_teacher
    return say(system, user, seed)


def any_teacher(system: str, user: str, seed: int) -> str | Completion:
    """Good replies mixed with failures of every kind, a function of the seed alone."""
    if seed % 7 == 0:
        return HOSTILE[seed // 7 % len(HOSTILE)]
    if seed % 11 == 0:
        return Completion("", "error", 3, 0)
    return good_teacher(system, user, seed)


def some_judge(system: str, user: str, seed: int) -> str:
    return ("not equal", "equal", "perhaps", "not equal")[seed % 4]


def _run(
    bench: Bench, scheme: str, out: str, die_after: int | None = None, say: Say = any_teacher
) -> tuple[list[Row], dict[str, int], dict[str, Any], int]:
    seeds = bench.seeds(FLAN if scheme == "orca" else INSTRUCTIONS)
    teacher, judge = Teacher(say, die_after), Teacher(some_judge)
    rows = bench.run(teacher, out, judge, cached=True, generate=scheme, seeds=seeds, **SETTINGS[scheme])
    numbers = {k: v for k, v in bench.numbers.items() if k != "tokens_per_second"}
    return rows, bench.counts, numbers, len(teacher.temperatures)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_killed_run_goes_on_and_ends_with_the_same_rows_counts_and_numbers(bench: Bench, scheme: str) -> None:
    rows, counts, numbers, calls = _run(bench, scheme, "whole")
    for die_after in range(calls):
        with pytest.raises(Killed):
            _run(bench, scheme, f"killed-{die_after}", die_after)
        rest = _run(bench, scheme, f"killed-{die_after}")
        assert rest == (rows, counts, numbers, calls - die_after)
        assert (bench.folder / f"killed-{die_after}/rows.jsonl").read_bytes() == (
            bench.folder / "whole/rows.jsonl"
        ).read_bytes()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_depend_on_the_seed_alone_not_on_the_batch_size(
    bench: Bench, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _run(bench, scheme, "one")[:3]
    assert _run(bench, scheme, "two")[:3] == first
    monkeypatch.setitem(SETTINGS, scheme, {**SETTINGS[scheme], "batch": 3})
    assert _run(bench, scheme, "three")[:3] == first


# -------------------------------------------------------------------------------- stage


@pytest.mark.parametrize(
    ("scheme", "row", "message"),
    [
        ("lamini", {"id": "x7", "instruktion": "Hi"}, "row x7: no field 'instruction'; it has id, instruktion"),
        ("evol_instruct", {"instruction": "  "}, "row 2: the field 'instruction' is empty"),
        ("orca", {"submix": "t0", "task": "x", "input": 5}, "row 2: 'input' is 5; expected a text"),
    ],
)
def test_a_seed_without_its_field_is_named(bench: Bench, scheme: str, row: Row, message: str) -> None:
    good = FLAN[0] if scheme == "orca" else INSTRUCTIONS[0]
    with pytest.raises(DataError, match=re.escape(message)):
        bench.run(Teacher(any_teacher), generate=scheme, seeds=bench.seeds([good, row]))


def test_a_recipe_may_bring_its_own_text_and_a_wrong_name_is_refused(bench: Bench) -> None:
    (bench.folder / "mine.txt").write_text(
        "Reply with <example>x</example>. Write {wanted} new ones.", encoding="utf-8"
    )
    teacher = Teacher(lamini_teacher)
    bench.run(
        teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=2, prompts={"lamini_examples": "mine.txt"}
    )
    assert last(teacher.asked[0]) == "Reply with <example>x</example>. Write 20 new ones."
    with pytest.raises(RecipeError, match="sends no such text; it sends lamini_examples"):
        bench.run(
            teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=2, prompts={"lamini_exampels": "mine.txt"}
        )


def test_tokens_count_every_reply_also_those_that_led_to_no_row(bench: Bench) -> None:
    def teacher(system: str, user: str, seed: int) -> Completion:
        text = "" if "Name 0" in user else f"Name two seas, {seed}." if "#Given" in user else "Baltic, North."
        return Completion(text, "length" if "seas" in user else "stop", 10, 3)

    rows = bench.run(
        Teacher(teacher), generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS[:3]), rows=3, retry_rounds=0
    )
    assert len(rows) == 2 and bench.numbers["prompt_tokens"] == 50 and bench.numbers["tokens"] == 15
    assert bench.numbers["finished"] == 0.0 and bench.numbers["response_words"] == 2.0 and bench.numbers["wanted"] == 3


@pytest.mark.parametrize(
    ("scheme", "file"), [("lamini", "instructions"), ("evol_instruct", "instructions"), ("orca", "flan")]
)
def test_the_demo_seeds_serve_every_scheme(bench: Bench, scheme: str, file: str) -> None:
    more: dict[str, Any] = {"topics": str(DEMO / "topics.jsonl")} if scheme == "lamini" else {}
    rows = bench.run(
        Teacher(lambda s, u, n: lamini_teacher(s, u, n) if "<example>" in u else evol_teacher(s, u, n)),
        generate=scheme,
        seeds=str(DEMO / f"{file}.jsonl"),
        rows=40,
        batch=32,
        **more,
    )
    assert len(rows) == 40 and json.dumps(rows)
    if scheme == "orca":
        assert {r["submix"] for r in rows} == {"cot", "niv2", "t0", "flan2021"}
