"""The three schemes and the generate stage, with a teacher that follows a script."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import remembered
from pydantic import ValidationError

from openbezoar import prompts
from openbezoar.context import StepContext
from openbezoar.errors import DataError, ModelError, RecipeError
from openbezoar.llm import Completion, Sampling
from openbezoar.progress import PlainProgress
from openbezoar.recipe import Generate
from openbezoar.recipe_file import parse
from openbezoar.records import Row, Turn, read_jsonl, to_example, write_jsonl
from openbezoar.runs import RunFolder
from openbezoar.schemes import SCHEMES, elimination, evol_instruct, lamini, orca
from openbezoar.schemes.work import clean, shares
from openbezoar.stages import generate

DEMO = Path(__file__).parent.parent / "recipes" / "demo"
Say = Callable[[str, str, int], str | Completion]  # (system, user, seed) -> reply


class Killed(BaseException):
    """Stands for kill -9: nothing in the program may catch it."""


class Scripted:
    """An LLM whose replies are a function of the prompt and the seed."""

    def __init__(self, say: Say, die_after: int | None = None) -> None:
        self.name, self.say, self.die_after = "fake", say, die_after
        self.asked: list[tuple[Turn, ...]] = []
        self.calls = 0
        self.temperatures: list[float] = []

    def chat(self, conversations: Sequence[Sequence[Turn]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        if self.die_after is not None and self.calls >= self.die_after:
            raise Killed
        self.calls += 1
        self.temperatures.append(sampling.temperature)
        self.asked += [tuple(c) for c in conversations]
        return [self._one(c, seed) for c, seed in zip(conversations, seeds, strict=True)]

    def _one(self, turns: Sequence[Turn], seed: int) -> Completion:
        system = next((t.content for t in turns if t.role == "system"), "")
        reply = self.say(system, turns[-1].content, seed)
        return reply if isinstance(reply, Completion) else Completion(reply, "stop", len(turns[-1].content.split()), len(reply.split()))

    def complete(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return self.chat([(Turn("user", p),) for p in prompts], sampling, seeds)

    def choice_logprobs(self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]) -> list[list[float]]:
        raise ModelError("no")

    def close(self) -> None:
        pass


class Bench:
    """Runs a generate step in a folder of its own, with scripted models."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.counts: dict[str, int] = {}
        self.numbers: dict[str, Any] = {}

    def run(self, teacher: Scripted, out: str = "out", judge: Scripted | None = None, cached: bool = False, **settings: Any) -> list[Row]:
        step = {"teacher": "fake", "batch": 4, "rows": 6, **settings}
        recipe = parse({"name": "t", "seed": 5, "models": {"fake": "nowhere", "judge": "nowhere"}, "steps": {"g": step}}, "test")
        work = self.folder / out
        work.mkdir(exist_ok=True)
        context = StepContext("g", recipe, self.folder, RunFolder(self.folder), work, 11, PlainProgress(quiet=True), ("g",))
        self.monkeypatch.setattr(generate, "open_llm", lambda name, _: judge if name == "judge" else teacher)
        if cached:
            self.monkeypatch.setattr(generate, "open_llm", lambda name, context: remembered(lambda: judge if name == "judge" else teacher, name, context))
        checked = recipe.steps["g"]
        assert isinstance(checked, Generate)
        self.numbers = generate.run(checked, context)
        self.counts = context.counts.by_reason
        return list(read_jsonl(work / "rows.jsonl"))

    def seeds(self, rows: Sequence[Row], name: str = "seeds.jsonl") -> str:
        write_jsonl(self.folder / name, rows)
        return name


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


INSTRUCTIONS = [{"id": f"s{n}", "instruction": f"Name {n} rivers of Europe.", "category": "open_qa" if n % 2 else "brainstorming"} for n in range(8)]


def lamini_teacher(system: str, user: str, seed: int) -> str:
    if "<example>" in user:
        wanted = int(re.findall(r"Write (\d+) new", user)[0])
        draw = random.Random(seed)
        return "Sure!\n" + "\n".join(f"<example>Describe thing {draw.randrange(10**9)}.</example>" for _ in range(wanted)) + "\n<example>An unfin"
    return f"Answer to: {user}"


def evol_teacher(system: str, user: str, seed: int) -> str:
    if "#Given Prompt#:" in user:
        given = user.split("#Given Prompt#:")[1].split("#")[0].strip()
        return f"#Rewritten Prompt#: {given} Give {seed % 97} reasons."
    return f"Rhine and Danube, because of {seed}."


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
    code = "import sys, openbezoar.schemes, openbezoar.stages.generate, openbezoar.llm.server; sys.exit(bool({'torch', 'transformers', 'openai', 'datasets'} & set(sys.modules)))"
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


@pytest.mark.parametrize("piece", ["<example>", "</example>", "<s> ", " \n", "1. x\n", "<|", "a", "</s>\n", "[INST", "- \t"])
def test_a_reply_of_100_kilobytes_is_parsed_in_linear_time(piece: str) -> None:
    reply = piece * (100_000 // len(piece))
    begun = time.process_time()
    text, _ = clean(reply)
    for found in lamini.parse_instructions(text, True)[0]:
        lamini.unusable(found)
    evol_instruct.without_labels(text)
    elimination.says_nothing(text)
    orca.is_multiple_choice({"input": text})
    assert time.process_time() - begun < 3


# ------------------------------------------------------------------------------- lamini


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
        ("Here you go:\n1. Name a fish.\n2) Name a bird.\n- Name a tree.", True, ["Name a fish.", "Name a bird.", "Name a tree."], "list"),
        ("1. Name a fish.\n2. Name a bi", False, ["Name a fish."], "list"),
        ("I cannot help with that.", True, [], "none"),
        ("", True, [], "none"),
    ],
)
def test_instructions_are_parsed_from_tags_or_else_from_a_list(reply: str, whole: bool, found: list[str], form: str) -> None:
    assert lamini.parse_instructions(reply, whole) == (found, form)


def test_lamini_makes_the_rows_wanted_from_both_kinds_of_prompt(bench: Bench) -> None:
    topics = bench.seeds([{"title": "Tides"}, {"title": "Silk Road"}, {"title": "Far too long"}, {"title": "Saffron"}], "topics.jsonl")
    teacher = Scripted(lamini_teacher)
    rows = bench.run(teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), topics=topics, rows=10, instructions_per_prompt=3)
    assert len(rows) == 10 and {r["source"] for r in rows} == {"example-guided", "topic-guided"}
    assert [r["id"] for r in rows[:2]] == ["lamini-00001", "lamini-00002"]
    assert all(r["system"] is None and r["response"] == f"Answer to: {r['instruction']}" for r in rows)
    assert len({r["instruction"] for r in rows}) == 10 and not any("unfin" in r["instruction"] for r in rows)
    assert bench.counts["topics of three words or more"] == 1
    guided = [c[-1].content for c in teacher.asked if "topics:" in c[-1].content]
    assert len(guided) == 2 and all("Silk Road" in g and "Far too long" not in g for g in guided)
    asked = [c[-1].content for c in teacher.asked if "Write 3 new" in c[-1].content]
    assert all(len(re.findall("<example>Name", text)) == 3 for text in asked)
    answers = [c for c in teacher.asked if c[0].role == "system"]
    assert len(answers) == 10 and answers[0][0].content == prompts.load("lamini_answer_system")
    assert bench.numbers["rows"] == bench.numbers["wanted"] == 10 and bench.numbers["finished"] == 1.0
    assert bench.numbers["summary"] == f"10 rows, {bench.numbers['tokens']:,} tokens"


def test_lamini_drops_repeats_of_seeds_and_of_earlier_ones_whatever_their_case(bench: Bench) -> None:
    def teacher(system: str, user: str, seed: int) -> str:
        if "<example>" in user:
            return f"<example>NAME 0  rivers of Europe.</example><example>Same one.</example><example>same ONE.</example><example>New {seed}.</example>"
        return "ok then"

    rows = bench.run(Scripted(teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=3, instructions_per_prompt=3)
    assert rows[0]["instruction"] == "Same one."
    assert len({r["instruction"].lower() for r in rows}) == 3 and not any("rivers" in r["instruction"].lower() for r in rows)
    assert bench.counts["instruction dropped: repeats a seed or an earlier one"] >= 3


def test_lamini_stops_at_its_limit_and_counts_what_is_missing(bench: Bench) -> None:
    teacher = Scripted(lambda system, user, seed: "<example>Only this.</example>" if "<example>" in user else "ok then")
    rows = bench.run(teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=5, max_prompts=7)
    assert len(rows) == 1 and bench.counts["short of the rows wanted"] == 4 and bench.counts["prompts for instructions"] == 7


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


def test_lamini_fails_with_one_line_when_no_reply_holds_an_instruction(bench: Bench) -> None:
    teacher = Scripted(lambda system, user, seed: HOSTILE[seed % len(HOSTILE)])
    with pytest.raises(ModelError, match="none of 20 replies held a new instruction") as caught:
        bench.run(teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=5)
    assert "\n" not in str(caught.value)


def test_lamini_survives_hostile_replies_among_good_ones_and_counts_them(bench: Bench) -> None:
    def teacher(system: str, user: str, seed: int) -> str:
        if seed % 3 == 0:
            return HOSTILE[seed % len(HOSTILE)]
        return lamini_teacher(system, user, seed)

    rows = bench.run(Scripted(teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=30, instructions_per_prompt=2)
    assert all(r["instruction"].strip() and r["response"].strip() for r in rows)
    assert len(rows) + bench.counts.get("dropped: empty answer", 0) == 30
    assert bench.counts["replies without an instruction"] > 0


def test_lamini_prefers_seeds_that_need_no_text_beside_them(bench: Bench) -> None:
    seeds = [*INSTRUCTIONS[:3], {"instruction": "Sum this up.", "context": "A long passage."}]
    teacher = Scripted(lamini_teacher)
    bench.run(teacher, generate="lamini", seeds=bench.seeds(seeds), rows=8, instructions_per_prompt=2)
    assert not any("passage" in t.content for c in teacher.asked for t in c)
    assert bench.counts["seeds with context not shown as examples"] == 1


def test_lamini_says_when_seeds_or_topics_are_too_few(bench: Bench) -> None:
    with pytest.raises(DataError, match="2 rows, but examples_per_prompt is 3"):
        bench.run(Scripted(lamini_teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS[:2]))
    with pytest.raises(DataError, match="1 topics of fewer than three words"):
        bench.run(Scripted(lamini_teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS), topics=bench.seeds([{"title": "Tides"}], "topics.jsonl"))
    with pytest.raises(DataError, match="row t1: no field 'title'"):
        bench.run(Scripted(lamini_teacher), generate="lamini", seeds=bench.seeds(INSTRUCTIONS), topics=bench.seeds([{"id": "t1", "nam": "x"}], "topics.jsonl"))


# --------------------------------------------------------------------------- elimination


@pytest.mark.parametrize(
    ("rule", "caught", "passed"),
    [
        (elimination.apologises, "I'm Sorry, I can't do that.", "I cannot say, but the Rhine is long."),
        (elimination.apologises, "sorry " + "word " * 78, "sorry " + "word " * 79),
        (elimination.says_nothing, "", "42"),
        (elimination.says_nothing, "...", "Paris."),
        (elimination.says_nothing, "It is not, and THEY don’t!", "It is not raining."),
        (elimination.leaks_prompt, "Make the Given Prompt longer.", "Make the given speech prompt more laughter."),
        (elimination.leaks_prompt, "#Created Prompt#: name a fish", "Name a prompt reply."),
        (elimination.leaks_prompt, "Here is the rewritten prompt", "Here is the rewritten letter"),
        (lambda t: elimination.same_as_source("Name a  Fish.", t), "name a fish.\n", "Name two fish."),
        (lambda t: elimination.gains_information(t) is False, " equal.", " not equal."),
        (lambda t: elimination.gains_information(t) is True, "NOT EQUAL because", "unequal"),
        (lambda t: elimination.gains_information(t) is None, "hard to compare, unequalled", "equal"),
    ],
)
def test_an_elimination_rule_catches_what_it_must_and_lets_the_rest_pass(rule: Callable[[str], bool], caught: str, passed: str) -> None:
    assert rule(caught) is True
    assert rule(passed) is False


# ------------------------------------------------------------------------- evol-instruct


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
    rows = bench.run(Scripted(evol_teacher), generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS), rows=16, rounds=4)
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
            assert parent["depth"] == row["depth"] - 1 and parent["seed_id"] == row["seed_id"] and row["instruction"].startswith(parent["instruction"])
    assert not any("Rewritten" in r["instruction"] for r in rows)


def test_evol_instruct_draws_all_operations_per_item_and_one_per_epoch_and_category(bench: Bench) -> None:
    seeds = bench.seeds([{**s, "id": f"{i}-{s['id']}", "instruction": f"{s['instruction']} ({i})"} for i in range(10) for s in INSTRUCTIONS])
    per_item = Counter(r["operation"] for r in bench.run(Scripted(evol_teacher), generate="evol_instruct", seeds=seeds, rows=80, batch=32))
    assert set(per_item) == {*evol_instruct.OPERATIONS, None} and min(per_item.values()) >= 5
    rows = bench.run(Scripted(evol_teacher), "other", generate="evol_instruct", seeds=seeds, rows=160, rounds=2, draw="epoch_category", batch=32)
    drawn: dict[tuple[int, str], set[str | None]] = {}
    for row in rows:
        drawn.setdefault((row["round"], row["category"]), set()).add(row["operation"])
    assert len(drawn) == 4 and all(len(operations) == 1 for operations in drawn.values())
    rows = bench.run(Scripted(evol_teacher), "third", generate="evol_instruct", seeds=seeds, rows=80, complicate_input=True, batch=32)
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
        bad = {"0": given.upper(), "1": "the given prompt is fine", "2": "", "3": given + " ap", "4": given + " st", "5": given + " em"}
        if given[5] == "6":
            return Completion(given + " and", "length", 1, 1)
        return bad.get(given[5], given + " Why so?")

    rows = bench.run(Scripted(teacher), generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS), rows=8)
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


def test_evol_instruct_tries_unused_seeds_before_failed_ones(bench: Bench) -> None:
    def teacher(system: str, user: str, seed: int) -> str:
        return "" if "Name 0" in user and "#Given" in user else evol_teacher(system, user, seed)

    rows = bench.run(Scripted(teacher), generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS), rows=3)
    assert [r["seed_id"] for r in rows] == ["s1", "s2", "s3"] and rows[-1]["round"] == 2


def test_evol_instruct_reports_a_shortfall_and_fails_only_without_a_row(bench: Bench) -> None:
    seeds = bench.seeds(INSTRUCTIONS[:2])
    rows = bench.run(Scripted(evol_teacher), generate="evol_instruct", seeds=seeds, rows=5)
    assert len(rows) == 2 and bench.counts["short of the rows wanted"] == 3
    with pytest.raises(ModelError, match=r"not one of 5 rows could be made .*no text: 8"):
        bench.run(Scripted(lambda system, user, seed: "?!"), "other", generate="evol_instruct", seeds=seeds, rows=5)


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

    teacher = Scripted(lambda system, user, seed: "" if "Name 3" in user else evol_teacher(system, user, seed))
    judged = Scripted(judge)
    rows = bench.run(
        teacher, judge=judged, generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS[:5]), rows=5, retry_rounds=0, temperature=0, equality_judge="judge"
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

    judge = Scripted(lambda system, user, seed: " not equal")
    judge.formatter, judge.tokenizer = Formatter(), type("T", (), {"bos_token": "<s>"})()  # type: ignore[attr-defined]
    bench.run(Scripted(evol_teacher), judge=judge, generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS), rows=2, equality_judge="judge")
    text = judge.asked[0][0].content
    assert text.startswith("[user]Here are two prompts") and text.endswith("[assistant]The two prompts are")


def test_long_seeds_are_cut_and_counted(bench: Bench) -> None:
    teacher = Scripted(evol_teacher)
    seeds = [{"instruction": "Sum this up.", "context": "word " * 2000}]
    rows = bench.run(teacher, generate="evol_instruct", seeds=bench.seeds(seeds), rows=1, seed_tokens=16)
    assert bench.counts["seeds cut to 16 tokens"] == 1 and len(rows[0]["instruction"]) < 100


# -------------------------------------------------------------------------------- orca


def flan(submix: str, task: str, n: int, **more: Any) -> list[Row]:
    return [{"id": f"{task}-{i}", "submix": submix, "task": task, "input": f"Question {i} of {task}?", "target": f"gold {i}", **more} for i in range(n)]


FLAN = [
    *flan("cot", "sums", 9),
    *flan("cot", "puzzles", 2),
    *flan("niv2", "lists", 9),
    *flan("t0", "news", 9),
    *flan("flan2021", "nli", 9, multiple_choice=True),
    *flan("flan2021", "chat", 9),
]


def test_orca_pairs_messages_with_sub_collections_as_in_the_table(bench: Bench) -> None:
    seeds = bench.seeds([{**row, "id": f"{i}-{row['id']}", "task": f"{row['task']}{i % 2}"} for i in range(20) for row in FLAN])
    rows = bench.run(
        Scripted(lambda s, u, _: "Because."), generate="orca", seeds=seeds, rows=600, batch=64, submixes={"cot": 1, "niv2": 1, "t0": 1, "flan2021": 2}
    )
    used: dict[tuple[str, bool], set[int]] = {}
    for row in rows:
        used.setdefault((row["submix"], row["multiple_choice"]), set()).add(row["message"])
    assert used == {
        ("cot", False): {6, 11, 16},
        ("niv2", False): {1, 2, 5, 7, 9, 12, 13, 14, 15},
        ("t0", False): {1, 2, 3, 5, 7},
        ("flan2021", False): {3, 4, 7},
        ("flan2021", True): {3, 4, 7, 8, 10},
    }


def test_orca_sends_the_system_message_it_keeps_and_an_empty_one_stays_empty(bench: Bench) -> None:
    teacher = Scripted(lambda system, user, seed: f"[{system}] {user}")
    rows = bench.run(teacher, generate="orca", seeds=bench.seeds(flan("niv2", "lists", 60)), rows=60, batch=16)
    messages = orca.parse_messages(prompts.load("orca_system_messages"))
    assert all(r["system"] == messages[r["message"]] and r["response"] == f"[{r['system']}] {r['instruction']}" for r in rows)
    empty = [r for r in rows if r["message"] == 1]
    assert empty and all(r["system"] == "" for r in empty)
    assert to_example(empty[0], "row").prompt[0] == Turn("system", "")
    assert all(r["seed_target"] == "gold " + r["seed_id"].split("-")[1] and r["task"] == "lists" for r in rows)
    assert not any("gold" in t.content for c in teacher.asked for t in c)


def test_the_16_system_messages_are_there_and_only_the_first_is_empty() -> None:
    messages = orca.parse_messages(prompts.load("orca_system_messages"))
    assert list(messages) == list(range(1, 17))
    assert [n for n, text in messages.items() if not text] == [1] and len(set(messages.values())) == 16
    with pytest.raises(RecipeError, match="no message 2"):
        orca.parse_messages("[1]\n\n[3]\nx\n")


def test_orca_draws_tasks_uniformly_and_queries_without_replacement() -> None:
    tasks = {"big": flan("t0", "big", 1000), "small": flan("t0", "small", 1000), "tiny": flan("t0", "tiny", 3)}
    chosen = orca.draw_queries(tasks, 900, random.Random(1))
    counts = Counter(r["task"] for r in chosen)
    assert len({r["id"] for r in chosen}) == 900 and counts["tiny"] == 3 and 400 < counts["big"] < 500
    everything = orca.draw_queries(tasks, 10**6, random.Random(1))
    assert len(everything) == 2003 and len({r["id"] for r in everything}) == 2003


def test_orca_splits_rows_by_weight_and_fills_up_from_the_others(bench: Bench) -> None:
    assert shares(10, {"a": 1, "b": 3}, {"a": 99, "b": 99}) == {"a": 2, "b": 8} or shares(10, {"a": 1, "b": 3}, {"a": 99, "b": 99}) == {"a": 3, "b": 7}
    assert shares(10, {"a": 1, "b": 1, "c": 0}, {"a": 2, "b": 99, "c": 9}) == {"a": 2, "b": 8, "c": 0}
    assert shares(10, {"a": 1, "b": 1}, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    rows = bench.run(Scripted(lambda s, u, _: "Yes, fine."), generate="orca", seeds=bench.seeds(FLAN), rows=100, batch=64)
    assert len(rows) == len(FLAN) and bench.counts["short of the rows wanted"] == 100 - len(FLAN)


def test_orca_names_a_weighted_sub_collection_that_the_seeds_lack(bench: Bench) -> None:
    seeds = bench.seeds(flan("t0", "news", 5))
    with pytest.raises(DataError, match="no row of submix 'cot'"):
        bench.run(Scripted(lambda s, u, _: "x"), generate="orca", seeds=seeds, submixes={"cot": 1, "t0": 1})
    with pytest.raises(ValidationError):
        orca.Options.model_validate({"submixes": {"cot": 0}})
    with pytest.raises(ValidationError):
        orca.Options.model_validate({"submixes": {"dialog": 1}})
    with pytest.raises(DataError, match="no row whose submix is one of"):
        bench.run(Scripted(lambda s, u, _: "x"), generate="orca", seeds=bench.seeds(flan("dialog", "talk", 5)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which?\nOPTIONS:\n- red\n- blue", True),
        ("Which?\n(A) red\n(B) blue", True),
        ("Which?\nA. red\nB. blue", True),
        ("Which?\nA) red\n  B) blue", True),
        ("What are my options: none?", False),
        ("A dog barks.\nBut why?", False),
        ("(a) alone on a line", False),
        ("", False),
    ],
)
def test_multiple_choice_is_seen_in_the_text_where_the_row_does_not_say(text: str, expected: bool) -> None:
    assert orca.is_multiple_choice({"input": text}) is expected
    assert orca.is_multiple_choice({"input": text, "multiple_choice": not expected}) is not expected


# ------------------------------------------------------------------- resume, determinism

SETTINGS: dict[str, dict[str, Any]] = {
    "lamini": {"rows": 13, "instructions_per_prompt": 2},
    "evol_instruct": {"rows": 14, "rounds": 2, "equality_judge": "judge"},
    "orca": {"rows": 14},
}


def any_teacher(system: str, user: str, seed: int) -> str | Completion:
    """Good replies mixed with failures of every kind, a function of the seed alone."""
    if seed % 7 == 0:
        return HOSTILE[seed // 7 % len(HOSTILE)]
    if seed % 11 == 0:
        return Completion("", "error", 3, 0)
    return evol_teacher(system, user, seed) if "#Given" in user else lamini_teacher(system, user, seed)


def some_judge(system: str, user: str, seed: int) -> str:
    return ("not equal", "equal", "perhaps", "not equal")[seed % 4]


def _run(bench: Bench, scheme: str, out: str, die_after: int | None = None, say: Say = any_teacher) -> tuple[list[Row], dict[str, int], dict[str, Any], int]:
    seeds = bench.seeds(FLAN if scheme == "orca" else INSTRUCTIONS)
    teacher, judge = Scripted(say, die_after), Scripted(some_judge)
    rows = bench.run(teacher, out, judge, cached=True, generate=scheme, seeds=seeds, **SETTINGS[scheme])
    numbers = {k: v for k, v in bench.numbers.items() if k != "tokens_per_second"}
    return rows, bench.counts, numbers, teacher.calls


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_killed_run_goes_on_and_ends_with_the_same_rows_counts_and_numbers(bench: Bench, scheme: str) -> None:
    rows, counts, numbers, calls = _run(bench, scheme, "whole")
    for die_after in range(calls):
        with pytest.raises(Killed):
            _run(bench, scheme, f"killed-{die_after}", die_after)
        rest = _run(bench, scheme, f"killed-{die_after}")
        assert rest == (rows, counts, numbers, calls - die_after)
        assert (bench.folder / f"killed-{die_after}/rows.jsonl").read_bytes() == (bench.folder / "whole/rows.jsonl").read_bytes()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_depend_on_the_seed_alone_not_on_the_batch_size(bench: Bench, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _run(bench, scheme, "one")[0]
    assert _run(bench, scheme, "two")[0] == first
    if scheme != "lamini":  # there the batch bounds how many prompts are drawn before looking again
        monkeypatch.setitem(SETTINGS, scheme, {**SETTINGS[scheme], "batch": 3})
        assert _run(bench, scheme, "three")[0] == first


# -------------------------------------------------------------------------------- stage


@pytest.mark.parametrize(
    ("scheme", "row", "message"),
    [
        ("lamini", {"id": "x7", "instruktion": "Hi"}, "row x7: the field 'instruction' is missing; the row has id, instruktion"),
        ("evol_instruct", {"instruction": "  "}, "row 2: the field 'instruction' is empty or no text"),
        ("orca", {"submix": "t0", "task": "x", "input": 5}, "row 2: the field 'input' is empty or no text"),
    ],
)
def test_a_seed_without_its_field_is_named(bench: Bench, scheme: str, row: Row, message: str) -> None:
    good = FLAN[0] if scheme == "orca" else INSTRUCTIONS[0]
    with pytest.raises(DataError, match=re.escape(message)):
        bench.run(Scripted(any_teacher), generate=scheme, seeds=bench.seeds([good, row]))


def test_a_recipe_may_bring_its_own_text_and_a_wrong_name_is_refused(bench: Bench) -> None:
    (bench.folder / "mine.txt").write_text("Reply with <example>x</example>. Write {wanted} new ones.", encoding="utf-8")
    teacher = Scripted(lamini_teacher)
    bench.run(teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=2, prompts={"lamini_examples": "mine.txt"})
    assert teacher.asked[0][-1].content == "Reply with <example>x</example>. Write 20 new ones."
    with pytest.raises(RecipeError, match="sends no such text; it sends lamini_examples"):
        bench.run(teacher, generate="lamini", seeds=bench.seeds(INSTRUCTIONS), rows=2, prompts={"lamini_exampels": "mine.txt"})


def test_tokens_count_every_reply_also_those_that_led_to_no_row(bench: Bench) -> None:
    def teacher(system: str, user: str, seed: int) -> Completion:
        text = "" if "Name 0" in user else f"Name two seas, {seed}." if "#Given" in user else "Baltic, North."
        return Completion(text, "length" if "seas" in user else "stop", 10, 3)

    rows = bench.run(Scripted(teacher), generate="evol_instruct", seeds=bench.seeds(INSTRUCTIONS[:3]), rows=3, retry_rounds=0)
    assert len(rows) == 2 and bench.numbers["prompt_tokens"] == 50 and bench.numbers["tokens"] == 15
    assert bench.numbers["finished"] == 0.0 and bench.numbers["response_words"] == 2.0 and bench.numbers["wanted"] == 3


@pytest.mark.parametrize(("scheme", "file"), [("lamini", "instructions"), ("evol_instruct", "instructions"), ("orca", "flan")])
def test_the_demo_seeds_serve_every_scheme(bench: Bench, scheme: str, file: str) -> None:
    more: dict[str, Any] = {"topics": str(DEMO / "topics.jsonl")} if scheme == "lamini" else {}
    rows = bench.run(
        Scripted(lambda s, u, n: lamini_teacher(s, u, n) if "<example>" in u else evol_teacher(s, u, n)),
        generate=scheme,
        seeds=str(DEMO / f"{file}.jsonl"),
        rows=40,
        batch=32,
        **more,
    )
    assert len(rows) == 40 and json.dumps(rows)
    if scheme == "orca":
        assert {r["submix"] for r in rows} == {"cot", "niv2", "t0", "flan2021"}
