"""Rows as they pass, looked at one by one: at flat memory, a few bytes a row. Writes nothing.

What is cheap is counted of every row. What is dear (near-duplicates, languages, texts of
benchmarks) is counted of rows drawn with equal chances, the same ones for the same rows.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from openbezoar.cleaning.contamination import Overlap
from openbezoar.cleaning.duplicates import NearDuplicates, likeness, shingles
from openbezoar.cleaning.language import foreign
from openbezoar.errors import RowError
from openbezoar.inspection.numbers import Look, PairNumbers, Portion, Spread
from openbezoar.inspection.sample import Sample
from openbezoar.judging.failures import refuses
from openbezoar.machine import extras
from openbezoar.rows.forms import to_example, to_pair, to_unpaired
from openbezoar.rows.known import form_of
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN
from openbezoar.rows.records import Counts, Example, Pair, Row, Turn, Unpaired
from openbezoar.training.encode import Encoder, each
from openbezoar.training.encoded import Encoded

DRAWN = 1000  # rows of which the dearer numbers are
NEAR = 0.8  # likeness of near-duplicates
COLUMNS = 30  # names that are counted
ANY_LENGTH = 2**30
# What stands around turns in the templates that are met most, where no tokenizer says.
MARKERS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]")

Item = Example | Pair | Unpaired


class Kept(NamedTuple):
    """A drawn row: where it is from, what it became, and its tree, if a tokenizer was there."""

    where: str
    item: Item
    tree: Encoded | None


def converted(row: Row, where: str) -> Item:
    """A row as what it is by its form. Raises DataError and RowError as the forms do."""
    kind = form_of(row, where).kind
    if kind == "pair":
        return to_pair(row, where)
    return to_unpaired(row, where) if kind == "unpaired" else to_example(row, where)


def answers_of(item: Item) -> list[str]:
    """The texts that a row is learnt from."""
    if isinstance(item, Pair):
        return [item.chosen, item.rejected]
    return [answer for _, answer in item.learnt()] if isinstance(item, Example) else [item.answer]


def texts_of(item: Item) -> Iterator[str]:
    """Every text of a row."""
    yield from (turn.content for turn in item.prompt)
    yield from [item.chosen, item.rejected] if isinstance(item, Pair) else [item.answer]


class Looking:
    """Takes rows, gives a ``Look``.

    encoder: as the training step has it; without one lengths are estimated from characters.
    overlap: texts of benchmarks. drawn: how many rows are kept for the dearer numbers. convert: what
    a row becomes, perhaps several answers, each a row then; default, what its form says.
    """

    def __init__(
        self,
        encoder: Encoder | None,
        overlap: Overlap | None = None,
        *,
        drawn: int = DRAWN,
        convert: Callable[[Row, str], Item | tuple[Unpaired, ...]] = converted,
    ) -> None:
        self.convert = convert
        self.encoder = None if encoder is None else encoder.with_counts(Counts())
        self.unlimited = None if encoder is None else encoder.with_limit(ANY_LENGTH)
        self.overlap = overlap
        self.rows = self.kept = self.longer = self.unlike = self.read = 0
        self.forms, self.columns, self.roles, self.control = (
            Counter[str](),
            Counter[str](),
            Counter[str](),
            Counter[str](),
        )
        self.counts = Counts()
        self.tokens, self.learnt, self.answers = array("i"), array("i"), array("i")
        self.prompts, self.wholes = array("Q"), array("Q")
        self.refused = [0, 0]  # chosen, rejected
        self.pairs = 0
        self.sample: Sample[Kept] = Sample(drawn)
        self._control = _pattern(encoder)

    def add(self, where: str, row: Row) -> None:
        """Look at a row. Raises DataError for one that stops a step."""
        self.rows += 1
        if len(self.columns) < COLUMNS:
            self.columns.update(row.keys())
        else:
            self.columns.update(name for name in row if name in self.columns)
        self.forms[form_of(row, where).name] += 1
        try:
            items = each(self.convert(row, where))
        except RowError as error:
            self.counts.add(error.reason)
            return
        self.rows += len(items) - 1
        for item in items:
            self._count(item)
            self._keep(where, item)

    def _count(self, item: Item) -> None:
        self.roles.update(turn.role for turn in item.prompt)
        self.roles["assistant"] += 2 if isinstance(item, Pair) else 1
        self.answers.append(len(answers_of(item)))
        found = {match for text in texts_of(item) for match in self._control.findall(text)} if self._control else set()
        self.control.update(found)
        prompt = "\x00".join(f"{turn.role}\x01{turn.content}" for turn in item.prompt)
        self.prompts.append(_digest(prompt))
        self.wholes.append(_digest("\x02".join((prompt, *answers_of(item)))))
        if isinstance(item, Pair):
            self.pairs += 1
            self.unlike += len(item.chosen) != len(item.rejected)
            self.longer += len(item.chosen) > len(item.rejected)
            for place, answer in enumerate((item.chosen, item.rejected)):
                self.refused[place] += refuses(answer)

    def _keep(self, where: str, item: Item) -> None:
        """Encode the row, as the step would, and perhaps hold it."""
        tree = self._encoded(item)
        if self.encoder is None:
            self.kept += 1
        self.sample.offer(Kept(where, item, tree))

    def _encoded(self, item: Item) -> Encoded | None:
        if self.encoder is None or self.unlimited is None:
            characters = sum(len(turn.content) for turn in item.prompt) + max(map(len, answers_of(item)))
            self.tokens.append(round(characters / CHARACTERS_A_TOKEN))
            self.learnt.append(round(sum(map(len, answers_of(item))) / CHARACTERS_A_TOKEN))
            self.read += round(sum(map(len, texts_of(item))) / CHARACTERS_A_TOKEN)
            return None
        tree = self.encoder.encode(item)
        self.kept += tree is not None
        whole = tree if tree is not None else self.unlimited.with_counts(Counts()).encode(item)
        if whole is not None:
            self.tokens.append(max(path.kept + sum(map(len, path.runs)) for path in whole))
            self.learnt.append(sum(len(run) for path in whole for run in path.runs[1::2]))
            self.read += sum(len(run) for path in whole for run in path.runs)
        return tree

    # ------------------------------------------------------------------------ the result

    @property
    def drawn(self) -> list[Kept]:
        """The rows of which the dearer numbers are."""
        return self.sample.items

    def look(self) -> Look:
        """What was seen so far."""
        reasons = Counts(dict(self.counts.by_reason))
        if self.encoder is not None:
            reasons.merge(self.encoder.counts.by_reason)
        usable = len(self.wholes)
        twins = usable - len(set(self.wholes))
        again = usable - len(set(self.prompts)) - twins
        return Look(
            rows=self.rows,
            kept=self.kept,
            forms=dict(self.forms.most_common()),
            columns=dict(self.columns.most_common()),
            roles=dict(self.roles.most_common()),
            reasons=dict(reasons.by_reason),
            unit="estimated tokens" if self.encoder is None else "tokens",
            max_length=None if self.encoder is None else self.encoder.max_length,
            tokens=Spread.of(self.tokens),
            learnt=Spread.of(self.learnt),
            learnt_share=sum(self.learnt) / self.read if self.read else None,
            answers=Spread.of(self.answers),
            twins=Portion.of(twins, usable),
            asked_again=Portion.of(again, usable),
            near=self._near(),
            foreign=self._foreign(),
            control=dict(self.control.most_common(8)),
            benchmarks=self._benchmarks(),
            pairs=self._pairs(),
            drawn=len(self.drawn),
        )

    def _near(self) -> Portion | None:
        """Prompts like one drawn before, word for word or nearly; None where the index is not installed."""
        if not extras.installed("datasketch"):
            return None
        index: NearDuplicates[int] = NearDuplicates(NEAR)
        near = 0
        for number, kept in enumerate(self.drawn):
            prompt, answer = _asked(kept.item.prompt), answers_of(kept.item)[0]
            near += index.find(prompt, answer) is not None
            index.add(number, prompt, answer)
        return Portion.of(near, len(self.drawn))

    def _foreign(self) -> Portion:
        return Portion.of(sum(foreign("\n".join(texts_of(kept.item))) for kept in self.drawn), len(self.drawn))

    def _benchmarks(self) -> dict[str, int] | None:
        if self.overlap is None:
            return None
        hits = (self.overlap.find(*texts_of(kept.item)) for kept in self.drawn)
        return dict(Counter(hit.benchmark for hit in hits if hit is not None).most_common())

    def _pairs(self) -> PairNumbers | None:
        if not self.pairs:
            return None
        drawn = [kept.item for kept in self.drawn if isinstance(kept.item, Pair)]
        near = sum(likeness(shingles(pair.chosen), shingles(pair.rejected)) >= NEAR for pair in drawn)
        return PairNumbers(
            near_identical=Portion.of(near, len(drawn)),
            longer_chosen=Portion.of(self.longer, self.unlike),
            refusals_chosen=Portion.of(self.refused[0], self.pairs),
            refusals_rejected=Portion.of(self.refused[1], self.pairs),
        )


def _asked(prompt: Sequence[Turn]) -> str:
    return "\n".join(turn.content for turn in prompt if turn.role != "system")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _pattern(encoder: Encoder | None) -> re.Pattern[str] | None:
    """The control tokens that texts are searched for."""
    tokens: Iterable[Any] = MARKERS
    if encoder is not None:
        added = encoder.formatter.tokenizer.added_tokens_decoder.values()
        tokens = [token.content for token in added if token.special and token.content.strip()]
    listed = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed))) if listed else None
