"""Whole conversations: prompt, answer and end are what the template writes once the answer is there, or the difference is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import TEMPLATES, with_template

from openbezoar.chat import Formatter
from openbezoar.recipe import PromptSpec
from openbezoar.records import Turn
from openbezoar.templates import render

OWN = PromptSpec(template="own")
TALKS = (
    (Turn("user", "Name a colour."),),
    (Turn("system", "Be brief."), Turn("user", "Name a colour.")),
    (Turn("user", "Name one."), Turn("assistant", "Blue."), Turn("user", "And another?")),
)
# The system message goes before the last question, if that is the last turn.
MISTRAL_3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rule = messages[0].content %}{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (rule + '\\n\\n' if loop.last and rule is defined else '') + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
LEADS = {"qwen3": "<think>\n\n</think>\n\n", "mistral": " ", "gpt-oss": "<|channel|>final<|message|>", "ignores": " ", "r1": "\n</think>\n\n"}
TOLD = {"qwen3", "gpt-oss", "r1"}  # a lead that is more than a blank


def formatter(tiny: Path, name: str) -> Formatter:
    return Formatter(with_template(tiny, TEMPLATES[name]), OWN)


def trained(made: Formatter, turns: tuple[Turn, ...], answer: str) -> str:
    """The text whose ids are trained."""
    return made.prompt_text(turns) + made.form.written(answer) + made.end_text


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "r1"])
@pytest.mark.parametrize("answer", ["Green.", "\n Green, \n as\n\ngrass.\n\n", "  Green"])
def test_what_is_trained_is_the_template_s_own_text_of_the_finished_conversation(name: str, answer: str, tiny: Path) -> None:
    made = formatter(tiny, name)
    for turns in TALKS:
        whole = render(made.jinja, [t.as_dict() for t in (*turns, Turn("assistant", answer))], made.tokens, False)
        assert trained(made, turns, answer) == whole.rstrip("\n")
    assert made.lead == LEADS.get(name, "")
    assert any(repr(made.lead) in note for note in made.notes) == (name in TOLD)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_whole_text_and_end_with_the_end(name: str, tiny: Path) -> None:
    made = formatter(tiny, name)
    for turns in TALKS:
        ids = [*made.prompt_ids(turns), *made.answer_ids(turns, "Green.")]
        assert made.tokenizer.decode(ids) == made.tokenizer.decode(made._ids(trained(made, turns, "Green.")))
        assert made.end_ids and ids[-len(made.end_ids) :] == made.end_ids


def test_a_thought_that_the_prompt_opens_is_closed_before_the_answer_and_told(tiny: Path) -> None:
    made = formatter(tiny, "r1")
    text = trained(made, TALKS[0], "Green.")
    assert text == "<s><|User|>Name a colour.<|Assistant|><think>\n\n</think>\n\nGreen.</s>"
    assert made.opens_thought == "<think>\n" and any("opened thought" in note for note in made.notes)
    assert trained(made, TALKS[2], "Green.").endswith("<|Assistant|>Blue.</s><|User|>And another?<|Assistant|><think>\n\n</think>\n\nGreen.</s>")


@pytest.mark.parametrize("given", ["<think>\nGrass is.\n</think>\n\nGreen.", "Grass is.\n</think>\n\nGreen."])
def test_an_answer_with_thoughts_of_its_own_has_them_in_place_of_the_empty_one(given: str, tiny: Path) -> None:
    assert trained(formatter(tiny, "r1"), TALKS[0], given).endswith("<|Assistant|><think>\nGrass is.\n</think>\n\nGreen.</s>")
    if given.startswith("<think>"):
        made = formatter(tiny, "qwen3")
        whole = render(made.jinja, [t.as_dict() for t in (*TALKS[0], Turn("assistant", given))], made.tokens, False)
        assert trained(made, TALKS[0], given) == whole.rstrip("\n")


@pytest.mark.parametrize("name", ["chatml", "gemma2", "llama3", "phi3", "deepseek", "mistral"])
def test_nothing_is_told_of_a_template_that_writes_conversations_as_its_prompts(name: str, tiny: Path) -> None:
    assert [note for note in formatter(tiny, name).notes if "date" not in note and "system message" not in note] == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (TEMPLATES["chatml"].replace("'<|im_end|>\\n' }}{% endfor", "'<|im_end|>\\n' }}{% if not loop.last %}{% endif %}{% endfor").replace(
            "{% for m in messages %}", "{{ 'of ' ~ messages | length }}{% for m in messages %}"), "otherwise than its prompt"),
        (MISTRAL_3, "with a system message, the chat template writes a finished conversation otherwise"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves an answer out"),
        ("{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}", "writes no end"),
        (TEMPLATES["chatml"].replace("m.content +", "(('(late) ' if loop.index > 2 else '') + m.content if m.role == 'assistant' else m.content) +"), "otherwise with earlier turns"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_over_is_told_in_a_line(template: str, said: str, tiny: Path) -> None:
    notes = Formatter(with_template(tiny, template), OWN).notes
    assert any(said in note for note in notes) and not any("\n" in note for note in notes)
