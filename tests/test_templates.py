"""Chat templates: the one that is meant, rendered as transformers renders it, within bounds, and
one line for whatever is wrong with it.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST
from families import GEMMA2, GPT_OSS, LLAMA3, MISTRAL, ODD, QWEN3, SILENT, TEMPLATES, with_template
from jinja2 import TemplateError
from test_calls import Fake, remembered

from openbezoar.dialogue.prompt import FOLDED, Formatter
from openbezoar.dialogue.templates import WORK, chosen, render
from openbezoar.engine import execution, graph
from openbezoar.errors import ModelError
from openbezoar.llm import Sampling
from openbezoar.models.references import Checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import load
from openbezoar.rows.records import Counts, Example, Turn
from openbezoar.training.encode import Encoder
from openbezoar.verbs.release.work import write_tokenizer

OWN = PromptSpec(template="own")
TALK = [Turn("user", " What is it? "), Turn("assistant", "\nIt is\na thing.\n"), Turn("user", "Why? <b>&\"'")]


def messages(turns: list[Turn]) -> list[dict[str, str]]:
    return [turn.as_dict() for turn in turns]


# ------------------------------------------------------------------------ as transformers


@pytest.mark.parametrize("name", [*TEMPLATES, "odd"])
@pytest.mark.parametrize("generation", [True, False])
def test_a_template_is_rendered_as_transformers_renders_it(name: str, generation: bool, tiny: Path) -> None:
    template = (
        {**TEMPLATES, "odd": ODD}[name]
        .replace("strftime_now('%d %b %Y')", "strftime_now('%%')")
        .replace("strftime_now('%Y-%m-%d')", "strftime_now('%%')")
    )
    tokenizer = with_template(tiny, template)
    for turns in (TALK[:1], TALK, TALK[:2]):
        theirs = tokenizer.apply_chat_template(messages(turns), tokenize=False, add_generation_prompt=generation)
        assert (
            render(
                template, messages(turns), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, generation
            )
            == theirs
        )


def test_what_a_template_calls_wrong_is_wrong_here_too() -> None:
    for template in (
        "{{ raise_exception('No.') }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.x }}",
        "{{ namespace(_x=1) }}",
        "{{ nothing.more }}",
    ):
        with pytest.raises(TemplateError):
            render(template, messages(TALK), {}, True)


# -------------------------------------------------------------------------- which one


def test_of_several_templates_the_default_is_the_prompt_and_what_a_release_carries(tiny: Path, tmp_path: Path) -> None:
    several = {"default": TEMPLATES["chatml"], "tool_use": "{{ 'tools' }}"}
    for number, form in enumerate((several, [{"name": name, "template": text} for name, text in several.items()])):
        folder = tmp_path / f"base-{number}"
        shutil.copytree(tiny, folder)
        (folder / "chat_template.jinja").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": form}))
        _is_chatml(folder, tmp_path / f"out-{number}")
    saved = with_template(tiny, several)  # as transformers 5 writes it: the others in a folder of their own
    shutil.copytree(tiny, tmp_path / "base-2")
    saved.save_pretrained(str(tmp_path / "base-2"))
    assert any((tmp_path / "base-2").glob("*/tool_use.jinja"))
    _is_chatml(tmp_path / "base-2", tmp_path / "out-2")


def _is_chatml(base: Path, out: Path) -> None:
    formatter = write_tokenizer(Checkpoint("m", str(base), (), "none", "float32", OWN), out)
    assert formatter.prompt_text([Turn("user", "Hi")]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (out / "chat_template.jinja").read_text() == formatter.jinja == TEMPLATES["chatml"]
    assert not list(out.glob("*/*.jinja"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"a": "x", "b": "y"}, "several chat templates \\('a', 'b'\\) and none is the default"),
        ([{"name": "default"}], "no text"),
        ({"default": ["x"]}, "no text"),
        (7, "no text"),
    ],
)
def test_templates_of_which_none_is_meant_are_one_line(template: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        chosen(template, "model")


def test_a_single_named_template_is_the_template() -> None:
    assert (
        chosen({"tool_use": "x"}, "model") == "x"
        and chosen({}, "model") is None
        and chosen("", "model") is None
        and chosen(None, "model") is None
    )


# ----------------------------------------------------------------------------- bounds

DOUBLING = (
    "{{% set ns = namespace(x={}) %}}{{% for i in range(100) %}}{{% set ns.x = {} %}}{{% endfor %}}{{{{ ns.x }}}}"
)
HOSTILE = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in 'ab' * 50000 %}{{ j }}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in range(100000) %}" + "y" * 100_000 + "{% endfor %}",
    "{% set x = 'ab' * 1000000 %}{% for i in range(100000) %}{% set y = x[1:] == x[2:] %}{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    DOUBLING.format("'ab'", "ns.x ~ ns.x"),
    DOUBLING.format("'ab'", "ns.x + ns.x"),
    DOUBLING.format("3", "ns.x * ns.x"),
    DOUBLING.format("[1]", "[ns.x, ns.x]"),
    DOUBLING.format("[1]", "ns.x + ns.x"),
    DOUBLING.format("{}", "{1: ns.x, 2: ns.x}"),
    DOUBLING.format("'ab'", "ns.x.replace('a', ns.x)"),
    DOUBLING.format("'ab'", "ns.x | replace('', ns.x)"),
    DOUBLING.format("'ab'", "[ns.x, ns.x] | join(ns.x)"),
    DOUBLING.format("'ab'", "'%s%s' % (ns.x, ns.x)"),
    DOUBLING.format("'ab'", "'{0}{0}'.format(ns.x)"),
    DOUBLING.format("['ab' * 1000]", "ns.x * 2").replace("ns.x }}", "ns.x | map('upper') | list | length }}"),
    "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ 'x'.zfill(10000000000) }}",
    "{{ 'a\tb'.expandtabs(10000000000) }}",
    "{{ 'a\n' | indent(10000000000) }}",
    "{{ 'a b' | wordwrap(1, wrapstring='x' * 1000000) * 9 }}",
    "{{ 'x' | batch(10000000000) | list }}",
    "{{ messages | tojson(indent=10000000000) }}",
    "{{ '%10000000000d' % 1 }}{{ '%*d' % (10000000000, 1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10000000000) }}",
    "{{ strftime_now('%010000000000d') }}",
    "{{ (1).to_bytes(10000000000, 'big') }}",
    "{{ lipsum(10000000) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 100_000 + "1 }}",
    "{% if " + "not " * 20_000 + "x %}{% endif %}",
    "{% include 'x' %}",
    "x" * 2_000_000,
]  # fmt: skip


@pytest.mark.parametrize("template", HOSTILE, ids=lambda t: t[:40])
def test_a_template_that_would_not_end_or_build_too_much_is_one_line_at_once(template: str, tiny: Path) -> None:
    begun = time.thread_time()
    with pytest.raises(ModelError, match=r"refuses a conversation of user \(") as told:
        Formatter(with_template(tiny, template), OWN).prompt_ids([Turn("user", "Hi")])
    assert time.thread_time() - begun < 20 and "\n" not in str(told.value) and len(str(told.value)) < 600


def test_a_long_conversation_has_the_room_it_needs() -> None:
    """A thousand turns, and one turn of a million characters, in the template that looks back most."""
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"Turn {i}, which says something."} for i in range(1001)]
    assert render(QWEN3, talk, {}, True).count("<|im_start|>") == 1002
    assert len(render(LLAMA3, [{"role": "user", "content": "long " * 200_000}], {"bos_token": ""}, True)) > 990_000
    looks_back = (
        "{% for m in messages %}{% for n in messages %}{% if n.role == 'user' and loop.index0 < messages | length - 1"
        " %}{% endif %}{% endfor %}{% endfor %}ok"
    )
    assert render(looks_back, talk[:200], {}, True) == "ok"
    assert WORK < 10**8


# ------------------------------------------------------------- what a template lacks


@pytest.mark.parametrize("template", [MISTRAL, GEMMA2, SILENT], ids=["refuses by its order", "refuses", "silent"])
def test_a_system_message_goes_before_the_first_question_where_the_template_has_no_place_for_it(
    template: str, tiny: Path
) -> None:
    formatter = Formatter(with_template(tiny, template), OWN)
    folded = [Turn("user", "Be brief.\n\nWhat?")]
    assert formatter.folds_system and formatter.prompt_text(
        [Turn("system", "Be brief."), Turn("user", "What?")]
    ) == formatter.prompt_text(folded)
    assert formatter.prompt_text([Turn("system", ""), Turn("user", "What?")]) == formatter.prompt_text(
        [Turn("user", "What?")]
    )
    assert sum("system message" in note for note in formatter.notes) == 1
    own = Formatter(with_template(tiny, template), PromptSpec(template="own", system="Be brief."))
    assert own.prompt_text([Turn("user", "What?")]) == formatter.prompt_text(folded)
    again = Formatter(with_template(tiny, own.jinja), OWN)  # what a release carries
    assert again.prompt_text([Turn("user", "What?")]) == formatter.prompt_text(folded) and not again.folds_system


def test_templates_with_a_place_for_it_keep_their_own(tiny: Path) -> None:
    for name in ("chatml", "qwen3", "r1", "llama3", "gpt-oss"):
        formatter = Formatter(with_template(tiny, TEMPLATES[name]), OWN)
        assert not formatter.folds_system and "Be brief." in formatter.prompt_text(
            [Turn("system", "Be brief."), Turn("user", "What?")]
        )


@pytest.mark.parametrize("template", [LLAMA3, GPT_OSS], ids=["llama3", "gpt-oss"])
def test_the_day_is_always_the_same_and_in_the_release_too(template: str, tiny: Path) -> None:
    formatter = Formatter(with_template(tiny, template), OWN)
    text = formatter.prompt_text([Turn("user", "What?")])
    assert ("26 Jul 2024" in text) or ("2024-07-26" in text)
    assert any("date" in note for note in formatter.notes)
    released = with_template(tiny, formatter.jinja)
    assert (
        released.apply_chat_template([{"role": "user", "content": "What?"}], tokenize=False, add_generation_prompt=True)
        == text
    )
    assert not any("date" in note for note in Formatter(released, OWN).notes)


def test_a_template_that_ignores_that_an_answer_is_asked_for_gets_its_opening(tiny: Path) -> None:
    formatter = Formatter(with_template(tiny, TEMPLATES["ignores"]), OWN)
    assert formatter.prompt_text([Turn("user", "What?")]) == "USER: What?\nASSISTANT:" and formatter.lead == " "
    released = with_template(tiny, formatter.jinja)
    for generation in (True, False):
        asked = released.apply_chat_template(
            [{"role": "user", "content": "What?"}], tokenize=False, add_generation_prompt=generation
        )
        assert asked == "USER: What?\n" + "ASSISTANT:" * generation


def test_conversations_whose_system_message_moved_are_counted(tiny: Path, tmp_path: Path) -> None:
    """In training, and where a local teacher is asked; an empty message is none."""
    formatter = Formatter(with_template(tiny, GEMMA2), OWN)
    counts = Counts()
    encoder = Encoder(formatter, 200, "drop", counts)
    for system in ("Be brief.", ""):
        assert encoder.encode(Example("r", (Turn("system", system), Turn("user", "What?")), "That.")) is not None
    assert counts.by_reason == {FOLDED: 1}
    teacher = remembered(tmp_path, Fake(), "row")
    teacher._formatter = lambda: formatter
    teacher.chat(
        [[Turn("system", "Be brief."), Turn("user", "What?")], [Turn("system", ""), Turn("user", "Why?")]],
        Sampling(4),
        [0, 0],
    )
    assert teacher.spoken.counts.by_reason == {f"m: {FOLDED}": 1}


def test_training_tells_what_a_template_does_otherwise(tiny: Path, tmp_path: Path) -> None:
    """Once, while it runs, and in the manifest's numbers."""
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    (base / "chat_template.jinja").write_text(TEMPLATES["r1"])
    rows = [{"id": f"r{i}", "instruction": f"Say {i}.", "response": f"It is {i}."} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"sft": "rows.jsonl", "model": "base", "quantize": "none", "max_steps": 1, "heldout_every": 4, **FAST}
    recipe = {
        "name": "t",
        "models": {"base": {"model": str(base), "dtype": "float32"}},
        "prompt": {"template": "own"},
        "steps": {"s": step},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    said: list[str] = []
    progress = PlainProgress(quiet=True)
    progress.say = said.append  # type: ignore[method-assign]
    execution.execute(
        graph.build(load(tmp_path / "recipe.yaml"), tmp_path / "recipe.yaml", tmp_path / "runs"), progress
    )
    numbers = json.loads((tmp_path / "runs" / "t" / "s" / "manifest.json").read_text())["numbers"]
    assert [note for note in numbers["prompt_notes"] if "opened thought" in note] and sum(
        "opened thought" in line for line in said
    ) == 1


def test_turns_that_a_template_will_not_have_are_one_line(tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"refuses a conversation of user, user \(Roles must alternate"):
        Formatter(with_template(tiny, MISTRAL), OWN).prompt_ids([Turn("user", "One."), Turn("user", "Two.")])
