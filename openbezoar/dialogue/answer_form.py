"""How a chat template writes an answer: held against its own rendering of finished conversations.
Reads and writes nothing.

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
from itertools import takewhile

from openbezoar.dialogue import thoughts
from openbezoar.dialogue.heads import has
from openbezoar.errors import ModelError
from openbezoar.rows.records import Turn

Render = Callable[[Sequence[Turn], bool], str]
"""(conversation, whether an answer is to follow) → text"""

ASK, SAY, MORE = "\u2021ask", "\u2021say", "\u2021more"
WORDS = f"{SAY} As\n\n  is: <b> & '1'."  # which a template has no business to change
SPACED = f"\n \n{WORDS}\n \n"  # of which a template may take either kind of blank off either end
ONE = (Turn("user", ASK),)
PROBES = {
    "with a system message": (Turn("system", "\u2021rule"), *ONE),
    "with earlier turns": (*ONE, Turn("assistant", "\u2021told"), Turn("user", MORE)),
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
    """lead: text between prompt and answer. trims: what is taken off an answer's ends, by its name
    here. end: what closes it. opened: the mark of a thought that prompts end in. reopens: whether
    another answer is opened after it. notes: differences to be told, a line each.
    """

    lead: str = ""
    trims: str = ""
    end: str = ""
    opened: str = ""
    reopens: bool = False
    notes: tuple[str, ...] = ()

    def written(self, answer: str) -> str:
        """An answer as it follows the prompt, without its end. One that brings thoughts of its own
        stands in for an empty thought.
        """
        text = _TRIMS[self.trims](answer)
        if mark := thoughts.begins(text):
            if self.opened:  # the prompt has it already
                return text[len(mark) :].lstrip("\n")
            return text if thoughts.begins(self.lead).strip() == mark.strip() else self.lead + text
        return text if self.opened and thoughts.closes(text) else self.lead + text


def form_of(render: Render, eos: str) -> AnswerForm:
    """The form of a template's answers. eos: what closes one where the template writes nothing after it."""
    form = _form(render, ONE, eos)
    notes = list(form.notes)
    trims = _trims(render)
    if trims is None:
        trims = ""
        notes.append("the chat template changes the words of an answer; they are trained as they are")
    if form.reopens:
        notes.append(
            "the chat template opens an answer after every conversation, a finished one too; an answer ends before that"
            " opening"
        )
    if not form.end:
        notes.append(f"the chat template writes no end after an answer; {eos!r} is trained there")
    if form.opened:
        notes.append(
            f"the chat template's prompts end in an opened thought ({form.opened.strip()}); answers are trained after"
            " closing it without a thought"
        )
    elif form.lead.strip():
        notes.append(
            f"the chat template writes {form.lead!r} before an answer; it is trained as the answer's beginning"
        )
    for name, turns in PROBES.items():
        try:
            other = _form(render, turns, eos)
        except ModelError:  # it refuses such a conversation, and will say so where one is rendered
            continue
        if left_out := [turn.role for turn in turns if not has(render(turns, True), turn.content)]:
            notes.append(
                f"{name}, the chat template leaves {' and '.join(left_out)} out of its prompt; what is trained is the"
                " prompt"
            )
        if not form.notes:
            notes += [f"{name}, {note}" for note in other.notes]
        if (other.lead, other.end, other.opened) != (form.lead, form.end, form.opened):
            notes.append(
                f"the chat template writes an answer otherwise {name}: {other.lead!r} before it and {other.end!r} after"
                f" it, not {form.lead!r} and {form.end!r}, which are trained"
            )
    return replace(form, end=form.end or eos, trims=trims, notes=tuple(dict.fromkeys(notes)))


def _form(render: Render, turns: Sequence[Turn], eos: str) -> AnswerForm:
    prompt, whole = render(turns, True), render((*turns, Turn("assistant", SAY)), False)
    before, mark, after = whole.rpartition(SAY)
    if not mark:
        return AnswerForm(
            notes=(
                (
                    "the chat template leaves an answer out of a finished conversation; answers are trained right after"
                    " its prompt"
                ),
            )
        )
    reopens = prompt == render(turns, False) and _reopens(render, turns, prompt, after)
    # generation stops before a line feed after the end-of-turn token
    end = _before_opening(after, eos) if reopens else after.rstrip("\n")
    if before.startswith(prompt):
        return AnswerForm(before[len(prompt) :], end=end, reopens=reopens)
    opened = thoughts.opening(prompt)
    if opened and before.startswith(prompt[: len(prompt) - len(opened)]):
        return AnswerForm(thoughts.closing(opened), end=end, opened=opened, reopens=reopens)
    # The beginnings differ. What follows the last question may still be the same.
    ours, theirs = (text.rpartition(turns[-1].content)[2] for text in (prompt, before))
    lead = theirs[len(ours) :] if theirs.startswith(ours) else ""
    place = next(
        (i for i, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), min(len(prompt), len(before))
    )
    note = (
        f"the chat template writes a finished conversation otherwise than its prompt ({before[place:][:40]!r} where the"
        f" prompt has {prompt[place:][:40]!r}); what is trained is the prompt"
    )
    return AnswerForm(lead, end=end, opened=opened, reopens=reopens, notes=(note,))


def _reopens(render: Render, turns: Sequence[Turn], prompt: str, after: str) -> bool:
    """Whether what follows an answer ends as prompts do, and is not what follows it where the conversation goes on."""
    opening = prompt.rpartition(turns[-1].content)[2]
    same = [
        a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(after), reversed(opening), strict=False))
    ]
    if not "".join(same).strip():
        return False
    try:
        goes_on = render((*turns, Turn("assistant", SAY), Turn("user", MORE)), False)
    except ModelError:
        return False
    return not goes_on.rpartition(SAY)[2].startswith(after)


def _before_opening(after: str, eos: str) -> str:
    """What closes an answer in a text that goes on to open another: up to the end-of-sequence
    token, else up to the end of the line.
    """
    before, mark, _ = after.partition(eos)
    if mark:
        return before + mark
    line, mark, _ = after.partition("\n")
    return line if mark and line.strip() else ""


def _trims(render: Render) -> str | None:
    """The name of what the template takes off an answer's ends; None where it does something else to an answer."""
    plain, spaced = (render((*ONE, Turn("assistant", answer)), False) for answer in (SAY, SPACED))
    before, mark, after = plain.rpartition(SAY)
    return (
        next((name for name, trim in _TRIMS.items() if before + trim(SPACED) + after == spaced), None) if mark else ""
    )
