"""The Modelfile's Go template, rendered by a small reading of Go's rules, gives the prompt that was trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny_model

from openbezoar.dialogue.prompt import Formatter
from openbezoar.publishing.ollama import go_template, modelfile, pieces_of
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Turn

TALKS = (
    (Turn("user", "Hi"),),
    (Turn("system", "Be brief."), Turn("user", "Name {{ three }} things.\n\n- one")),
    (Turn("user", "One?"), Turn("assistant", "1\n\n"), Turn("user", "Two?")),
    (
        Turn("system", 'Say "no".'),
        Turn("user", "a"),
        Turn("assistant", "b"),
        Turn("user", "c"),
        Turn("assistant", "d"),
        Turn("user", "e"),
    ),
    (Turn("user", "🙂 ünï"), Turn("assistant", "### Response:\n"), Turn("user", "\\n $x")),
)
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<s>system\nYou are kind.</s>\n' }}{% endif"
    " %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<s>assistant\n' }}{% endif %}"
)


def go(template: str, messages: Sequence[dict[str, str]]) -> str:
    """What Go's text/template makes of the part of its language that the Modelfile uses (no trim markers)."""
    pieces = re.split(r"(\{\{.*?\}\})(?!\})", template)
    program, rest = _block(iter([p for p in pieces if p]))
    assert rest is None
    return _run(program, {"$": {"Messages": messages}, ".": {"Messages": messages}})


def _block(pieces: Iterator[str]) -> tuple[list[Any], str | None]:
    """Nested statements up to an 'end' or 'else', which is given back."""
    found: list[Any] = []
    for piece in pieces:
        action = piece[2:-2].strip() if piece.startswith("{{") else None
        if action is None:
            found.append(("text", piece))
        elif action == "end" or action.startswith("else"):
            return found, action
        elif action.startswith("if "):
            branches, condition = [], action[3:]
            while True:
                body, stop = _block(pieces)
                branches.append((condition, body))
                if stop == "end":
                    break
                assert stop is not None
                condition = stop[8:] if stop.startswith("else if ") else "true"
            found.append(("if", branches))
        elif action.startswith("range "):
            body, stop = _block(pieces)
            assert stop == "end"
            found.append(("range", re.fullmatch(r"range (\$\w+), (\$\w+) := (.+)", action), body))
        else:
            found.append(("do", action))
    return found, None


def _run(program: list[Any], scope: dict[str, Any]) -> str:
    out = ""
    for kind, what, *more in program:
        if kind == "text":
            out += what
        elif kind == "range":
            for place, item in enumerate(_value(what[3], scope)):
                out += _run(more[0], {**scope, what[1]: place, what[2]: item, ".": item})
        elif kind == "if":
            out += next((_run(body, dict(scope)) for condition, body in what if _value(condition, scope)), "")
        elif assigned := re.fullmatch(r"(\$\w+) := (.+)", what):
            scope[assigned[1]] = _value(assigned[2], scope)
        else:
            out += str(_value(what, scope))
    return out


def _value(text: str, scope: dict[str, Any]) -> Any:
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+', text)

    def call() -> Any:
        name, values = tokens[0], []
        while tokens and tokens[0] != ")":
            values.append(one())
        if name == "eq":
            return values[1] == values[2]
        if name == "ne":
            return values[1] != values[2]
        if name == "and":
            return all(values[1:])
        if name == "not":
            return not values[1]
        if name == "len":
            return len(values[1])
        if name == "slice":
            return values[1][values[2] :]
        assert len(values) == 1, f"{text}: no such function"
        return values[0]

    def one() -> Any:
        token = tokens.pop(0)
        if token == "(":
            value = call()
            assert tokens.pop(0) == ")"
            return value
        if token.startswith('"'):
            return token[1:-1]
        if token.isdigit():
            return int(token)
        if token.startswith("$."):
            return scope["$"][token[2:]]
        if token.startswith("$"):
            return scope[token]
        if token.startswith("."):
            return scope["."][{"Role": "role", "Content": "content"}.get(token[1:], token[1:])]
        return token == "true" or token

    return call()


def as_ollama(template: str, system: str, turns: Sequence[Turn]) -> str:
    """A chat request as Ollama renders it: the Modelfile's system message comes first where the request has none."""
    given = [{"role": "system", "content": system}] if system and turns[0].role != "system" else []
    return go(template, [*given, *({"role": t.role, "content": t.content} for t in turns)])


@pytest.fixture(
    params=[(kind, bos) for kind in ("openbezoar", "chatml", "no end", "own system") for bos in (False, True)], ids=str
)
def formatter(request: pytest.FixtureRequest, tmp_path: Path) -> Formatter:
    from transformers import AutoTokenizer

    kind, bos = request.param
    folder = save_tiny_model(tmp_path / "m", bos=bos)
    (tmp_path / "chatml.jinja").write_text(CHATML)
    specs = {
        "openbezoar": PromptSpec(),
        "chatml": PromptSpec(template=str(tmp_path / "chatml.jinja")),
        "no end": PromptSpec(append_eos=False),
        "own system": PromptSpec(template=str(tmp_path / "chatml.jinja"), system="Count to {{ 3 }}."),
    }
    return Formatter(AutoTokenizer.from_pretrained(folder), specs[kind])


def test_ollama_renders_the_trained_prompt(formatter: Formatter) -> None:
    pieces = pieces_of(formatter)
    assert pieces is not None
    template = go_template(pieces)
    for talk in TALKS:
        wanted = formatter.prompt_text(talk)
        if formatter.adds_bos:
            assert wanted.startswith("<s>")
            wanted = wanted.removeprefix("<s>")  # Ollama puts the token there by itself
        assert as_ollama(template, pieces.default_system, talk) == wanted == pieces.render(talk)


def test_an_answer_begun_by_the_user_is_gone_on_with(formatter: Formatter) -> None:
    pieces = pieces_of(formatter)
    assert pieces is not None
    begun = (*TALKS[0], Turn("assistant", "The an"))
    assert (
        as_ollama(go_template(pieces), pieces.default_system, begun)
        == pieces.render(begun)
        == pieces.render(TALKS[0]) + "The an"
    )


def test_the_modelfile_names_the_file_the_prompt_and_what_to_stop_at(tiny: Path) -> None:
    from transformers import AutoTokenizer

    formatter = Formatter(AutoTokenizer.from_pretrained(tiny), PromptSpec())
    pieces = pieces_of(formatter)
    assert pieces is not None
    text = modelfile("M-Q8_0.gguf", formatter, pieces, name="M", licence="mit")
    assert text.splitlines()[1] == "FROM ./M-Q8_0.gguf"
    (template,) = re.findall(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    (system,) = re.findall(r'^SYSTEM """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    assert as_ollama(template, system, TALKS[2]) == formatter.prompt_text(TALKS[2])
    assert re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE) == [
        "</s>",
        "### System:",
        "### Instruction:",
        "### Response:",
    ]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }} {{ m['content'] }}\n{% endfor %}",
        (
            "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}[{{"
            " m['content'] }}]{% endfor %}"
        ),
        "{{ messages | length }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_that_is_not_made_of_roles_and_texts_is_left_to_ollama(
    tiny: Path, tmp_path: Path, template: str
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "odd.jinja").write_text(template)
    formatter = Formatter(AutoTokenizer.from_pretrained(tiny), PromptSpec(template=str(tmp_path / "odd.jinja")))
    assert pieces_of(formatter) is None
    text = modelfile("M.gguf", formatter, None, name="M", licence="mit")
    assert "TEMPLATE" not in text and "SYSTEM" not in text and "cannot be written" in text
