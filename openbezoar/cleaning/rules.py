"""Rules that drop bad instruction rows before a judge is asked.

Reads rows' texts, writes nothing. ``RULES`` look at one row: each is a pure function of a
candidate and the recipe's ``rules`` block. ``ACROSS_ROWS`` compare it with the benchmarks and
with the rows that passed before it, in a ``RowFilter``. ``BY_LIKELIHOOD`` and then
``BY_REWARD`` look at all rows that pass these (``likelihood``, ``rewards``). The first rule that catches a row, in the
order of ``NAMES``, gives its reason. To add a rule: a function, a line in ``RULES``, a row each
that it must and must not catch in ``tests/test_filter.py``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from openbezoar.cleaning import units
from openbezoar.cleaning.contamination import Overlap
from openbezoar.cleaning.duplicates import NearDuplicates
from openbezoar.cleaning.language import foreign, names_a_language
from openbezoar.cleaning.units import words
from openbezoar.recipe.data_steps import Rules

REFUSAL_WORDS = 80  # a longer answer with "sorry" in it is an answer (WizardLM, arXiv 2304.12244, elimination rule 2)
ECHO_WORDS = 4  # shorter instructions may well open a good answer
LOOP = 80  # characters that must repeat at a text's end
PERIOD = 100  # longest stretch that is looked for
ROUNDS = 4


@dataclass(frozen=True)
class Candidate:
    """What the rules look at."""

    instruction: str
    response: str
    finish: str | None = None
    id: str = ""


def instruction_key(text: str) -> str:
    """The instruction with case, width and runs of white space taken away: equal keys are duplicates."""
    return " ".join(units.folded(text).split())


def repeated_share(text: str, n: int = 4) -> float:
    """Share of a text's word n-grams (``units.grams``) that occurred in it before; 0 for fewer than n words."""
    parts = units.split(text.casefold())
    grams = [tuple(parts[begin:end]) for begin, end in units.grams(parts, n * units.WORD)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ends_in_circles(text: str) -> bool:
    """Whether a text's end repeats one stretch of characters again and again, as "!!!!" and
    "hahaha" do without a second word.
    """
    text = text.rstrip()
    for period in range(1, PERIOD + 1):
        length = max(ROUNDS * period, LOOP)
        tail = text[-(length + period) :]
        if len(tail) == length + period and tail[period:] == tail[:-period]:
            return True
    return False


def another_language(c: Candidate, rules: Rules) -> bool:
    """Instruction or answer is not English, and the instruction does not speak of a language, as
    translations and the like do.
    """
    return (
        rules.language == "en"
        and (foreign(c.instruction) or foreign(c.response))
        and not names_a_language(c.instruction)
    )


def no_words(c: Candidate, rules: Rules) -> bool:
    """Nothing but punctuation: not one letter, digit or pictogram."""
    return not all(
        any(char.isalnum() or unicodedata.category(char) == "So" for char in text)
        for text in (c.instruction, c.response)
    )


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
    instruction, response = units.bare(c.instruction), units.bare(c.response)
    if not rules.drop_echoes or not instruction:
        return False
    return response == instruction or (
        units.size(instruction) >= ECHO_WORDS * units.WORD and response[: len(instruction)] == instruction
    )


def repetition(c: Candidate, rules: Rules) -> bool:
    """The answer goes in circles; 1 switches it off."""
    return rules.drop_repetition < 1 and (
        repeated_share(c.response) > rules.drop_repetition or ends_in_circles(c.response)
    )


Rule = Callable[[Candidate, Rules], bool]

RULES: dict[str, Rule] = {
    "another_language": another_language,
    "no_words": no_words,
    "instruction_too_short": instruction_too_short,
    "instruction_too_long": instruction_too_long,
    "response_too_short": response_too_short,
    "response_too_long": response_too_long,
    "unfinished": unfinished,
    "refusal": refusal,
    "echo": echo,
    "repetition": repetition,
}
ACROSS_ROWS = ("contaminated", "duplicate", "near_duplicate")
BY_LIKELIHOOD = ("no_likelihood", "perplexity_too_low", "perplexity_too_high", "ifd_too_high", "ifd_too_low")
BY_REWARD = ("reward_too_low",)
NAMES = (*RULES, *ACROSS_ROWS, *BY_LIKELIHOOD, *BY_REWARD)


@dataclass(frozen=True)
class Drop:
    """The rule that drops a row, and on what evidence ("" where the row itself is the evidence)."""

    rule: str
    why: str = ""


class RowFilter:
    """All rules, asked of one row after another; only rows that pass are remembered.

    overlap: the benchmarks' texts, None to look for none. Raises UserError if near-duplicates
    are wanted and datasketch is not installed.
    """

    def __init__(self, rules: Rules, overlap: Overlap | None = None) -> None:
        self.rules, self.overlap = rules, overlap
        self._seen: dict[str, str] = {}
        self._near: NearDuplicates[str] | None = (
            None if rules.near_duplicates is None else NearDuplicates(rules.near_duplicates)
        )

    def __call__(self, c: Candidate) -> Drop | None:
        """The rule that drops a row, or None."""
        broken = next((name for name, drops in RULES.items() if drops(c, self.rules)), None)
        if broken is not None:
            return Drop(broken)
        if self.overlap and (hit := self.overlap.find(c.instruction, c.response)):
            return Drop("contaminated", f"{hit.benchmark}, row {hit.row}: {hit.words}")
        key = instruction_key(c.instruction)
        if self.rules.drop_duplicates and key in self._seen:
            return Drop("duplicate", f"of {self._seen[key]}")
        if self._near and (near := self._near.find(c.instruction, c.response)):
            return Drop("near_duplicate", f"of {near[0]}, {near[1]:.2f} alike")
        self._seen[key] = c.id
        if self._near:
            self._near.add(c.id, c.instruction, c.response)
        return None
