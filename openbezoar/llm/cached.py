"""A model behind the call cache: what was answered once is read from disk, the rest is asked and kept.

Reads and writes the call cache (``calls.py``). A call's key is made of the model (digests of
its weights, adapters, prompt format and dtype; of a server the model's name, not its
address), the prompt, the sampling and the seed. Samples of one prompt differ in their
seeds. Greedy answers have no seed in their key, since nothing is drawn.

What is kept under one key differs. A server's answer depends on its own call alone, so each
is kept by itself, the moment it comes. So does a local model's in fp32. In 16 bits a row of
a local model depends, in its last bits, on the rows beside it: there the whole batch is one
key. A batch of which one row changed is then asked again whole, and comes out as it would
in a run that never had a cache; rows by themselves would bring in what another batch made
of them. Weights of choices are kept by the batch in fp32 too, since they are numbers and
not drawn tokens, in which such differences vanish.

A call that a server turned down alone has no answer to keep: it is asked again by the next
try, when the server may have been given a larger window.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Literal

from openbezoar.dialogue import thoughts
from openbezoar.dialogue.prompt import FOLDED
from openbezoar.errors import BudgetError, ModelError, RecipeError
from openbezoar.llm import LLM, Call, Completion, Sampling, Samplings, each
from openbezoar.llm.budget import SpendingLimits, worst_case
from openbezoar.llm.calls import NOTHING, CallStore, Spent
from openbezoar.llm.replies import HALVES, mended
from openbezoar.llm.side_by_side import CalledOff, side_by_side
from openbezoar.llm.spoken import Spoken
from openbezoar.llm.tally import Tally
from openbezoar.machine import stops
from openbezoar.rows.records import Counts, Turn
from openbezoar.store.digests import digest

CHOICE = Sampling(1)
FREE = Spent()  # a local model's call: nobody sends a bill for one that a kill ended


class CachedLLM:
    """An LLM that never asks twice, nor what another process is asking.

    identity: what makes the model the same one, plain data. opener: called at the first call
    that is not on disk. unit: what is kept under one key: a server's 'call', asked by
    itself; a 'row' of a batch; or a whole 'batch'. formatter: of a local model, its prompt
    format without its weights. spoken: what becomes of thoughts. billed: whether a call that is
    lost may have been paid for.
    """

    def __init__(
        self,
        name: str,
        identity: Any,
        opener: Callable[[], LLM],
        store: CallStore,
        spending: SpendingLimits,
        unit: Literal["call", "row", "batch"],
        formatter: Callable[[], Any] | None = None,
        tally: Tally | None = None,
        spoken: Spoken | None = None,
        billed: bool = True,
    ) -> None:
        self.name, self.store, self.spending, self.unit, self.billed = name, store, spending, unit, billed
        self._identity, self._opener, self._formatter = identity, opener, formatter
        self.tally, self.spoken = tally or Tally(name, Counts()), spoken or Spoken(name)
        self.heard: Callable[[int], None] | None = None  # told how many calls more are answered
        self.written = 0  # tokens of the answers that were asked for and came
        self._counting = threading.Lock()
        self._llm: Any = None  # an LLM; for calls asked by themselves a Server

    @cached_property
    def formatter(self) -> Any:
        """A local model's ``chat.Formatter``; AttributeError for a server, whose prompt cannot be written out."""
        if self._formatter is None:
            raise AttributeError("formatter")
        return self._formatter()

    @property
    def tokenizer(self) -> Any:
        """A local model's tokenizer; AttributeError for a server."""
        return self.formatter.tokenizer

    def close(self) -> None:
        """Give back what the model holds, and the cache's file."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None
        self.store.close()

    # ------------------------------------------------------------------------ the protocol

    def chat(
        self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]
    ) -> list[Completion]:
        """As the model's own ``chat``."""
        calls = [
            Call("chat", tuple(c), s, seed)
            for c, s, seed in zip(conversations, each(sampling, len(conversations)), seeds, strict=True)
        ]
        answers = self.spoken.of(self._answers(calls))
        ruled = sum(bool(c) and c[0].role == "system" and bool(c[0].content) for c in conversations)
        if ruled and self._formatter is not None and self.formatter.folds_system:
            self.spoken.counts.add(f"{self.name}: {FOLDED}", ruled)
        return answers

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """As the model's own ``complete``."""
        calls = [
            Call("complete", p, s, seed)
            for p, s, seed in zip(prompts, each(sampling, len(prompts)), seeds, strict=True)
        ]
        # A model of this process gives its thoughts with the mark that its prompt ended in.
        return self.spoken.of(
            self._answers(calls), [thoughts.opening(p) for p in prompts] if self.unit == "call" else ()
        )

    def choice_logprobs(
        self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]
    ) -> list[list[float]]:
        """As the model's own ``choice_logprobs``."""
        answers = self._answers([Call("choices", tuple(c), CHOICE, 0, prefix, tuple(choices)) for c in conversations])
        return [list(answer.logprobs or ()) for answer in answers]

    # ------------------------------------------------------------------------ asking

    def _opened(self) -> Any:
        if self._llm is None:
            self._llm = self._opener()
        return self._llm

    def _answers(self, calls: Sequence[Call]) -> list[Completion]:
        """One answer a call, from disk or from the model. All calls are of one kind."""
        stops.check()
        if not calls:
            return []
        self.tally.expect(len(calls))
        answers = [_readable(answer) for answer in self._from_cache_or_model(calls)]
        self.tally.came(answers)
        return answers

    def _from_cache_or_model(self, calls: Sequence[Call]) -> list[Completion]:
        keys = [digest([self._identity, plain(call)]) for call in calls]
        if self.unit == "batch" or (self.unit == "row" and calls[0].kind == "choices"):
            key = digest(keys)
            batch = self.store.find([key]) or self._shared(
                [key], lambda _: self._batch(calls, lambda rows: {key: rows})
            )
            self._tell(len(calls))
            self._refusals(batch[key])
            return batch[key]
        answers = self.store.find(keys)
        # the same call twice is asked once
        places = {key: place for place, key in reversed(list(enumerate(keys))) if key not in answers}
        unanswered = {keys[place]: calls[place] for place in sorted(places.values())}
        self._tell(len(calls) - len(unanswered))
        self._refusals([rows[0] for rows in answers.values()])
        if unanswered and self.unit == "call":
            answers |= self._side_by_side(list(unanswered.items()))
        elif unanswered:
            fresh = self._shared(
                list(unanswered),
                lambda part: self._batch(
                    [unanswered[key] for key in part],
                    lambda rows: {key: [row] for key, row in zip(part, rows, strict=True)},
                ),
            )
            self._tell(len(unanswered))
            self._refusals([answers[0] for answers in fresh.values()])
            answers |= fresh
        return [answers[key][0] for key in keys]

    def _shared(
        self,
        keys: Sequence[str],
        ask: Callable[[Sequence[str]], dict[str, list[Completion]]],
        cost: Spent = FREE,
        off: threading.Event = NOTHING,
    ) -> dict[str, list[Completion]]:
        """Answers by key: what ``ask`` gives for those that nobody asks just now, and what another
        process is told of the others.
        """
        answers: dict[str, list[Completion]] = {}
        while unanswered := [key for key in keys if key not in answers]:
            if not self.store.claim(unanswered, self.spending.spender, cost):
                self.store.wait(unanswered, off)
                answers |= self.store.find(unanswered)
                continue
            try:
                answers |= ask(unanswered)
            except BaseException as error:
                # A refusal, or a budget, comes before an answer that costs; of all else nobody knows.
                self.store.release(
                    unanswered, sent=not isinstance(error, (ModelError, RecipeError, BudgetError, CalledOff))
                )
                raise
        return answers

    def _refusals(self, answers: Sequence[Completion]) -> None:
        """Raises ModelError if these make too many."""
        for answer in answers:
            if answer.refused:
                self.tally.refused(answer.refused)

    def _tell(self, answered: int) -> None:
        if self.heard is not None and answered:
            self.heard(answered)

    def _batch(
        self, calls: Sequence[Call], by_key: Callable[[list[Completion]], dict[str, list[Completion]]]
    ) -> dict[str, list[Completion]]:
        """A local model's answers to a batch, kept."""
        with self.spending.reserved(calls):
            llm = self._opened()
            with stops.finishing(self.store.say, "this batch", whole=False):
                begun = time.monotonic()
                answers = ask(llm, calls)
                took = time.monotonic() - begun
                self.written += sum(answer.tokens for answer in answers)
                seconds = round(took / len(calls), 6)
                kept = self.store.keep(
                    by_key([replace(answer, seconds=seconds) for answer in answers]), self.spending.spender
                )
            stops.takes("a batch", took)
            return kept

    def _side_by_side(self, calls: Sequence[tuple[str, Call]]) -> dict[str, list[Completion]]:
        """A server's answers, each kept when it comes."""
        server = self._opened()

        def one(place: int, off: threading.Event) -> dict[str, list[Completion]]:
            key, call = calls[place]

            def ask(_: Sequence[str]) -> dict[str, list[Completion]]:
                with self.spending.reserved([call], off):
                    begun = time.monotonic()
                    answer = server.answer(call, off)
                    stops.takes("a call", min(time.monotonic() - begun, stops.CALLS))
                    with self._counting:
                        self.written += answer.tokens
                    # Filtered text was written and paid for; a refusal was not.
                    if answer.refused and not answer.tokens:
                        self.store.release([key], sent=False)
                        return {key: [answer]}
                    return self.store.keep({key: [answer]}, self.spending.spender)

            answers = self._shared([key], ask, worst_case([call]) if self.billed else FREE, off)
            if kind := answers[key][0].refused:
                self.tally.refused(kind, server.words.get(kind, ""))
            return answers

        parts = side_by_side(len(calls), one, server.width, name=self.name, heard=lambda: self._tell(1))
        return {key: answers for part in parts for key, answers in part.items()}


def _readable(answer: Completion) -> Completion:
    """An answer whose texts any file can hold: one that was kept by an older version may have halves of characters."""
    (text, halves), (thoughts, more) = mended(answer.text), mended(answer.thoughts)
    return replace(answer, text=text, thoughts=thoughts, notes=(*answer.notes, HALVES)) if halves + more else answer


def ask(llm: LLM, calls: Sequence[Call]) -> list[Completion]:
    """Calls of one kind, asked of a model by its protocol."""
    first, seeds = calls[0], [call.seed for call in calls]
    prompts: list[Any] = [call.prompt for call in calls]
    samplings: Samplings = (
        first.sampling if all(call.sampling == first.sampling for call in calls) else [call.sampling for call in calls]
    )
    if first.kind == "chat":
        return llm.chat(prompts, samplings, seeds)
    if first.kind == "complete":
        return llm.complete(prompts, samplings, seeds)
    formatter: Any = getattr(llm, "formatter", None)  # a local model's: what it read is counted by it
    prompt_tokens = [len(formatter.prompt_ids(prompt)) if formatter is not None else 0 for prompt in prompts]
    weighed = zip(prompt_tokens, llm.choice_logprobs(prompts, first.prefix, first.choices), strict=True)
    return [
        Completion("", "stop", n, 0, tuple(row)) if row else Completion("", "error", n, 0, refused="too long")
        for n, row in weighed
    ]


def plain(call: Call) -> Any:
    """A call as plain data, for its key. What a greedy answer does not depend on is left out."""
    sampling = asdict(call.sampling)
    if call.sampling.temperature == 0:
        del sampling["top_p"]
    prompt = call.prompt if isinstance(call.prompt, str) else [turn.as_dict() for turn in call.prompt]
    return [call.kind, prompt, sampling, call.seed if call.sampling.temperature else None, call.prefix, call.choices]
