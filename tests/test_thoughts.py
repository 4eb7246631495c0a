"""Thoughts: where what is said begins, in every family's marks, and that every part of the package
takes it from there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from families import QWEN3, R1, with_template
from hypothesis import given, settings
from hypothesis import strategies as st
from test_calls import WARM, Fake, remembered
from test_mt_bench import bench as mt_bench  # noqa: F401  a fixture
from test_mt_bench import scripted
from test_schemes import INSTRUCTIONS, Teacher, evol_teacher, lamini_teacher
from test_server import Reply, Service, chat_reply, service  # noqa: F401  a fixture

from openbezoar.dialogue import thoughts
from openbezoar.engine import execution, graph
from openbezoar.judging.parsers import parse_rating
from openbezoar.judging.questions import read_answers, read_questions
from openbezoar.llm import Call, Completion, Sampling
from openbezoar.llm.cached import CachedLLM
from openbezoar.llm.decoding import TextOf
from openbezoar.llm.local import LocalLLM
from openbezoar.llm.spoken import Spoken
from openbezoar.llm.streaming import Stream
from openbezoar.models.references import Checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import load
from openbezoar.rows.records import Counts, Turn, read_jsonl

HARMONY = (
    "<|channel|>analysis<|message|>Hm.<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>Aside.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Yes."
)
THOUGHT = [  # (reply, what was said, what was thought)
    ("<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm."),
    ("<think>\n\n</think>\n\nYes.", "Yes.", ""),
    ("Hm.\n</think>\n\nYes.", "Yes.", "Hm."),  # opened by the prompt
    ("\n\n</think>\n\nYes.", "Yes.", ""),
    (" <Think>Hm.</Think>Yes.", "Yes.", "Hm."),
    (
        "<thinking>Hm.<reflection>No.</reflection></thinking><output>Yes.</output>",
        "Yes.",
        "Hm.<reflection>No.</reflection>",
    ),
    ("<reasoning>\nHm.\n</reasoning>\n<answer>\nYes.\n</answer>", "Yes.", "Hm."),
    ("<thought>Hm.</thought>Yes.", "Yes.", "Hm."),
    ("<scratchpad>Hm.</scratchpad>Yes.", "Yes.", "Hm."),
    ("<seed:think>Hm.</seed:think>Yes.", "Yes.", "Hm."),
    ("[THINK]Hm.[/THINK]Yes.", "Yes.", "Hm."),
    ("◁think▷Hm.◁/think▷Yes.", "Yes.", "Hm."),
    (
        "<|begin_of_thought|>\nHm.\n<|end_of_thought|>\n\n<|begin_of_solution|>\nYes.\n<|end_of_solution|>",
        "Yes.",
        "Hm.",
    ),
    ("<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>", "Yes.", "Hm."),
    ("<|channel>thought\nHm.<channel|>Yes.", "Yes.", "thought\nHm."),
    ("<unused94>thought\nHm.<unused95>Yes.", "Yes.", "thought\nHm."),
    ("Here is my thought process: Hm. Here is my response: Yes.", "Yes.", "Hm."),
    ("Here's my thought process:\nHm.\nHere's my response:\nYes.", "Yes.", "Hm."),
    (HARMONY, "Yes.", "Hm.\n\nAside."),
    # without its special tokens
    ("analysisHm.assistantcommentaryAside.assistantfinalYes.", "Yes.", "Hm.assistantcommentaryAside."),
    ("<think>Hm.</think>\n<response>\nYes.\n</response>", "Yes.", "Hm."),
    ("<think>One.</think><think>Two.</think>Yes.", "Yes.", "One.\n\nTwo."),
    ("<think>It says <think> and then </think> so</think>Yes.", "Yes.", "It says <think> and then\n\nso"),
    (
        "<think>Hm.</think>The mark that closes is </think>, and it ends.",
        "The mark that closes is </think>, and it ends.",
        "Hm.",
    ),
    ("\n\n</think>.5 of it.", ".5 of it.", ""),
    ("First.\n<think>Hm.</think>\nThen.", "First.\n\nThen.", "Hm."),
    ("<think>```\ncode\n</think>Yes.", "Yes.", "```\ncode"),
]
CUT_OFF = [
    "<think>Hm.",
    "<think>",
    "[THINK]Hm.",
    "<reasoning>Hm.",
    "Here is my thought process: Hm.",
    "<|channel|>analysis<|message|>Hm.",
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant",
    "analysisThe user asks",
    "<think>Hm.</think><think>No.",
]
SAID = [
    "Yes.",
    "The model writes <think> first, then </think> after.",
    "1. <think>: begins\n2. </think>: ends",
    "A thought ends with </think>; then the answer follows.",
    "",
    "  Yes.\n",
    "The tag <think> opens a thought, and </think> is not its end here, says `</think>`."[:33],
    "Models write `<think>` first and `</think>` last.",
    'They begin with "<think>" and end with "</think>".',
    "```xml\n<think>\nHm.\n</think>\n```\nThat is the form.",
    "My reasoning: <reasoning>x</reasoning> is XML.",
    "An analysis of it follows.",
    "analysis of variance",
    "I have [THINKING] caps.",
    "Here is my response: yes.",
    "a < b and c > d",
    "gpt-oss writes <|channel|>final<|message|> before its answer.",
]


@pytest.mark.parametrize(("reply", "said", "thought"), THOUGHT)
def test_what_is_said_begins_after_the_thoughts(reply: str, said: str, thought: str) -> None:
    assert thoughts.split(reply) == thoughts.SplitReply(said, thought, True)
    assert thoughts.split(said) == thoughts.SplitReply(said)


@pytest.mark.parametrize("reply", CUT_OFF)
def test_of_a_thought_that_was_cut_off_nothing_is_said(reply: str) -> None:
    found = thoughts.split(reply)
    assert (found.answer, found.whole) == ("", False)


@pytest.mark.parametrize("text", SAID)
def test_an_answer_without_thoughts_or_about_their_marks_stays_as_it_is(text: str) -> None:
    assert thoughts.split(text) == thoughts.SplitReply(text)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([*thoughts._ALL, "a", " ", "\n", "`", "```", "analysis", "final"]), max_size=12).map(
        "".join
    )
)
def test_no_text_is_too_odd_to_be_taken_apart(text: str) -> None:
    found = thoughts.split(text)
    assert len(found.answer) <= len(text) and thoughts.opening(text) in text and thoughts.begins(text) in text


@pytest.mark.parametrize(
    "unit",
    [*thoughts._ALL, "<think></think>", "a\n<think>", "`<think>", "<|channel|>x<|message|>", "analysisA", "```\n"],
)
def test_a_long_hostile_reply_is_read_in_one_go(unit: str) -> None:
    text, begun = unit * (200_000 // len(unit)), time.thread_time()
    thoughts.split(text)
    thoughts.closes(text)
    assert time.thread_time() - begun < 3


def test_a_prompt_s_opened_thought_is_known_and_closed() -> None:
    assert thoughts.opening("<|Assistant|><think>\n") == "<think>\n" and thoughts.opening(
        "<think>x"
    ) == "" == thoughts.opening("")
    assert thoughts.split("<think>\n" + thoughts.closing("<think>\n") + "Yes.") == thoughts.SplitReply("Yes.")


# ------------------------------------------------------------------------- behind the cache


class Thinker(Fake):
    """A server whose answers are given in order."""

    def __init__(self, *answers: Completion) -> None:
        super().__init__()
        self.answers = list(answers)

    def answer(self, call: Call, off: Any) -> Completion:
        self.asked.append(call)
        return self.answers.pop(0)


def behind_a_cache(folder: Path, llm: Thinker, keep: Any = "drop") -> tuple[CachedLLM, Counts]:
    made, counts = remembered(folder, llm, "call"), Counts()
    made.spoken = Spoken("m", keep, counts)
    return made, counts


def test_thoughts_are_cut_behind_the_cache_and_kept_without_asking_again(tmp_path: Path) -> None:
    raw = [
        Completion("<think>Hm.</think>Yes.", "stop", 3, 9),
        Completion("Yes.", "stop", 3, 9, thoughts="Hm."),  # told apart by the server
        Completion("<think>Hm.", "stop", 3, 9),
        Completion("", "length", 3, 9, thoughts="Hm."),
        Completion("Yes.", "stop", 3, 9),
    ]
    llm = Thinker(*raw)
    llm.width = 1
    made, counts = behind_a_cache(tmp_path, llm)
    talks = [[Turn("user", str(n))] for n in range(5)]
    found = [made.chat([talk], WARM, [0])[0] for talk in talks]
    assert [(a.text, a.finish, a.thoughts) for a in found] == [
        ("Yes.", "stop", "Hm."),
        ("Yes.", "stop", "Hm."),
        ("", "length", "Hm."),
        ("", "length", "Hm."),
        ("Yes.", "stop", ""),
    ]
    assert counts.by_reason == {"m: thoughts left out": 2, "m: cut off in a thought": 2}
    kept, none = behind_a_cache(tmp_path, Thinker(), "keep")
    assert [kept.chat([talk], WARM, [0])[0].text for talk in talks] == [
        "<think>Hm.</think>Yes.",
        "<think>\nHm.\n</think>\n\nYes.",
        "<think>Hm.",
        "<think>\nHm.\n</think>\n\n",
        "Yes.",
    ]
    assert len(llm.asked) == 5 and none.by_reason == {}


def test_a_raw_completion_of_a_server_goes_on_in_the_thought_that_its_prompt_opened(tmp_path: Path) -> None:
    made, counts = behind_a_cache(
        tmp_path, Thinker(Completion("Hm.</think>Yes.", "stop", 3, 9), Completion("Hm", "length", 3, 9))
    )
    found = [made.complete([f"{n}<think>\n"], WARM, [0])[0] for n in range(2)]
    assert [(a.text, a.finish) for a in found] == [("Yes.", "stop"), ("", "length")] and sum(
        counts.by_reason.values()
    ) == 2


# ----------------------------------------------------------------------- a model of this process


@pytest.fixture(scope="module")
def reasoner(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalLLM]:
    """A tiny model whose thoughts' marks are special tokens, which decoding leaves out."""
    import torch
    from transformers import AutoModelForCausalLM

    def made(template: str) -> LocalLLM:
        folder = tmp_path_factory.mktemp("reasoner") / "m"
        shutil.copytree(tiny, folder)
        tokenizer = with_template(folder, template)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
        tokenizer.save_pretrained(str(folder))
        model = AutoModelForCausalLM.from_pretrained(str(folder))
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(str(folder))
        return LocalLLM(Checkpoint("m", str(folder), (), "none", "float32", PromptSpec(template="own")))

    return made


def says(local: LocalLLM, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Have the model's decoder draw these tokens."""
    ids = local.tokenizer(text, add_special_tokens=False).input_ids

    def draw(prompts: Any, rows: Sequence[Any], stopped: Any, taken: Any = lambda row: None) -> None:
        for row in rows:
            for token in ids:
                row.ids.append(token)
                taken(row)
            row.finish = "stop"

    monkeypatch.setattr(local.decoder, "draw", draw)


def test_special_tokens_that_part_thoughts_from_answers_stay(
    reasoner: Callable[[str], LocalLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = reasoner(QWEN3)
    text = "<think>\nHm.\n</think>\n\nYes.</s>"
    assert local.decode(local.tokenizer(text).input_ids) == "<think>\nHm.\n</think>\n\nYes."
    says(local, monkeypatch, text)
    (answer,) = local.chat([[Turn("user", "Is it?")]], Sampling(30), [0])
    assert Spoken("m").of([answer])[0].text == "Yes."
    pieces: list[str] = []
    thought: list[str] = []
    made = local.answer([Turn("user", "Is it?")], Sampling(30), 0, pieces.append, thought.append)
    assert "".join(pieces) == made.text == "Yes." and "".join(thought) == made.thoughts == "Hm."


@pytest.mark.parametrize(
    ("text", "said", "finish"), [("Hm.\n</think>\n\nYes.", "Yes.", "stop"), ("Hm. Yes", "", "length")]
)
def test_an_answer_that_begins_in_a_thought_says_nothing_before_its_end(
    text: str, said: str, finish: str, reasoner: Callable[[str], LocalLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = reasoner(R1)
    says(local, monkeypatch, text)
    talk = [Turn("user", "Is it?")]
    pieces: list[str] = []
    for answer in (
        *Spoken("m").of(local.chat([talk], Sampling(30), [0])),
        local.answer(talk, Sampling(30), 0, pieces.append),
    ):
        assert (answer.text, answer.finish) == (said, finish)
    (raw,) = Spoken("m").of(local.complete([local.formatter.prompt_text(talk)], Sampling(30), [0]))
    assert raw.text == "".join(pieces) == said
    (begun,) = Spoken("m").of(
        local.complete([local.formatter.prompt_text(talk) + local.formatter.lead + "It"], Sampling(30), [0])
    )
    assert begun.text in (text, "Yes.")  # behind a closed thought all is said, but what closes another one


def test_choices_are_weighed_after_the_empty_thought(reasoner: Callable[[str], LocalLLM]) -> None:
    import torch

    local = reasoner(R1)
    ((yes, _),) = local.choice_logprobs([[Turn("user", "Is it?")]], "It is [[", ["yes]]", "no]]"])
    text = local.formatter.prompt_text([Turn("user", "Is it?")]) + "\n</think>\n\nIt is [["
    given, whole = (local.tokenizer(t, add_special_tokens=False).input_ids for t in (text, text + "yes]]"))
    shared = next((i for i, (a, b) in enumerate(zip(given, whole, strict=False)) if a != b), len(given))
    logs = local.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    assert yes == pytest.approx(sum(float(logs[i - 1, whole[i]]) for i in range(shared, len(whole))), abs=1e-3)


# What is known only later: bare channels, and a thought that was not opened, or closed twice.
LATE = ("analysis", "Hm.\n</think>", "\n\n</think>", "<think>It says")


@pytest.mark.parametrize(
    "reply", [r for r in (*(case[0] for case in THOUGHT), *CUT_OFF, *SAID) if not r.startswith(LATE)]
)
def test_pieces_of_a_stream_are_the_answer_without_its_thoughts(reply: str) -> None:
    pieces: list[str] = []
    thought: list[str] = []
    stream = Stream(lambda ids: "".join(map(chr, ids)), (), pieces.append, "", thought.append)
    for n in range(1, len(reply) + 1):
        stream.feed([ord(c) for c in reply[:n]])
    stream.finish(thoughts.without_thoughts(reply).strip())
    assert "".join(pieces) == thoughts.without_thoughts(reply).strip()


# ------------------------------------------------------------------------------- everywhere


def thinks(teacher: Callable[[str, str, int], str]) -> Callable[[str, str, int], str]:
    """A teacher that writes a draft of its answer into a thought first."""
    return lambda system, user, seed: (
        "<think>\nFirst <example>Write a draft.</example> #Rewritten Prompt#: A"
        f" draft.\n</think>\n\n{teacher(system, user, seed)}"
    )


@pytest.mark.parametrize(("scheme", "teacher"), [("lamini", lamini_teacher), ("evol_instruct", evol_teacher)])
def test_a_teacher_s_thoughts_are_in_no_row(scheme: str, teacher: Callable[[str, str, int], str], bench: Any) -> None:
    seeds = bench.seeds(INSTRUCTIONS)
    plain = bench.run(Teacher(teacher), out="plain", cached=True, generate=scheme, seeds=seeds)
    rows = bench.run(Teacher(thinks(teacher)), out="thinking", cached=True, generate=scheme, seeds=seeds)
    assert rows == plain and rows
    assert not any("draft" in json.dumps(row) for row in rows)
    assert bench.counts["fake: thoughts left out"] > 0


def test_an_answer_that_is_all_thought_is_dropped_as_empty(bench: Any) -> None:
    def stuck(system: str, user: str, seed: int) -> str:
        return (
            lamini_teacher(system, user, seed)
            if "Write" in user and "new" in user
            else ("<think>Hm" if "1" in user else "Yes, it is.")
        )

    bench.run(Teacher(stuck), cached=True, generate="lamini", seeds=bench.seeds(INSTRUCTIONS))
    assert bench.counts["fake: cut off in a thought"] == bench.counts["dropped: empty answer"] > 0


def test_a_contestant_s_thoughts_are_neither_graded_nor_sent_back(mt_bench: Callable[..., Any]) -> None:
    contestant = scripted("m", lambda talk: f"<think>SECRET {talk[-1].content}</think>Said on {talk[-1].content}")
    judge = scripted("judge", lambda talk: "<think>Rating: [[2]]</think>Rating: [[8]]")
    result, context = mt_bench({"m": contestant, "judge": judge}, cached=True, mt_bench=["m"], judge="judge")
    shown = [turn.content for call in (*contestant.asked, *judge.asked) for turn in call.prompt]
    assert len(shown) > 10 and not any("SECRET" in text for text in shown)
    assert result["models"]["m"]["score"]["mean"] == 8.0
    assert context.counts.by_reason["m: thoughts left out"] and context.counts.by_reason["judge: thoughts left out"]


def test_published_answers_begin_after_their_thoughts() -> None:
    counts = Counts()
    questions = read_questions([{"question_id": 1, "category": "writing", "turns": ["One?", "Two?"]}])
    (row,) = read_answers(
        [{"question_id": 1, "model_id": "r", "turns": ["<think>Hm.</think>Yes.", "<think>Hm"]}], questions, counts
    )
    assert (row["turns"], row["finish"]) == (["Yes.", ""], [None, "length"])
    assert counts.by_reason == {"thoughts left out of published answers": 2}


def test_a_judge_s_rating_is_what_it_says() -> None:
    for reply, said, _ in THOUGHT:
        text = reply.replace("Hm.", "Rating: [[2]]").replace("Yes.", "Rating: [[8]]")
        assert parse_rating(text) == (8 if said == "Yes." else None)


def test_benchmarks_read_what_is_said(monkeypatch: pytest.MonkeyPatch, reasoner: Callable[[str], LocalLLM]) -> None:
    pytest.importorskip("lm_eval")
    from openbezoar.harness.forest_lm import ForestLM

    local = reasoner(QWEN3)
    lm = ForestLM(local.model, local.tokenizer)
    drawn = local.tokenizer(
        "<think>\nQuestion: what?\n</think>\n\nThe answer is 5.\nQuestion: next", add_special_tokens=False
    ).input_ids

    def draw(prompts: Any, rows: Sequence[Any], stopped: Callable[[Any], bool], taken: Any = None) -> None:
        for row in rows:
            for token in drawn:
                row.ids.append(token)
                if stopped(row):
                    row.finish = "stop"
                    break

    monkeypatch.setattr(lm.decoder, "draw", draw)
    request = SimpleNamespace(args=("What is 2+3?", {"until": ["Question:"], "do_sample": False, "max_gen_toks": 99}))
    assert lm.generate_until([request]) == ["The answer is 5.\n"] and lm.thought == 1


def test_text_of_a_tokenizer_without_marks_is_its_own(tiny: Path) -> None:
    tokenizer = with_template(tiny, R1)
    text = TextOf(tokenizer)
    assert text.marks == {} and text(tokenizer("<think>a</s>").input_ids) == "<think>a"


def test_a_reasoning_server_from_recipe_to_rows_and_a_change_of_mind_that_asks_nothing(
    tmp_path: Path, service: Service
) -> None:
    """LaMini over HTTP: thoughts in the text, and beside it; then the same recipe with thoughts kept."""

    def reply(n: int, request: dict[str, Any]) -> Reply:
        asked = request["messages"][-1]["content"]
        said = (
            "".join(f"<example>Describe river {n}-{k}.</example>" for k in range(4))
            if "<example>" in asked
            else f"River {asked[-9:]}, a long one."
        )
        if "<example>" in asked:
            return chat_reply(f"<think>\n<example>A draft.</example>\n</think>\n\n{said}")
        made = chat_reply(said)
        made.body["choices"][0]["message"]["reasoning_content"] = "A draft."
        return made

    service.script = reply
    (tmp_path / "seeds.jsonl").write_text(
        "".join(json.dumps({"instruction": f"Name river {n}."}) + "\n" for n in range(6))
    )

    def rows(**more: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
        step = {"generate": "lamini", "teacher": "t", "seeds": "seeds.jsonl", "rows": 8, "instructions_per_prompt": 4}
        models = {"t": {"server": service.url, "model": "m", **more}}
        (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "models": models, "steps": {"g": step}}))
        execution.execute(
            graph.build(load(tmp_path / "r.yaml"), tmp_path / "r.yaml", tmp_path / "runs"), PlainProgress(quiet=True)
        )
        folder = tmp_path / "runs" / "r" / "g"
        return list(read_jsonl(folder / "rows.jsonl")), json.loads((folder / "manifest.json").read_text())["counts"]

    found, counts = rows()
    assert (
        len(found) == 8
        and "draft" not in json.dumps(found)
        and all(row["response"].startswith("River") for row in found)
    )
    assert counts["t: thoughts left out"] == len(service.requests)
    asked = len(service.requests)
    kept, counts = rows(thoughts="keep")
    assert "t: thoughts left out" not in counts
    answers = [
        request for _, request, _ in service.requests[asked:] if "<example>" in request["messages"][-1]["content"]
    ]
    assert answers == []  # what was asked is known; kept drafts are instructions then, whose answers are new
    assert all(row["response"].startswith("<think>\nA draft.\n</think>") for row in kept)
