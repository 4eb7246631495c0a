"""Examples and pairs → trees of token ids, with every dropped or shortened row counted by its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from openbezoar.chat import Formatter
from openbezoar.errors import DataError
from openbezoar.forest import Path, Tree
from openbezoar.records import Counts, Example, Pair, Turn

T = TypeVar("T", Example, Pair)


def split_heldout(rows: Sequence[T], every: int, most: int) -> tuple[list[T], list[T]]:
    """(training rows, held-out rows): each ``every``-th row is held out, ``most`` at most."""
    held = set(range(every - 1, len(rows), every)[:most])
    return [r for i, r in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]


class Renderer:
    """Rows into trees under one length limit."""

    def __init__(self, formatter: Formatter, max_length: int, too_long: Literal["drop", "truncate"], counts: Counts) -> None:
        self.formatter, self.max_length, self.too_long, self.counts = formatter, max_length, too_long, counts

    def examples(self, rows: Sequence[Example]) -> list[Tree]:
        """One tree of one path a row, the answer scored."""
        trees = []
        for row in rows:
            if not row.answer.strip():
                self.counts.add("empty answer")
                continue
            if paths := self._paths(row.prompt, [row.answer]):
                trees.append(paths)
        return trees

    def pairs(self, rows: Sequence[Pair]) -> list[Tree]:
        """One tree of two paths a pair: chosen, rejected."""
        trees = []
        for row in rows:
            if row.chosen == row.rejected:
                self.counts.add("chosen equals rejected")
            elif not row.chosen.strip() or not row.rejected.strip():
                self.counts.add("empty answer")
            elif paths := self._paths(row.prompt, [row.chosen, row.rejected]):
                trees.append(paths)
        return trees

    def _paths(self, prompt: tuple[Turn, ...], answers: list[str]) -> Tree | None:
        """The prompt with each answer; None (and a count) when it does not fit."""
        while True:
            head = self.formatter.prompt_ids(prompt)
            tails = [self.formatter.answer_ids(prompt, answer, head) for answer in answers]
            if len(head) + max(map(len, tails)) <= self.max_length:
                break
            shorter = _without_oldest(prompt)
            if self.too_long == "drop" or shorter is None:
                self.counts.add("too long")
                return None
            if len(prompt) > 1:
                self.counts.add("oldest turns cut")
            prompt = shorter
        tree = tuple(Path.of(head, tail) for tail in tails)
        self._check_end(tree)
        return tree

    def _check_end(self, tree: Tree) -> None:
        """Refuse a row whose last token, the end of the answer, carries no loss."""
        end = self.formatter.end_ids
        for path in tree:
            if end and (not path.scored[-1] or path.ids[-1] != end[-1]):
                raise DataError("the end-of-turn token of an answer carries no loss, so the model would never learn to stop; check the prompt template")


def _without_oldest(prompt: tuple[Turn, ...]) -> tuple[Turn, ...] | None:
    """The prompt without its oldest exchange (a system message stays); None if only one turn is left."""
    first = 1 if prompt and prompt[0].role == "system" else 0
    if len(prompt) - first < 3:
        return None
    return (*prompt[:first], *prompt[first + 2 :])


def require(trees: Sequence[Tree], counts: Counts, what: str) -> None:
    """Raise DataError with the counts if no row is left."""
    if not trees:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.by_reason.items()) or "no rows"
        raise DataError(f"no {what} is left to train on ({reasons}); raise max_length or bring other rows")
