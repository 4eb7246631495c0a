"""Examples and pairs → trees of token ids, with every dropped or shortened row counted by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError
from openbezoar.forest import Tree
from openbezoar.recipe.train_steps import Training
from openbezoar.rows.records import Counts, Example, Pair, Row, Unpaired
from openbezoar.training.encode import Convert, Encoder, LossOn, encode_rows, liked_of
from openbezoar.training.trees import TreeStore, tree_of

T = TypeVar("T", Example, Pair)


class Renderer:
    """Rows into trees under one length limit."""

    def __init__(
        self,
        formatter: Formatter,
        max_length: int,
        too_long: Literal["drop", "truncate"],
        counts: Counts,
        loss_on: LossOn = "all",
    ) -> None:
        self.formatter, self.counts = formatter, counts
        self.encoder = Encoder(formatter, max_length, too_long, counts, loss_on)

    def examples(self, rows: Sequence[Example]) -> list[Tree]:
        """One tree a row, its learnt answers scored."""
        return self.trees(rows)

    def pairs(self, rows: Sequence[Pair]) -> list[Tree]:
        """One tree of two paths a pair: chosen, rejected."""
        return self.trees(rows)

    def trees(self, rows: Sequence[Example | Pair | Unpaired]) -> list[Tree]:
        """Trees of rows of any kind, held in memory; of answers that were liked or not UnpairedTrees."""
        encoded = ((self.encoder.encode(row), liked_of(row)) for row in rows)
        return [tree_of(tree, liked) for tree, liked in encoded if tree is not None]


class Split(NamedTuple):
    """The trees to train on, and the held-out ones."""

    trained: Sequence[Tree]
    heldout: Sequence[Tree]


def is_held_out(place: int, every: int, most: int) -> bool:
    """Whether row ``place`` (from 0) is held out: each ``every``-th row, ``most`` at most."""
    turn, rest = divmod(place + 1, every)
    return rest == 0 and turn <= most


class HeldOut:
    """Says of rows, as they come, which are held out: each ``every``-th, ``most`` at most; of liked
    answers and of others each by itself, and half as many, since labels may take turns in a file.
    """

    def __init__(self, every: int, most: int) -> None:
        self.every, self.most = every, most
        self._places = Counter[bool | None]()

    def takes(self, label: bool | None) -> bool:
        """Whether the next row, of this label (``encode.label_of``), is held out."""
        place = self._places[label]
        self._places[label] += 1
        return is_held_out(place, self.every, self.most if label is None else -(-self.most // 2))


def split_heldout(rows: Sequence[T], every: int, most: int) -> tuple[list[T], list[T]]:
    """(training rows, held-out rows), by ``is_held_out``."""
    is_held = [is_held_out(i, every, most) for i in range(len(rows))]
    return [r for r, h in zip(rows, is_held, strict=True) if not h], [
        r for r, h in zip(rows, is_held, strict=True) if h
    ]


def split_trees(
    settings: Training,
    rows: Iterable[tuple[str, Row]],
    convert: Convert,
    renderer: Renderer,
    *,
    what: str,
    folder: Path,
    heldout: Callable[[], Sequence[Example | Pair | Unpaired]] | None = None,
    processes: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Split:
    """Rows, each with where it is from, as trees to train on and held-out ones, which lie on disk in ``folder``.

    convert: ``to_example``, ``to_pair`` or ``to_answers``, which gives the answers of a pair
    together to one part; what: 'row' or 'pair', for the message. heldout: gives the rows that are
    held out, asked when all others are encoded; without it each n-th row of ``rows`` is, of liked
    answers and of others each by itself. What is dropped is counted in ``renderer.counts``. Memory
    does not grow with the rows; ``processes`` and ``say`` as in ``encode_rows``. Raises DataError if
    either is empty.
    """
    stores = trained, held = TreeStore(folder), TreeStore(folder)
    tallies = Counts(), Counts()
    holds = HeldOut(settings.heldout_every, settings.heldout_rows)
    for outcome in encode_rows(renderer.encoder, convert, rows, processes=processes, say=say):
        if outcome.unread is not None:
            renderer.counts.add(outcome.unread)
            continue
        part = heldout is None and holds.takes(outcome.liked)
        tallies[part].merge(outcome.counts)
        for tree in outcome.trees:
            stores[part].append(tree)
    given = [] if heldout is None else heldout()
    for tally in tallies:
        renderer.counts.merge(tally.by_reason)
    split = Split(trained, held if heldout is None else renderer.trees(given))
    if not trained:
        raise DataError(f"no {what} is left to train on ({renderer.counts}); raise max_length or bring other rows")
    if not split.heldout:
        raise DataError(
            f"no {what} is held out ({renderer.counts}); name rows with 'heldout', or lower heldout_every so that it is"
            f" at most the number of {what}s"
        )
    return split
