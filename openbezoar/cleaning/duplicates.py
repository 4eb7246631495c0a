"""Instructions that are nearly the same as an earlier one. Reads texts, writes nothing.

Likeness is the Jaccard index of the two sets of word 3-grams. Most of a long instruction may be
a passage that many questions are asked about, so of long ones the answers must be alike too. MinHash (datasketch) finds
candidates without comparing all pairs; each is then compared exactly, so that no row falls
to an estimate. What MinHash misses is kept; its bands are chosen to miss little.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from openbezoar.cleaning import units

N = 3
LONG = 60  # words of an instruction; this project's
PERMUTATIONS = 128
_WORD = re.compile(rf"(?:_++|{units.BARE})+")
# of the index; above it datasketch finds no bands for so many permutations, and candidates are
# compared exactly anyway
STEEPEST = 0.99
MISSES = (0.1, 0.9)  # weights of false candidates, which cost a comparison, and of missed ones

Name = TypeVar("Name", bound=Hashable)


def shingles(text: str) -> frozenset[str]:
    """A text's word 3-grams (``units.grams``), case and punctuation aside; the whole text if it has
    fewer words, marks and all if it has none.
    """
    words = units.apart(_WORD.findall(units.folded(text)))
    return frozenset(" ".join(words[begin:end]) for begin, end in units.grams(words, N * units.WORD)) or frozenset(
        [" ".join(words) or "".join(text.split())]
    )


def _long(parts: frozenset[str]) -> bool:
    return units.size(parts) > LONG * units.WORD


def likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """The Jaccard index: what two sets share, of all that they hold."""
    return len(a & b) / len(a | b)


class NearDuplicates(Generic[Name]):
    """Rows by name, to be asked for one that is like another.

    threshold: the least likeness of near-duplicates, above 0 and at most 1.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self.threshold = threshold
        self._empty: Any = MinHash(num_perm=PERMUTATIONS, seed=1)
        self._index: Any = MinHashLSH(threshold=min(threshold, STEEPEST), num_perm=PERMUTATIONS, weights=MISSES)
        self._rows: list[tuple[Name, str, str]] = []

    def find(self, instruction: str, response: str) -> tuple[Name, float] | None:
        """The row most like this one, the earliest among equals, with the instructions' likeness;
        None if none is near.
        """
        parts, answer = shingles(instruction), shingles(response)
        best: tuple[Name, float] | None = None
        for place in sorted(self._index.query(self._sketch(parts))):
            name, other, other_answer = self._rows[place]
            alike = likeness(parts, shingles(other))
            if alike < self.threshold or (best and alike <= best[1]):
                continue
            if not _long(parts) or likeness(answer, shingles(other_answer)) >= self.threshold:
                best = (name, alike)
        return best

    def add(self, name: Name, instruction: str, response: str) -> None:
        """Remember a row."""
        self._index.insert(len(self._rows), self._sketch(shingles(instruction)), check_duplication=False)
        self._rows.append((name, instruction, response))

    def _sketch(self, parts: frozenset[str]) -> Any:
        sketch = self._empty.copy()
        sketch.update_batch([part.encode() for part in sorted(parts)])
        return sketch
