"""From rows to what a judge is asked, and from token probabilities to a rating.

Reads the judge's texts (``openbezoar/prompts/judge_*.txt``, or a recipe's own files).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from openbezoar.errors import RecipeError
from openbezoar.prompts import fill, load
from openbezoar.records import Turn

RATING_PREFIX = "Rating: [["
"""What a judge's answer is made to begin with when it rates by probability."""

RATING_CHOICES = tuple(f"{n}]]" for n in range(1, 11))
"""The answers weighed after the prefix. The brackets close each, or "1" would also be the beginning of "10"."""

UNSCORED = {"error": "judge_error", "length": "cut_off", "stop": "unparsable"}
"""Why a judge's reply gives no rating, by how the reply ended."""

_CLOSING_TAG = re.compile(r"</(?=[a-z_0-9]+>)")


def judge_texts(wanted: Mapping[str, tuple[str, ...]], files: Mapping[str, Path], known: Sequence[str]) -> dict[str, str]:
    """The judge's texts by name.

    wanted: the placeholders that each text must hold, by the text's name. files: a
    recipe's own texts. known: all names that the recipe may give. Raises RecipeError for
    a name that is not known or a text without one of its placeholders.
    """
    for name in files:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
            raise RecipeError(f"prompts.{name}: no such text in this step; {hint}")
    texts = {}
    for name, placeholders in wanted.items():
        texts[name] = load(name, dict(files))
        for placeholder in placeholders:
            if f"{{{placeholder}}}" not in texts[name]:
                raise RecipeError(f"prompts.{name}: {files.get(name, name)} has no {{{placeholder}}}; it needs {', '.join(f'{{{p}}}' for p in placeholders)}")
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
