"""What became of a step's calls to one model: what was turned down or put right is counted, and too
many refusals stop the step.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from openbezoar.errors import ModelError
from openbezoar.llm import Completion
from openbezoar.llm.refusals import REASONS
from openbezoar.recipe.fields import MAX_REFUSED
from openbezoar.rows.records import Counts

FEW = 10
"""Refused calls that stop no step. Rows are often sorted by length or source, so the first ones say
little about all.
"""


class Tally:
    """Counts, for one model in one step."""

    def __init__(self, name: str, counts: Counts, most: float = MAX_REFUSED, where: str = "max_refused") -> None:
        """most: share of the calls asked for that may be refused. where: that setting's place in the recipe."""
        self.name, self.counts, self.most, self.where = name, counts, most, where
        self._expected = 0
        self._refused: Counter[str] = Counter()
        self._lock = threading.Lock()

    def expect(self, calls: int) -> None:
        """So many calls more are wanted."""
        with self._lock:
            self._expected += calls

    def refused(self, kind: str, words: str = "") -> None:
        """One call was refused. Raises ModelError if they are too many by now. words: the server's."""
        with self._lock:
            self._refused[kind] += 1
            n, calls = self._refused.total(), self._expected
            if n <= max(self.most * calls, FEW if self.most else 0):
                return
            reasons = ", ".join(f"{k} because of {REASONS[kind]}" for kind, k in self._refused.most_common())
        last = f"; the last one: {words}" if words else ""
        raise ModelError(
            f"model '{self.name}': {n} of {calls} calls have no answer ({reasons}){last}. Mend the cause, or let more"
            f" go with {self.where} (now {self.most:g}), and run again: every answer is kept"
        )

    def came(self, answers: Iterable[Completion]) -> None:
        """Count what answers say of themselves."""
        with self._lock:
            for answer in answers:
                if answer.refused:
                    self.counts.add(
                        f"calls of {self.name} without an answer: {REASONS.get(answer.refused, answer.refused)}"
                    )
                for setting in answer.left_out:
                    self.counts.add(f"calls of {self.name} without {setting}, which it refuses")
                for note in answer.notes:
                    self.counts.add(f"replies of {self.name}: {note}")
