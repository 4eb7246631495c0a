"""From rows to what a judge is asked, and from token probabilities to a rating.

Reads the judge's texts (``openbezoar/prompts/judge_*.txt``, or a recipe's own files, or the
rows of FastChat's ``judge_prompts.jsonl``). Placeholders are FastChat's in all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openbezoar.errors import DataError, RecipeError, did_you_mean
from openbezoar.judging.questions import Question
from openbezoar.prompts import fill, load
from openbezoar.rows.records import Row, Turn

RATING_PREFIX = "Rating: [["
"""What a judge's answer is made to begin with when it rates by probability."""

RATING_CHOICES = tuple(f"{n}]]" for n in range(1, 11))
"""The answers weighed after the prefix. The brackets close each, or "1" would also be the beginning of "10"."""

VERDICT_PREFIX = "Verdict: [["
VERDICT_CHOICES = ("A]]", "B]]", "C]]")
"""As for ratings: what a verdict by probability begins with, and what is weighed after it."""

YES_NO_CHOICES = ("yes]]", "no]]")
CHECKS = {"judge_unsafe": ("conversation", "answer"), "judge_unsupported": ("context", "question", "answer")}
"""Texts that ask a judge for yes or no about one answer."""

UNSCORED = {"error": "judge_error", "length": "cut_off", "stop": "unparsable"}
"""Why a judge's reply gives no rating, by how the reply ended."""

_CLOSING_TAG = re.compile(r"</(?=[a-z_0-9]+>)")


def judge_texts(
    wanted: Mapping[str, tuple[str, ...]], files: Mapping[str, Path], known: Sequence[str]
) -> dict[str, str]:
    """The judge's texts by name.

    wanted: the placeholders that each text must hold, by the text's name. files: a
    recipe's own texts. known: all names that the recipe may give. Raises RecipeError for
    a name that is not known or a text without one of its placeholders.
    """
    for name in files:
        if name not in known:
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
            raise RecipeError(f"prompts.{name}: no such text in this step; {hint}")
    texts = {}
    for name, placeholders in wanted.items():
        texts[name] = load(name, dict(files))
        for placeholder in placeholders:
            if f"{{{placeholder}}}" not in texts[name]:
                raise RecipeError(
                    f"prompts.{name}: {files.get(name, name)} has no {{{placeholder}}}; it needs"
                    f" {', '.join(f'{{{p}}}' for p in placeholders)}"
                )
    return texts


def ask(template: str, **texts: str) -> tuple[Turn, ...]:
    """The conversation that puts texts of unknown origin before a judge.

    They are data: braces in them are not filled in, and a closing tag in them does not
    close the part of the prompt that they stand in.
    """
    return (Turn("user", fill(template, **{name: _CLOSING_TAG.sub("< /", text) for name, text in texts.items()})),)


def expected_rating(logprobs: Sequence[float]) -> float | None:
    """Mean of 1, 2, … under the choices' probabilities, renormalised over them; None if none is finite.

    logprobs: natural logarithms, one a choice, the lowest rating first.
    """
    finite = [(rating, p) for rating, p in enumerate(logprobs, 1) if math.isfinite(p)]
    if not finite:
        return None
    top = max(p for _, p in finite)
    weights = [(rating, math.exp(p - top)) for rating, p in finite]
    return sum(rating * w for rating, w in weights) / sum(w for _, w in weights)


@dataclass(frozen=True)
class Text:
    """A judge's text. ``official``: word for word, and what it shows too; otherwise what is shown
    cannot close a tag of the text.
    """

    template: str
    system: str = ""
    official: bool = False

    def ask(self, **texts: str) -> tuple[Turn, ...]:
        if not self.official:
            return ask(self.template, **texts)
        user = Turn("user", fill(self.template, **texts))
        return (Turn("system", self.system), user) if self.system else (user,)


def official_texts(
    rows: Sequence[Row], wanted: Mapping[str, tuple[str, ...]], official: Mapping[str, str]
) -> dict[str, Text]:
    """The wanted texts from rows of FastChat's file: ``name``, ``system_prompt``, ``prompt_template``.
    official: what that file calls them.

    Raises DataError if one is missing, or lacks one of its placeholders.
    """
    by_name = {row.get("name"): row for row in rows}
    texts = {}
    for name, placeholders in wanted.items():
        row = by_name.get(official[name])
        if row is None or not isinstance(row.get("prompt_template"), str):
            raise DataError(
                f"judge_prompts: no text '{official[name]}' with 'prompt_template'; the rows name"
                f" {', '.join(map(str, by_name)) or 'none'}"
            )
        missing = [p for p in placeholders if f"{{{p}}}" not in row["prompt_template"]]
        if missing:
            raise DataError(
                f"judge_prompts: '{official[name]}' has no {{{missing[0]}}}; expected FastChat's judge_prompts.jsonl"
            )
        if not isinstance(system := row.get("system_prompt") or "", str):
            raise DataError(
                f"judge_prompts: '{row['name']}': its 'system_prompt' is no text; expected FastChat's"
                " judge_prompts.jsonl"
            )
        texts[name] = Text(row["prompt_template"], system, official=True)
    return texts


def own_texts(
    wanted: Mapping[str, tuple[str, ...]], files: Mapping[str, Path], known: Sequence[str]
) -> dict[str, Text]:
    """The wanted texts in the project's words, or a recipe's; as ``judge_texts``."""
    return {name: Text(text) for name, text in judge_texts(wanted, files, known).items()}


def question_shown(kind: str, question: Question, turn: int) -> tuple[str, dict[str, str]]:
    """The name of a protocol's text for a turn (``kind``, with _turn2 and _reference), and what it
    shows of the question; against a reference if the question has one for that turn.
    """
    (r1, r2), (q1, q2) = question.references, question.turns
    if turn == 1:
        return (f"{kind}_reference", {"question": q1, "ref_answer_1": r1}) if r1 else (kind, {"question": q1})
    talk = {"question_1": q1, "question_2": q2}
    return (
        (f"{kind}_turn2_reference", {**talk, "ref_answer_1": r1 or "(none)", "ref_answer_2": r2})
        if r2
        else (f"{kind}_turn2", talk)
    )
