"""Ollama's Modelfile: the GGUF with exactly the trained prompt.

Ollama renders conversations with a Go template, not with the GGUF's Jinja one. The Go template
is put together from what the trained template writes around each role's texts, found by
rendering probes, and is held against the trained template over whole conversations. A template
that is not of that form (one that depends on more than roles and texts) is left to Ollama.
Syntax: https://docs.ollama.com/modelfile and Go's text/template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from openbezoar.dialogue.prompt import Formatter
from openbezoar.gguf.vocabulary import begins_with_bos
from openbezoar.rows.records import Turn

_S, _U, _A, _V = "\u2021sys\u2021", "\u2021ask\u2021", "\u2021say\u2021", "\u2021more\u2021"
CHECKED = (
    (Turn("user", "One?"),),
    (Turn("system", "Be brief."), Turn("user", "One?\n\nTwo?")),
    (
        Turn("user", "One?"),
        Turn("assistant", "1"),
        Turn("user", "Two?"),
        Turn("assistant", "2\n3"),
        Turn("user", "Three?"),
    ),
    (Turn("system", 'Be "kind".'), Turn("user", "One?"), Turn("assistant", "1"), Turn("user", "Two?")),
)


@dataclass(frozen=True)
class Pieces:
    """What a template writes before and after each role's text, in front of an answer, and the
    system text it adds by itself.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    default_system: str

    def render(self, turns: Sequence[Turn]) -> str:
        """The prompt of a conversation as the Go template gives it; an answer at the end is left
        open, to be gone on with.
        """
        if self.default_system and turns[0].role != "system":
            turns = (Turn("system", self.default_system), *turns)
        text = ""
        for place, turn in enumerate(turns, 1):
            before, after = {"system": self.system, "user": self.user, "assistant": self.assistant}[turn.role]
            if turn.role == "system" and not turn.content:
                continue
            text += before + turn.content + ("" if turn.role == "assistant" and place == len(turns) else after)
        return text + (self.assistant[0] if turns[-1].role != "assistant" else "")


def pieces_of(formatter: Formatter) -> Pieces | None:
    """The trained template as pieces; None if it is not made of such."""
    try:
        pieces = _probe(formatter)
    except Exception:  # a template may refuse a probe by any exception, as those without a system role do
        return None
    if pieces is None or any(pieces.render(turns) != _text(formatter, turns) for turns in CHECKED):
        return None
    return pieces


def _text(formatter: Formatter, turns: Sequence[Turn]) -> str:
    """A trained prompt without the beginning-of-sequence token that Ollama puts there itself."""
    text = formatter.prompt_text(turns)
    return text.removeprefix(formatter.tokenizer.bos_token) if begins_with_bos(formatter) else text


def _probe(formatter: Formatter) -> Pieces | None:
    whole = _text(formatter, (Turn("system", _S), Turn("user", _U), Turn("assistant", _A), Turn("user", _V)))
    match = re.fullmatch(f"(.*){_S}(.*){_U}(.*){_A}(.*){_V}(.*)", whole, re.DOTALL)
    if match is None:
        return None
    before_system, after_system, after_user, after_assistant, tail = match.groups()
    head = _text(formatter, (Turn("user", _U),)).partition(_U)[0]
    no_system = _text(formatter, (Turn("system", ""), Turn("user", _U))).partition(_U)[0]
    # Where one text ends and the next begins is free within what both have in common.
    shared = _common_end(after_system, after_assistant)
    user = next((h for h in (head, no_system) if h and shared.endswith(h)), _without_end(formatter, shared))
    answer = _without_end(formatter, tail)
    if not (after_user.endswith(answer) and tail.endswith(answer)):
        return None
    system = (before_system, after_system[: len(after_system) - len(user)])
    opening = head.removesuffix(user)
    if opening and not (opening.startswith(system[0]) and opening.endswith(system[1])):
        return None
    default = opening[len(system[0]) : len(opening) - len(system[1])] if opening else ""
    return Pieces(
        system,
        (user, tail[: len(tail) - len(answer)]),
        (answer, after_assistant[: len(after_assistant) - len(user)]),
        default,
    )


def _common_end(a: str, b: str) -> str:
    """The longest text that both end with."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(a), reversed(b), strict=False)))
    return a[len(a) - same :]


def _without_end(formatter: Formatter, text: str) -> str:
    """A text without the end of the turn before it."""
    return text.removeprefix(formatter.end_text).lstrip("\n")


def go_template(pieces: Pieces) -> str:
    """The pieces as a Go template over ``.Messages``."""
    system, user, answer = (tuple(map(_literal, pair)) for pair in (pieces.system, pieces.user, pieces.assistant))
    return (
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{{{{ if eq .Role "system" }}}}{{{{ if .Content }}}}{system[0]}{{{{ .Content }}}}{system[1]}{{{{ end }}}}'
        f'{{{{ else if eq .Role "user" }}}}{user[0]}{{{{ .Content }}}}{user[1]}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer[0]}{{{{ .Content }}}}{{{{ if not $last }}}}{answer[1]}{{{{ end'
        " }}{{ end }}"
        f'{{{{ if and $last (ne .Role "assistant") }}}}{answer[0]}{{{{ end }}}}{{{{ end }}}}'
    )


def _literal(text: str) -> str:
    """Text that a Go template writes as it is."""
    return text.replace("{{", '{{ "{{" }}')


def modelfile(gguf: str, formatter: Formatter, pieces: Pieces | None, *, name: str, licence: str) -> str:
    """The Modelfile's text. A part that cannot be quoted, because it holds three quotes, leaves the
    prompt to Ollama.
    """
    lines = [f"# ollama create {name.lower()} -f Modelfile", f"FROM ./{gguf}"]
    quoted = (
        []
        if pieces is None
        else [
            ("TEMPLATE", go_template(pieces)),
            *([("SYSTEM", pieces.default_system)] if pieces.default_system else []),
        ]
    )
    if quoted and not any('"""' in text or text.endswith('"') for _, text in quoted):
        lines += [f'{key} """{text}"""' for key, text in quoted]
    else:
        lines.append(
            "# The trained template cannot be written as a Go template; Ollama takes what it makes of the GGUF's own."
        )
    lines += [
        f'PARAMETER stop "{stop}"'
        for stop in dict.fromkeys(filter(None, (formatter.end_text.strip("\n"), *formatter.stop)))
        if '"' not in stop
    ]
    return "\n".join([*lines, f'LICENSE """{licence}"""', ""])
