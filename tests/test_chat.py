"""The prompt: one template for training, inference and release; answers begin where prompts end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbezoar.dialogue.prompt import SYSTEM, Formatter
from openbezoar.errors import ModelError
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Turn


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def test_the_prompt_is_the_cards_template_to_the_letter(tiny: Path) -> None:
    text = Formatter(tokenizer(tiny), PromptSpec()).prompt_text([Turn("user", "Name a colour.")])
    assert text == f"### System:\n{SYSTEM}\n\n### Instruction:\nName a colour.\n\n### Response:\n"


def test_a_row_s_own_system_message_replaces_the_default_and_an_empty_one_leaves_it_out(tiny: Path) -> None:
    formatter = Formatter(tokenizer(tiny), PromptSpec())
    assert formatter.prompt_text([Turn("system", "Be brief."), Turn("user", "Hi")]).startswith(
        "### System:\nBe brief.\n\n### Instruction:\nHi"
    )
    assert formatter.prompt_text([Turn("system", ""), Turn("user", "Hi")]) == "### Instruction:\nHi\n\n### Response:\n"


def test_the_recipe_s_system_message_with_quotes_and_braces_arrives_unchanged(tiny: Path) -> None:
    odd = 'It\'s {{ odd }} \\ "quoted"\nsecond line {% x %}'
    assert f"### System:\n{odd}\n\n" in Formatter(tokenizer(tiny), PromptSpec(system=odd)).prompt_text(
        [Turn("user", "Hi")]
    )


def test_earlier_answers_are_closed_as_they_were_trained(tiny: Path) -> None:
    formatter = Formatter(tokenizer(tiny), PromptSpec(system=""))
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]
    assert (
        formatter.prompt_text(turns)
        == "### Instruction:\na\n\n### Response:\nb</s>\n\n### Instruction:\nc\n\n### Response:\n"
    )
    without = Formatter(tokenizer(tiny), PromptSpec(system="", append_eos=False))
    assert "</s>" not in without.prompt_text(turns)
    assert without.end_ids == []


def test_an_answer_ends_with_the_end_token_and_own_templates_with_their_own(tiny: Path) -> None:
    for spec in (PromptSpec(), PromptSpec(template="own")):
        formatter = Formatter(tokenizer(tiny), spec)
        ids = formatter.answer_ids([Turn("user", "Hi")], "Yes.")
        assert ids[-1] == 1
        assert formatter.tokenizer.decode(ids[:-1]) == "Yes."
        assert 1 in formatter.stop_ids()


def test_there_is_exactly_one_beginning_token_where_the_tokenizer_wants_one(tiny: Path, tiny_gemma: Path) -> None:
    assert Formatter(tokenizer(tiny_gemma), PromptSpec()).prompt_ids([Turn("user", "Hi")]).count(0) == 1
    assert Formatter(tokenizer(tiny), PromptSpec()).prompt_ids([Turn("user", "Hi")]).count(0) == 0


def test_a_missing_template_is_refused_by_name(tiny: Path) -> None:
    bare = tokenizer(tiny)
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template of its own"):
        Formatter(bare, PromptSpec(template="own"))
    with pytest.raises(ModelError, match="neither 'openbezoar', 'own' nor a file"):
        Formatter(bare, PromptSpec(template="nothing.jinja"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
            r"of system, user \(System role not supported\)",
        ),
        ("{% for m in messages %}", r"of system, user \(Unexpected end of template"),
        ("{{ messages[0].content.text.more }}", r"of system, user \('str object' has no attribute 'text'"),
    ],
)
def test_a_template_that_refuses_a_conversation_is_one_line(
    tiny: Path, tmp_path: Path, template: str, said: str
) -> None:
    (tmp_path / "odd.jinja").write_text(template)
    with pytest.raises(ModelError, match=said):
        Formatter(tokenizer(tiny), PromptSpec(template=str(tmp_path / "odd.jinja"))).prompt_ids(
            [Turn("system", "x"), Turn("user", "Hi")]
        )


@settings(max_examples=60, deadline=None)
@given(answer=st.text(min_size=1, max_size=40), instruction=st.text(min_size=1, max_size=40))
def test_prompt_and_answer_ids_are_the_ids_of_the_whole_text_unless_a_shift_is_counted(
    tiny: Path, answer: str, instruction: str
) -> None:
    formatter = Formatter(tokenizer(tiny), PromptSpec())
    turns = [Turn("user", instruction)]
    prompt = formatter.prompt_ids(turns)
    ids = formatter.answer_ids(turns, answer)
    whole = formatter.tokenizer(formatter.prompt_text(turns) + answer, add_special_tokens=False).input_ids
    if formatter.boundary_shifts == 0:
        assert prompt + ids[:-1] == whole
    assert formatter.tokenizer.decode(ids[:-1]) == answer
