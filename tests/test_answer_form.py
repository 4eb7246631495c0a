"""Whole conversations: prompt, answer and end are what the template writes once the answer is
there, or the difference is told.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from families import TEMPLATES, with_template

from openbezoar.dialogue.prompt import Formatter
from openbezoar.dialogue.templates import render
from openbezoar.errors import ModelError
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Turn

OWN = PromptSpec(template="own")
TALKS = (
    (Turn("user", "Name a colour."),),
    (Turn("system", "Be brief."), Turn("user", "Name a colour.")),
    (Turn("user", "Name one."), Turn("assistant", "Blue."), Turn("user", "And another?")),
)
# The system message goes before the last question, if that is the last turn.
MISTRAL_3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rule = messages[0].content %}{% set messages ="
    " messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (rule + '\\n\\n' if"
    " loop.last and rule is defined else '') + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{%"
    " endif %}{% endfor %}"
)
LEADS = {
    "qwen3": "<think>\n\n</think>\n\n",
    "mistral": " ",
    "gpt-oss": "<|channel|>final<|message|>",
    "ignores": " ",
    "r1": "\n</think>\n\n",
}
TOLD = {"qwen3", "gpt-oss", "r1"}  # a lead that is more than a blank


def formatter(tiny: Path, name: str) -> Formatter:
    return Formatter(with_template(tiny, TEMPLATES[name]), OWN)


def trained(made: Formatter, turns: tuple[Turn, ...], answer: str) -> str:
    """The text whose ids are trained."""
    return made.prompt_text(turns) + made.form.written(answer) + made.end_text


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "r1"])
@pytest.mark.parametrize("answer", ["Green.", "\n Green, \n as\n\ngrass.\n\n", "  Green"])
def test_what_is_trained_is_the_template_s_own_text_of_the_finished_conversation(
    name: str, answer: str, tiny: Path
) -> None:
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
    assert trained(made, TALKS[2], "Green.").endswith(
        "<|Assistant|>Blue.</s><|User|>And another?<|Assistant|><think>\n\n</think>\n\nGreen.</s>"
    )


@pytest.mark.parametrize("given", ["<think>\nGrass is.\n</think>\n\nGreen.", "Grass is.\n</think>\n\nGreen."])
def test_an_answer_with_thoughts_of_its_own_has_them_in_place_of_the_empty_one(given: str, tiny: Path) -> None:
    assert trained(formatter(tiny, "r1"), TALKS[0], given).endswith(
        "<|Assistant|><think>\nGrass is.\n</think>\n\nGreen.</s>"
    )
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
        (
            TEMPLATES["chatml"]
            .replace("'<|im_end|>\\n' }}{% endfor", "'<|im_end|>\\n' }}{% if not loop.last %}{% endif %}{% endfor")
            .replace("{% for m in messages %}", "{{ 'of ' ~ messages | length }}{% for m in messages %}"),
            "otherwise than its prompt",
        ),
        (MISTRAL_3, "with a system message, the chat template writes a finished conversation otherwise"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves an answer out"),
        (
            (
                "{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt"
                " %}assistant:{% endif %}"
            ),
            "writes no end",
        ),
        (
            TEMPLATES["chatml"].replace(
                "m.content +",
                "(('(late) ' if loop.index > 2 else '') + m.content if m.role == 'assistant' else m.content) +",
            ),
            "otherwise with earlier turns",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_told_in_a_line(template: str, said: str, tiny: Path) -> None:
    notes = Formatter(with_template(tiny, template), OWN).notes
    assert any(said in note for note in notes) and not any("\n" in note for note in notes)


PARTS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% for part in m.content %}{% if part.type == 'text' %}{{"
    " part.text }}{% endif %}{% endfor %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{%"
    " endif %}"
)
FIRST_PART = PARTS.replace(
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}",
    "{{ m['content'][0]['text'] }}",
)


@pytest.mark.parametrize(
    "template",
    [PARTS, FIRST_PART, "{% if messages[0].role == 'system' %}{{ raise_exception('No.') }}{% endif %}" + PARTS],
)
def test_a_template_that_reads_content_as_parts_gets_parts(template: str, tiny: Path) -> None:
    """The words were left out of every prompt, or it was called a template that refuses a user's message."""
    tokenizer = with_template(tiny, template)
    made = Formatter(tokenizer, OWN)
    assert (
        trained(made, TALKS[2], "Green.")
        == "<|user|>Name one.<|end|><|assistant|>Blue.<|end|><|user|>And another?<|end|><|assistant|>Green.<|end|>"
    )
    folded = "<|user|>Be brief.\n\nName" if made.folds_system else "<|system|>Be brief.<|end|><|user|>Name"
    assert made.prompt_text(TALKS[1]) == f"{folded} a colour.<|end|><|assistant|>"
    theirs = tokenizer.apply_chat_template(
        [t.as_dict() for t in TALKS[2]], chat_template=made.jinja, tokenize=False, add_generation_prompt=True
    )
    assert theirs == made.prompt_text(TALKS[2])
    assert any("list of parts" in note for note in made.notes)


def test_a_template_that_leaves_out_the_user_s_words_is_refused_and_one_that_leaves_out_earlier_turns_is_told(
    tiny: Path,
) -> None:
    with pytest.raises(ModelError, match="leaves the user's words out of its prompt"):
        _ = Formatter(
            with_template(tiny, "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}Answer: "), OWN
        ).notes
    notes = Formatter(with_template(tiny, "{{ messages[-1].content + '\n' }}"), OWN).notes
    assert any(
        "with earlier turns, the chat template leaves user and assistant out of its prompt" in note for note in notes
    )


@pytest.mark.parametrize(
    ("turn", "opening", "end"),
    [
        ("'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'", "<|im_start|>assistant\n", "<|im_end|>"),
        ("m.role.upper() + ': ' + m.content + (eos_token if m.role == 'assistant' else '\n')", "ASSISTANT: ", "</s>"),
    ],
)
def test_an_answer_ends_before_the_opening_of_another(turn: str, opening: str, end: str, tiny: Path) -> None:
    """Such templates do not ask whether an answer is to follow; a model was trained to go on with
    its next answer's opening.
    """
    made = Formatter(with_template(tiny, f"{{% for m in messages %}}{{{{ {turn} }}}}{{% endfor %}}{opening}"), OWN)
    assert made.end_text == end and trained(made, TALKS[0], "Green.").endswith("Green." + end)
    assert any("opens an answer after every conversation" in note for note in made.notes)


def test_the_end_of_a_template_whose_questions_bring_the_opening_is_whole(tiny: Path) -> None:
    """As Phi 4's."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}<|end|><|a|>{% else %}{{ m.content"
        " }}<|end|>{% endif %}{% endfor %}"
    )
    assert Formatter(with_template(tiny, template), OWN).end_text == "<|end|>"


@pytest.mark.parametrize("filter_", ["e", "capitalize", "replace('\n\n', '\n')", "truncate(20)"])
def test_a_template_that_changes_an_answer_s_words_is_told(filter_: str, tiny: Path) -> None:
    notes = Formatter(
        with_template(tiny, TEMPLATES["chatml"].replace("m.content", f"m.content | {filter_}")), OWN
    ).notes
    assert any("changes the words of an answer" in note for note in notes)


def test_thoughts_with_other_marks_than_the_template_s_lead_stand_after_it(tiny: Path) -> None:
    """gpt-oss's channel was left out where an answer began with R1's mark."""
    assert trained(formatter(tiny, "gpt-oss"), TALKS[0], "<think>\nGrass.\n</think>\n\nGreen.").endswith(
        "<|channel|>final<|message|><think>\nGrass.\n</think>\n\nGreen.<|return|>"
    )
