"""Rows → token ids on all cores, in order, with every dropped or shortened row counted by its reason.

Reads rows one by one and holds a bounded number of them. Imports no torch, so that a process
which only encodes is small and quickly begun.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from typing import Any, Literal, NamedTuple

from openbezoar.dialogue.prompt import FOLDED, Formatter
from openbezoar.errors import DataError, RowError
from openbezoar.machine import stops
from openbezoar.rows.records import Counts, Example, Pair, Row, Turn, Unpaired
from openbezoar.training.encoded import Encoded, of_answers, of_turns, of_wholes, pack

FEW = 4096  # rows that are encoded before a second process would have begun
CHUNK = 128  # rows handed over at a time
LATER = 5.0  # seconds that a process which encodes rows leaves to the one that started it
LossOn = Literal["all", "last", "none"]
Convert = Callable[[Row, str], Example] | Callable[[Row, str], Pair] | Callable[[Row, str], tuple[Unpaired, ...]]


def each(converted: Example | Pair | Unpaired | tuple[Unpaired, ...]) -> tuple[Example | Pair | Unpaired, ...]:
    """What a row was converted to, one by one: a pair may be read as two answers."""
    return converted if isinstance(converted, tuple) else (converted,)


def liked_of(row: Example | Pair | Unpaired) -> bool | None:
    """Whether its answer was liked; None where a row says nothing of it."""
    return row.liked if isinstance(row, Unpaired) else None


def label_of(converted: Example | Pair | Unpaired | tuple[Unpaired, ...]) -> bool | None:
    """Whether the answer of a row with one was liked; None of any other row, such as a pair read as two answers."""
    first, *others = each(converted)
    return None if others else liked_of(first)


class Encoder:
    """Examples, pairs and unpaired answers into token ids under one length limit.

    loss_on: which answers of a conversation are learnt, of those that its row gives to be learnt. 'none':
    no token is, and a path is the whole conversation as the template writes it, as reward models read it.
    """

    def __init__(
        self,
        formatter: Formatter,
        max_length: int,
        too_long: Literal["drop", "truncate"],
        counts: Counts,
        loss_on: LossOn = "all",
    ) -> None:
        self.formatter, self.max_length, self.too_long, self.counts = formatter, max_length, too_long, counts
        self.loss_on = loss_on

    def with_counts(self, counts: Counts) -> Encoder:
        """The same with counts of its own."""
        return Encoder(self.formatter, self.max_length, self.too_long, counts, self.loss_on)

    def with_limit(self, max_length: int) -> Encoder:
        """The same with another limit, and counts of its own."""
        return Encoder(self.formatter, max_length, self.too_long, Counts(), self.loss_on)

    def encode(self, row: Example | Pair | Unpaired) -> Encoded | None:
        """The tree of an answer, of a conversation's answers, or of chosen and rejected; None (and
        a count) if the row is of no use. What was changed to make the row is counted too.
        """
        for note in row.notes:
            self.counts.add(note)
        if isinstance(row, Example | Unpaired):
            answers = [row.answer]
        elif row.chosen == row.rejected:
            self.counts.add("chosen equals rejected")
            return None
        else:
            answers = [row.chosen, row.rejected]
        if not all(answer.strip() for answer in answers):
            self.counts.add("empty answer")
            return None
        if isinstance(row, Example) and row.earlier and self.loss_on == "all":
            return self._conversation(row)
        cut = not isinstance(row, Example) and row.cut
        return self._fitting(row.prompt, answers, endless=len(answers) - 1 if cut else None)

    def _conversation(self, row: Example) -> Encoded | None:
        """Every learnt answer after what was said before it; of a conversation that is too long, its
        first turns, whole, where rows are truncated. None (and a count) when it does not fit.
        """
        learnt: list[tuple[list[int], list[int]]] = []
        for prompt, answer in row.learnt():
            if not answer.strip():
                self.counts.add("empty answer of a conversation not learnt")
                continue
            head = self.formatter.prompt_ids(prompt)
            tail = self.formatter.answer_ids(prompt, answer, head)
            if len(head) + len(tail) > self.max_length:
                if self.too_long == "drop":
                    self.counts.add("too long")
                    return None
                if not learnt:
                    return self._fitting(prompt, [answer], "last turns cut" if len(prompt) < len(row.prompt) else "")
                self.counts.add("last turns cut")
                break
            learnt.append((head, tail))
        self._count_folded(row.prompt)
        self._check_ends([tail for _, tail in learnt])
        return of_turns(learnt)

    def _fitting(
        self, prompt: tuple[Turn, ...], answers: list[str], cut: str = "", endless: int | None = None
    ) -> Encoded | None:
        """The prompt with each answer; None (and a count) when it does not fit. cut: what is
        counted besides if it does. endless: the place of an answer that has no end.
        """
        original = prompt
        while True:
            tree, longest = self._written(prompt, answers, endless)
            if longest <= self.max_length:
                break
            shorter = without_oldest(prompt)
            if self.too_long == "drop" or shorter is None:
                self.counts.add("too long")
                return None
            prompt = shorter
        if prompt is not original:
            self.counts.add("oldest turns cut")
        if cut:
            self.counts.add(cut)
        self._count_folded(prompt)
        return tree

    def _written(self, prompt: tuple[Turn, ...], answers: list[str], endless: int | None) -> tuple[Encoded, int]:
        """The prompt with each answer, and the tokens of the longer one."""
        if self.loss_on == "none":
            wholes = [self.formatter.finished_ids(prompt, answer) for answer in answers]
            return of_wholes(wholes), max(map(len, wholes))
        head = self.formatter.prompt_ids(prompt)
        tails = [self.formatter.answer_ids(prompt, text, head, cut=n == endless) for n, text in enumerate(answers)]
        self._check_ends([tail for n, tail in enumerate(tails) if n != endless])
        return of_answers(head, tails), len(head) + max(map(len, tails))

    def _count_folded(self, prompt: tuple[Turn, ...]) -> None:
        """Count a system message that moved."""
        if self.formatter.folds_system and prompt[0].role == "system" and prompt[0].content:
            self.counts.add(FOLDED)

    def _check_ends(self, answers: list[list[int]]) -> None:
        """Raises DataError for an answer whose end carries no loss."""
        end = self.formatter.end_ids
        if end and any(answer[-1:] != end[-1:] for answer in answers):
            raise DataError(
                "the end-of-turn token of an answer carries no loss, so the model would never learn to stop; check the"
                " prompt template"
            )


def without_oldest(prompt: tuple[Turn, ...]) -> tuple[Turn, ...] | None:
    """The prompt without its oldest exchange (a system message stays); None if only one turn is left."""
    first = 1 if prompt and prompt[0].role == "system" else 0
    if len(prompt) - first < 3:
        return None
    return (*prompt[:first], *prompt[first + 2 :])


# ------------------------------------------------------------------------- many rows


class EncodedRow(NamedTuple):
    """What became of one row.

    unread: why it is no example or pair, None if it is one. counts: what encoding counted.
    trees: packed; none if it was dropped, two of a pair that is read as two answers. liked: the
    row's ``label_of``.
    """

    unread: str | None
    counts: dict[str, int]
    trees: tuple[bytes, ...]
    liked: bool | None = None


def encode_rows(
    encoder: Encoder,
    convert: Convert,
    rows: Iterable[tuple[str, Row]],
    *,
    processes: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[EncodedRow]:
    """What became of each row, in order; ``rows`` come with where each is from.

    processes: default, the cores that this process may use. Few rows are encoded in this
    process. ``say`` is told when others begin. The formatter's count of boundary shifts
    is brought up to date; ``encoder.counts`` is not touched. Raises what ``convert`` raises
    (but for RowError), and DataError if one of the processes dies.
    """
    rows, processes = iter(rows), cores() if processes is None else processes
    first = list(islice(rows, FEW))
    rows, few = chain(first, rows), len(first) < FEW
    del first
    if few or processes < 2:
        own = encoder.with_counts(Counts())
        yield from (_encoded(own, convert, where, row) for where, row in rows)
        return
    if say is not None:
        say(f"  encoding the rows in {processes} processes")
    yield from _on_all_cores(encoder, convert, rows, processes)


def _encoded(encoder: Encoder, convert: Convert, where: str, row: Row) -> EncodedRow:
    encoder.counts = Counts()
    try:
        converted = convert(row, where)
    except RowError as error:
        return EncodedRow(error.reason, {}, ())
    encoded = [(encoder.encode(one), liked_of(one)) for one in each(converted)]
    trees = tuple(pack(tree, liked) for tree, liked in encoded if tree is not None)
    return EncodedRow(None, encoder.counts.by_reason, trees, label_of(converted))


def cores() -> int:
    """Cores for one of the processes that train together on this machine."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _on_all_cores(
    encoder: Encoder, convert: Convert, rows: Iterator[tuple[str, Row]], processes: int
) -> Iterator[EncodedRow]:
    """Chunks of rows to spawned processes (a fork would copy locks that this process's threads
    hold), answers in order.
    """

    def collect(future: Future[tuple[list[EncodedRow], int]]) -> list[EncodedRow]:
        outcomes, shifts = future.result()
        encoder.formatter.boundary_shifts += shifts
        return outcomes

    waiting: deque[Future[tuple[list[EncodedRow], int]]] = deque()
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (encoder, convert))
    try:
        for chunk in iter(lambda: list(islice(rows, CHUNK)), []):
            waiting.append(pool.submit(_encode_chunk, chunk))
            if len(waiting) > 3 * processes:
                yield from collect(waiting.popleft())
        while waiting:
            yield from collect(waiting.popleft())
    except BrokenProcessPool:
        stops.check()
        raise DataError(
            f"one of {processes} processes that encode rows was killed, perhaps for want of memory; free some, or use"
            " fewer cores ('taskset -c 0 openbezoar run ...')"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_at_work: list[tuple[Encoder, Convert]] = []


def _begin(encoder: Encoder, convert: Convert) -> None:
    """What an encoding process does first."""
    _at_work.append((encoder, convert))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken by the other processes
    logging.getLogger("transformers").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its children
    for number in (signal.SIGTERM, signal.SIGHUP):  # which a whole group may get; but a pool ends its children so, too
        signal.signal(number, _end_later)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_later(number: int, frame: Any) -> None:
    """Leave it to the parent to end in order."""
    later = threading.Timer(LATER, os._exit, (128 + number,))
    later.daemon = True
    later.start()


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its children; they would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_chunk(chunk: list[tuple[str, Row]]) -> tuple[list[EncodedRow], int]:
    """Outcomes of some rows, and how many of their answers began within a token of the prompt."""
    ((encoder, convert),) = _at_work
    before = encoder.formatter.boundary_shifts
    return [_encoded(encoder, convert, where, row) for where, row in chunk], encoder.formatter.boundary_shifts - before
