"""Training rows that hold text of the benchmarks which the same recipe evaluates on.

Reads the local rows of a recipe's ``evaluate`` and ``mt_bench`` steps; writes nothing. The
rule is that of GPT-3's appendix C (arXiv 2005.14165): a run of 13 words in common, case and
punctuation aside; of a benchmark text with fewer words, but 8 at least, all of it. Scripts
without spaces count by ``units``. Rows that
only few-shot prompts show are no questions and are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from openbezoar.cleaning import units
from openbezoar.recipe.blocks import DataSpec
from openbezoar.rows.records import Row

FEWEST = 8  # words of a benchmark text that is looked for; GPT-3's least n


@dataclass(frozen=True)
class EvaluationRows:
    """Rows that a recipe evaluates on. ``name``: the step and what it calls them; ``spec``: None if
    they are not on this machine.
    """

    name: str
    spec: DataSpec | None


@dataclass(frozen=True)
class Hit:
    """A run of words that stands in a benchmark too."""

    benchmark: str
    row: str
    words: str


class Overlap:
    """The word runs of benchmark texts, to be looked for in training rows.

    words: n of the n-grams. ``rows`` counts the rows of each benchmark.
    """

    def __init__(self, words: int) -> None:
        self.words = words
        self.rows: dict[str, int] = {}
        self._grams: dict[int, dict[str, tuple[str, str]]] = {}

    def add(self, benchmark: str, rows: Iterable[Row]) -> None:
        """Remember all texts of a benchmark's questions."""
        for number, row in enumerate(rows, 1):
            if row.get("split") == "fewshot":
                continue
            self.rows[benchmark] = self.rows.get(benchmark, 0) + 1
            place = (benchmark, str(row.get("id", row.get("question_id", f"row {number}"))))
            for text in _texts(row):
                words = units.bare(text)
                size = min(self.words * units.WORD, units.size(words))
                if size >= min(FEWEST, self.words) * units.WORD:
                    known = self._grams.setdefault(size, {})
                    for gram in _grams(words, size):
                        known.setdefault(gram, place)

    def find(self, *texts: str) -> Hit | None:
        """The first run of words in these texts that a benchmark holds."""
        for text in texts:
            words = units.bare(text)
            for size in sorted(self._grams, reverse=True):
                for gram in _grams(words, size):
                    if gram in self._grams[size]:
                        return Hit(*self._grams[size][gram], units.joined(gram))
        return None


def _grams(words: list[str], size: int) -> Iterator[str]:
    return (" ".join(words[begin:end]) for begin, end in units.grams(words, size))


def _texts(row: Row) -> Iterator[str]:
    """Every text in a row, at any depth; a sentence with a blank also with each choice in it."""
    choices = row.get("choices")
    for text in _strings(row):
        yield text
        if "_" in text and isinstance(choices, list):
            yield from (text.replace("_", str(choice)) for choice in choices)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
