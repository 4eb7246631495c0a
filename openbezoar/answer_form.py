"""How a chat template writes an answer: held against its own rendering of finished conversations. Reads and writes nothing.

A prompt is rendered up to where the answer begins; what is trained is the prompt, the answer
and its end. Whether that is what the template writes once the answer is there is found by
rendering probes: a template may put something between the two (a space, an empty thought, a
channel's name), may trim the answer, or may have begun a thought in the prompt that it leaves
out afterwards. The first two are taken over, the last is closed at once, and whatever else
differs is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from openbezoar import thoughts
from openbezoar.errors import ModelError
from openbezoar.records import Turn

Render = Callable[[Sequence[Turn], bool], str]
"""(conversation, whether an answer is to follow) → text"""

ASK, SAY = "\u2021ask", "\u2021say"
SPACED = f"\n \n{SAY}\n \n"  # of which a template may take either kind of blank off either end
ONE = (Turn("user", ASK),)
PROBES = {
    "with a system message": (Turn("system", "\u2021rule"), *ONE),
    "with earlier turns": (*ONE, Turn("assistant", "\u2021told"), Turn("user", "\u2021more")),
}
_TRIMS: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "both ends": str.strip,
    "line feeds": lambda text: text.strip("\n"),
    "the beginning": str.lstrip,
    "the end": str.rstrip,
    "line feeds at the beginning": lambda text: text.lstrip("\n"),
    "line feeds at the end": lambda text: text.rstrip("\n"),
}


@dataclass(frozen=True)
class AnswerForm:
    """lead: text between prompt and answer. trims: what is taken off an answer's ends, by its name here. end: what closes it.
    opened: the mark of a thought that prompts end in. notes: differences to be told, a line each."""

    lead: str = ""
    trims: str = ""
    end: str = ""
    opened: str = ""
    notes: tuple[str, ...] = ()

    def written(self, answer: str) -> str:
        """An answer as it follows the prompt, without its end. One that brings thoughts of its own stands in for an empty thought."""
        text = _TRIMS[self.trims](answer)
        if mark := thoughts.begins(text):
            if self.opened:  # the prompt has it already
                return text[len(mark) :].lstrip("\n")
            return text if thoughts.begins(self.lead) else self.lead + text
        return text if self.opened and thoughts.closes(text) else self.lead + text


def form_of(render: Render, eos: str) -> AnswerForm:
    """The form of a template's answers. eos: what closes one where the template writes nothing after it."""
    form = _form(render, ONE)
    notes = list(form.notes)
    if not form.end:
        notes.append(f"the chat template writes no end after an answer; {eos!r} is trained there")
    if form.opened:
        notes.append(f"the chat template's prompts end in an opened thought ({form.opened.strip()}); answers are trained after closing it without a thought")
    elif form.lead.strip():
        notes.append(f"the chat template writes {form.lead!r} before an answer; it is trained as the answer's beginning")
    for name, turns in PROBES.items():
        try:
            other = _form(render, turns)
        except ModelError:  # it refuses such a conversation, and will say so where one is rendered
            continue
        if not form.notes:
            notes += [f"{name}, {note}" for note in other.notes]
        if (other.lead, other.end, other.opened) != (form.lead, form.end, form.opened):
            notes.append(
                f"the chat template writes an answer otherwise {name}: {other.lead!r} before it and {other.end!r} after it, not {form.lead!r} and {form.end!r}, which are trained"
            )
    return replace(form, end=form.end or eos, trims=_trims(render, form), notes=tuple(dict.fromkeys(notes)))


def _form(render: Render, turns: Sequence[Turn]) -> AnswerForm:
    prompt, whole = render(turns, True), render((*turns, Turn("assistant", SAY)), False)
    before, found, after = whole.rpartition(SAY)
    if not found:
        return AnswerForm(notes=("the chat template leaves an answer out of a finished conversation; answers are trained right after its prompt",))
    end = after.rstrip("\n")  # generation stops before a line feed after the end-of-turn token
    if before.startswith(prompt):
        return AnswerForm(before[len(prompt) :], end=end)
    opened = thoughts.opening(prompt)
    if opened and before.startswith(prompt[: len(prompt) - len(opened)]):
        return AnswerForm(thoughts.closing(opened), end=end, opened=opened)
    # The beginnings differ. What follows the last question may still be the same.
    ours, theirs = (text.rpartition(turns[-1].content)[2] for text in (prompt, before))
    lead = theirs[len(ours) :] if theirs.startswith(ours) else ""
    place = next((i for i, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), min(len(prompt), len(before)))
    note = f"the chat template writes a finished conversation otherwise than its prompt ({before[place:][:40]!r} where the prompt has {prompt[place:][:40]!r}); what is trained is the prompt"
    return AnswerForm(lead, end=end, opened=opened, notes=(note,))


def _trims(render: Render, form: AnswerForm) -> str:
    """The name of what the template takes off an answer's ends."""
    plain, spaced = (render((*ONE, Turn("assistant", answer)), False) for answer in (SAY, SPACED))
    before, _, after = plain.rpartition(SAY)
    return next((name for name, trim in _TRIMS.items() if before + trim(SPACED) + after == spaced), "")
