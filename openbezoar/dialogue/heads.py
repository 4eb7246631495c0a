"""What a foreign chat template lacks, written in front of it, so that it stays one text that a
release can carry. Reads and writes nothing.

- The day's date: a prompt that changed overnight would be another than the one that was trained,
  and than the one that answers are kept under. The template is told one fixed day.
- A system message, where the recipe has one of its own, or where the template has no place for
  any: it refuses the role, or passes over it in silence (Gemma 2, early Mistral). Then the
  message goes before the first user's, a blank line between, as Gemma 3's template does.
- Content as a list of parts, where the template reads none as a text (those of picture models):
  it would leave out every word, or fail.
- The opening of an answer, where the template ignores that one is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from openbezoar.dialogue.templates import TODAY, dates_asked, literal, render

RULE, ASK, SAY = "\u2021rule", "\u2021ask", "\u2021say"
SYSTEM = {"role": "system", "content": RULE}
USER = {"role": "user", "content": ASK}
ANSWER = {"role": "assistant", "content": SAY}

_DEFAULT = """\
{%- if not messages or messages[0]['role'] != 'system' %}\
{% set messages = [{'role': 'system', 'content': SYSTEM}] + messages %}{% endif %}
"""
_FOLD = """\
{%- if messages and messages[0]['role'] == 'system' and not messages[0]['content'] %}{% set messages = messages[1:] %}\
{% elif messages|length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' \
and messages[0]['content'] is string and messages[1]['content'] is string %}\
{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] \
+ messages[2:] %}{% endif %}
"""
_DATE = """\
{%- macro strftime_now(format) %}{{ DATES.get(format, DAY) }}{% endmacro %}
"""
_PARTS = """\
{%- set whole = namespace(messages=[]) %}{% for m in messages %}\
{% set whole.messages = whole.messages + \
[dict(m, content=[{'type': 'text', 'text': m['content']}]) if m['content'] is string else m] %}{% endfor %}\
{% set messages = whole.messages %}
"""


@dataclass(frozen=True)
class Completed:
    """text: the template with what it lacked. folds_system: its system message goes into the first
    user's. notes: what was done, a line each.
    """

    text: str
    folds_system: bool
    notes: tuple[str, ...]


def complete(template: str, tokens: Mapping[str, Any], system: str | None) -> Completed:
    """A model's own template, made to render every conversation, and each always alike.

    system: the message of conversations that bring none; None leaves that to the template. A
    template that renders nothing at all is given back as it is: it says why when it is used.
    """
    heads, notes = "", []
    with dates_asked() as formats:
        prompt, parts = _rendered(template, tokens, [USER], True), ""
        if not has(prompt, ASK) and has(in_parts := _rendered(_PARTS + template, tokens, [USER], True), ASK):
            prompt, parts, template = in_parts, _PARTS, _PARTS + template
        ruled = _rendered(template, tokens, [SYSTEM, USER], True) if prompt is not None else None
    if prompt is None:
        return Completed(template, False, ())
    if formats:
        dates = ", ".join(f"{literal(f)}: {literal(TODAY.strftime(f))}" for f in formats)
        heads += _DATE.replace("DATES", f"{{{dates}}}").replace("DAY", literal(TODAY.isoformat()))
        notes.append(
            f"the chat template writes the day's date; here and in a release it is always {TODAY:%d %b %Y}, so that"
            " prompts do not change overnight"
        )
    if system is not None:
        heads += _DEFAULT.replace("SYSTEM", literal(system))
    if parts:
        notes.append("the chat template reads a message's content as a list of parts; it is given one text part")
    folds = not has(ruled, RULE) and has(_rendered(_FOLD + template, tokens, [SYSTEM, USER], True), RULE)
    if folds:
        heads += _FOLD
        notes.append(
            "the chat template has no place for a system message; it is put before the first user's message, with a"
            " blank line between"
        )
    if opening := _ignored_opening(template, tokens, prompt):
        template = template.removesuffix("\n") + f"{{{{ {literal(opening)} if add_generation_prompt else '' }}}}"
        notes.append(
            f"the chat template ignores that an answer is asked for; {opening!r}, which it writes before one, ends the"
            " prompt"
        )
    return Completed(heads + template, folds, tuple(notes))


def _ignored_opening(template: str, tokens: Mapping[str, Any], prompt: str) -> str:
    """What a template writes before an answer, but not where one is asked for; "" if there is no
    such text, or it is blank.
    """
    if prompt != _rendered(template, tokens, [USER], False):
        return ""
    before, mark, _ = (_rendered(template, tokens, [USER, ANSWER], False) or "").rpartition(SAY)
    # A space at the end belongs to the answer's first word in most vocabularies.
    return (
        before[len(prompt) :].rstrip(" ")
        if mark and before.startswith(prompt) and before[len(prompt) :].strip()
        else ""
    )


def has(text: str | None, words: str) -> bool:
    """Whether a rendered text has a probe's words, in capitals or not."""
    return text is not None and words.lower() in text.lower()


def _rendered(template: str, tokens: Mapping[str, Any], messages: list[dict[str, str]], generation: bool) -> str | None:
    try:
        return render(template, messages, tokens, generation)
    except TemplateError:
        return None
