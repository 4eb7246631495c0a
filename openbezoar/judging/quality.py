"""Cheap rules that drop bad instruction rows before a judge is asked.

Reads a row's texts, writes nothing. Each rule is a pure function of a candidate and the
recipe's ``rules`` block; ``RULES`` is the whole list, in the order in which they are asked.
The first rule that catches a row gives its reason. To add a rule: a function, a line in
``RULES``, a row each that it must and must not catch in ``tests/test_filter.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openbezoar.recipe import Rules

REFUSAL_WORDS = 80  # a longer answer with "sorry" in it is an answer (WizardLM, arXiv 2304.12244, elimination rule 2)
ECHO_WORDS = 4  # shorter instructions may well open a good answer
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """What the rules look at. ``seen``: an earlier row that passed all rules has this instruction."""

    instruction: str
    response: str
    finish: str | None = None
    seen: bool = False


def words(text: str) -> int:
    """How many words, cut at white space."""
    return len(text.split())


def instruction_key(text: str) -> str:
    """The instruction with case and runs of white space taken away: equal keys are duplicates."""
    return " ".join(text.casefold().split())


def repeated_share(text: str, n: int = 4) -> float:
    """Share of a text's word n-grams that occurred in it before; 0 for fewer than n words."""
    parts = text.casefold().split()
    grams = [tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _plain(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def instruction_too_short(c: Candidate, rules: Rules) -> bool:
    return words(c.instruction) < rules.min_instruction_words


def instruction_too_long(c: Candidate, rules: Rules) -> bool:
    return words(c.instruction) > rules.max_instruction_words


def response_too_short(c: Candidate, rules: Rules) -> bool:
    return words(c.response) < rules.min_response_words


def response_too_long(c: Candidate, rules: Rules) -> bool:
    return words(c.response) > rules.max_response_words


def unfinished(c: Candidate, rules: Rules) -> bool:
    """Cut off by the token limit, or never given."""
    return rules.drop_unfinished and c.finish in ("length", "error")


def refusal(c: Candidate, rules: Rules) -> bool:
    """A short apology."""
    return rules.drop_refusals and "sorry" in c.response.casefold() and words(c.response) < REFUSAL_WORDS


def echo(c: Candidate, rules: Rules) -> bool:
    """The answer is the instruction, or begins with all of it; case and punctuation aside."""
    asked, answered = _plain(c.instruction), _plain(c.response)
    if not rules.drop_echoes or not asked:
        return False
    return answered == asked or (len(asked) >= ECHO_WORDS and answered[: len(asked)] == asked)


def repetition(c: Candidate, rules: Rules) -> bool:
    return repeated_share(c.response) > rules.drop_repetition


def duplicate(c: Candidate, rules: Rules) -> bool:
    return rules.drop_duplicates and c.seen


Rule = Callable[[Candidate, Rules], bool]

RULES: dict[str, Rule] = {
    "instruction_too_short": instruction_too_short,
    "instruction_too_long": instruction_too_long,
    "response_too_short": response_too_short,
    "response_too_long": response_too_long,
    "unfinished": unfinished,
    "refusal": refusal,
    "echo": echo,
    "repetition": repetition,
    "duplicate": duplicate,
}


def broken_rule(candidate: Candidate, rules: Rules) -> str | None:
    """Name of the first rule that drops a candidate, None if it passes them all."""
    return next((name for name, drops in RULES.items() if drops(candidate, rules)), None)


def screen(candidates: Sequence[Candidate], rules: Rules) -> list[str | None]:
    """The rule that drops each candidate, or None; duplicates are looked for among those that passed."""
    passed: set[str] = set()
    verdicts = []
    for c in candidates:
        key = instruction_key(c.instruction)
        verdict = broken_rule(Candidate(c.instruction, c.response, c.finish, key in passed), rules)
        if verdict is None:
            passed.add(key)
        verdicts.append(verdict)
    return verdicts
