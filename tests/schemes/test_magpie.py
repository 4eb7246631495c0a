"""Magpie: the text before a user's turn, where the turn ends, what counts as an instruction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_schemes import INSTRUCTIONS, PRE_QUERY, Bench, Teacher, magpie_teacher

from openbezoar.context import StepContext
from openbezoar.engine.graph import Graph, build
from openbezoar.errors import ModelError, RecipeError
from openbezoar.llm import Completion, Sampling
from openbezoar.llm.scripted import last
from openbezoar.plan.estimates import estimate
from openbezoar.recipe.blocks import ServerModel
from openbezoar.recipe.file import load
from openbezoar.rows.records import Turn
from openbezoar.schemes import magpie

SETTINGS: dict[str, Any] = {"generate": "magpie", "rows": 5, "pre_query": PRE_QUERY}


class Template:
    """A formatter and tokenizer in one: each turn is <|role|>text<|end|>."""

    adds_bos, bos_token = True, "<s>"

    def prompt_text(self, turns: Sequence[Turn]) -> str:
        return "<s>" + "".join(f"<|{t.role}|>{t.content}<|end|>" for t in turns) + "<|assistant|>"

    def __call__(self, text: str, **_: Any) -> Any:
        return type("Ids", (), {"input_ids": [7 if text.startswith("<|end|>") else 1]})

    def convert_ids_to_tokens(self, id_: int) -> str:
        return "<|end|>" if id_ == 7 else "a"

    def get_added_vocab(self) -> dict[str, int]:
        return {"<|end|>": 7}


def raw(teacher: Teacher) -> tuple[str, Sampling]:
    """How the last completion was asked for."""
    call = [call for call in teacher.asked if call.kind == "complete"][-1]
    return last(call), call.sampling


def local(template: Any = Template) -> Teacher:
    teacher = Teacher(lambda system, user, seed: f"What is {seed}?" if user.endswith("<|user|>") else "It is so.")
    teacher.formatter = teacher.tokenizer = template()  # type: ignore[attr-defined]
    return teacher


def test_magpie_makes_the_rows_wanted_without_seeds(bench: Bench) -> None:
    rows = bench.run(Teacher(magpie_teacher), **SETTINGS)
    assert [r["id"] for r in rows] == [f"magpie-{n:05d}" for n in range(1, 6)] and len(
        {r["instruction"] for r in rows}
    ) == 5
    assert all(
        r["response"] == f"Answer to: {r['instruction']}" and r["source"] == "pre-query" and r["system"] is None
        for r in rows
    )


def test_the_user_s_turn_begins_as_the_teacher_s_own_template_says_and_ends_at_its_token(bench: Bench) -> None:
    teacher = local()
    bench.run(teacher, generate="magpie", rows=2, system="On rivers.", instruction_tokens=40)
    text, sampling = raw(teacher)
    assert text == "<|system|>On rivers.<|end|><|user|>"  # raw completion adds <s> itself
    assert sampling == Sampling(40, 1.0, 1.0, ("<|end|>",))
    answered = teacher.asked[-1].prompt
    assert [t.role for t in answered] == ["user"] and answered[0].content.startswith("What is ")


def test_a_template_without_a_token_of_its_own_ends_the_turn_with_its_next_line(tiny: Path, bench: Bench) -> None:
    from transformers import AutoTokenizer

    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.recipe.blocks import PromptSpec

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for template, before, end in (("openbezoar", "### Instruction:\n", "### Response:"), ("own", "<s>user\n", "</s>")):
        teacher = Teacher(lambda system, user, seed: f"What is {seed}?")
        teacher.tokenizer, teacher.formatter = tokenizer, Formatter(tokenizer, PromptSpec(template=template))  # type: ignore[attr-defined]
        bench.run(teacher, template, generate="magpie", rows=1)
        assert raw(teacher)[0].endswith(before) and raw(teacher)[1].stop == (end,)


def test_a_server_s_wrapper_tells_where_the_user_s_turn_begins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(lambda system, user, seed: f"What is {seed}?")
    monkeypatch.setattr(
        StepContext,
        "model_spec",
        lambda self, name: ServerModel(server="http://x/v1", model="m", wrapper="<human>: {prompt}\n<bot>: "),
    )
    bench.run(teacher, generate="magpie", rows=1)
    assert raw(teacher)[0] == "<human>:" and raw(teacher)[1].stop == ("<bot>:",)


def test_a_chat_server_without_pre_query_is_refused_with_one_line_that_says_what_to_set(bench: Bench) -> None:
    with pytest.raises(
        ModelError, match=r"teacher 'fake': a chat server does not tell its template.* set pre_query"
    ) as caught:
        bench.run(Teacher(magpie_teacher), generate="magpie", rows=1)
    assert "\n" not in str(caught.value)


def test_a_server_without_raw_completions_fails_with_one_line_that_says_so(bench: Bench) -> None:
    class ChatOnly(Teacher):
        def complete(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
            raise ModelError("model 'fake' (m at http://x/v1): it refuses the request with 404: Not Found")

    with pytest.raises(
        ModelError, match=r"404: Not Found; magpie needs raw completions .*completions of a server"
    ) as caught:
        bench.run(ChatOnly(magpie_teacher), **SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_template_that_changes_the_user_s_words_is_refused(bench: Bench) -> None:
    class Shouting(Template):
        def prompt_text(self, turns: Sequence[Turn]) -> str:
            return super().prompt_text(turns).upper()

    with pytest.raises(ModelError, match="does not show a user's words as they are"):
        bench.run(local(Shouting), generate="magpie", rows=1)
    with pytest.raises(ValidationError, match="write the system message into it"):
        magpie.Options.model_validate({"system": "x", "pre_query": "y"})


@pytest.mark.parametrize(
    ("reason", "caught", "passing"),
    [
        ("no word in it", "1 + 1 = ?", "1 + x = ?"),
        ("longer than 4000 characters", "a" * 4001, "a" * 4000),
        ("repeats a seed or an earlier one", "name 3 rivers of Europe?", "Name 3 rivers of Asia."),
        ("not over by instruction_tokens", Completion("Name a", "length", 1, 2), Completion("Name a", "stop", 1, 2)),
    ],
)
def test_each_rule_for_instructions_takes_out_what_it_must_and_not_its_like(
    bench: Bench, reason: str, caught: str | Completion, passing: str | Completion
) -> None:
    for reply, kept in ((caught, False), (passing, True)):
        teacher = Teacher(lambda system, user, seed, reply=reply: reply if user == PRE_QUERY else "Fine.")  # type: ignore[misc]
        settings = {**SETTINGS, "rows": 1, "max_prompts": 1, "seeds": bench.seeds(INSTRUCTIONS)}
        if kept:
            assert len(bench.run(teacher, "kept", **settings)) == 1
        else:
            with pytest.raises(
                ModelError, match=f"none of 1 replies held a new instruction .instruction dropped: {reason}: 1"
            ):
                bench.run(teacher, "dropped", **settings)


@pytest.mark.parametrize(
    ("lines", "instruction"), [("all", "Sum this up:\n\nA river is long."), ("first", "Sum this up:")]
)
def test_a_turn_of_several_lines_is_kept_whole_or_cut_to_its_first(bench: Bench, lines: str, instruction: str) -> None:
    teacher = Teacher(
        lambda system, user, seed: "\n Sum this up:\n\nA river is long.\n" if user == PRE_QUERY else "Fine."
    )
    assert [r["instruction"] for r in bench.run(teacher, **{**SETTINGS, "rows": 1, "lines": lines})] == [instruction]


def test_the_first_line_of_a_turn_without_end_serves_where_lines_is_first(bench: Bench) -> None:
    teacher = Teacher(
        lambda system, user, seed: Completion("Name a fish.\nCod is", "length", 1, 1) if user == PRE_QUERY else "Fine."
    )
    assert len(bench.run(teacher, **{**SETTINGS, "rows": 1, "lines": "first"})) == 1
    with pytest.raises(ModelError, match="not over by instruction_tokens: 20"):
        bench.run(teacher, "other", **{**SETTINGS, "rows": 1})


def test_a_model_in_this_process_stops_at_the_end_of_the_user_s_turn(tiny: Path) -> None:
    """Also where that is a special token which does not end answers, and which decoding leaves out."""
    import torch

    from openbezoar.llm.local import LocalLLM
    from openbezoar.models.references import Checkpoint
    from openbezoar.recipe.blocks import PromptSpec

    llm = LocalLLM(Checkpoint("tiny", str(tiny), (), "none", "float32", PromptSpec(template="own")))
    with torch.no_grad():  # all tokens are as likely, so that greedily the first is drawn: <s>
        llm.model.lm_head.weight.zero_()
    free, ended = llm.complete(["x"], Sampling(6), [1])[0], llm.complete(["x"], Sampling(6, stop=("<s>",)), [1])[0]
    assert (free.finish, free.tokens) == ("length", 6) and (ended.finish, ended.tokens) == ("stop", 1)


def test_only_magpie_needs_no_seeds(write_recipe: Any, tmp_path: Path) -> None:
    def built(scheme: str) -> Graph:
        path = write_recipe({"a": {"generate": scheme, "teacher": "base", "rows": 2}})
        return build(load(path), path, tmp_path / "runs")

    graph = built("magpie")
    assert graph.nodes["a"].state == "missing" and (estimate(graph)["a"].tokens_out or 0) > 0
    with pytest.raises(RecipeError, match=r"steps.a: seeds: missing; lamini needs rows with instruction"):
        built("lamini")
