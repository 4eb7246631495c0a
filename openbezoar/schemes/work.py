"""What a scheme is given: seeds, models, texts.

A scheme is a pure function of its options, its seeds and the replies it gets, and every
reply is in the call cache before a scheme sees it. So a killed run makes the scheme again
from its beginning over the replies on disk and asks only for the rest: rows, counts and
token totals come out as if it had never stopped.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from openbezoar import prompts
from openbezoar.llm import LLM, BestCompletion, Completion, Sampling, recorded
from openbezoar.llm.cached import CachedLLM
from openbezoar.llm.settings import wrapped, wrapper_stop
from openbezoar.models.driving import abreast
from openbezoar.progress import Bar
from openbezoar.recipe.blocks import DataRef, ServerModel
from openbezoar.rows.lengths import CUT_CHARACTERS
from openbezoar.rows.records import Counts, Row, Turn
from openbezoar.stats.seeds import step_seed

if TYPE_CHECKING:
    from openbezoar.context import StepContext

T = TypeVar("T")
Talks = Sequence[Sequence[Turn]]


class BestOf(NamedTuple):
    """Answers are the best of so many. scores: of each conversation's answers, None of one that has none."""

    samples: int
    scores: Callable[[Sequence[tuple[Sequence[Turn], Sequence[str]]]], list[list[float | None]]]


@dataclass
class Work:
    """The stage's side of the contract with a scheme.

    seeds: rows whose ``seed_fields`` are checked. rows: how many are wanted. sampling: for
    answers. batch: prompts a batch of a model in this process; fixed by place, so that a rerun
    gives the same rows. open: the model behind a name of the recipe. best: how the best of several
    answers is found, where several are asked for.
    """

    scheme: str
    context: StepContext
    open: Callable[[str], LLM]
    teacher: str
    seeds: Sequence[Row]
    rows: int
    sampling: Sampling
    batch: int
    texts: Mapping[str, Path] = field(default_factory=dict)
    best: BestOf | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    _models: dict[str, LLM] = field(default_factory=dict)
    _loaded: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        """Where every dropped or changed row is counted by its reason."""
        return self.context.counts

    def seed(self, *parts: object) -> int:
        """A seed for one use of randomness, such as ("answer", round, row)."""
        return step_seed(self.context.seed, self.scheme, *parts)

    def text(self, name: str, **values: str) -> str:
        """A prompt text with its ``{places}`` filled."""
        if name not in self._loaded:
            self._loaded[name] = prompts.load(name, self.texts)
        return prompts.fill(self._loaded[name], **values)

    def rows_of(self, ref: DataRef) -> list[Row]:
        """Rows of data that an option names."""
        return self.context.rows(ref)

    def llm(self, name: str) -> LLM:
        """A model by its name in the recipe, opened once."""
        if name not in self._models:
            self._models[name] = self.open(name)
        return self._models[name]

    def close(self) -> None:
        """Give back the memory of the models that were opened."""
        for llm in self._models.values():
            if (close := getattr(llm, "close", None)) is not None:
                close()
        self._models.clear()

    def say(self, text: str) -> None:
        """One line of news."""
        self.context.progress.say(f"{self.context.name}: {text}")

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of a text, at most ``tokens`` of the teacher's tokens long.

        Where the teacher's tokenizer cannot be had (a server), four characters count as one.
        """
        if len(text) <= tokens:  # a token is at least one character of ordinary text
            return text
        tokenizer: Any = getattr(self.llm(self.teacher), "tokenizer", None)
        if tokenizer is None:
            return text[: tokens * CUT_CHARACTERS].rstrip()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= tokens else str(tokenizer.decode(ids[:tokens])).rstrip("\ufffd").rstrip()

    def chat(
        self,
        name: str,
        conversations: Sequence[Sequence[Turn]],
        seeds: Sequence[int],
        *,
        sampling: Sampling | None = None,
        model: str | None = None,
        bar: bool = True,
    ) -> list[Completion]:
        """Cleaned replies to conversations, in order; what happens to them is counted under
        ``name``. model: default the teacher. Replies of the teacher without a ``sampling`` of their
        own are answers; each is the best of several, where the step asks for several.
        """
        if self.best is not None and sampling is None and model is None:
            return self._best(self.best, name, conversations, seeds, bar)
        drawn = sampling or self.sampling
        llm = self.llm(model or self.teacher)
        return self._replies(name, conversations, seeds, bar, llm, lambda part, s: llm.chat(part, drawn, s))

    def _best(self, best: BestOf, name: str, conversations: Talks, seeds: Sequence[int], bar: bool) -> list[Completion]:
        """The best of several answers to each conversation; sample 0 is the one that would be the only one."""
        asked = [turns for turns in conversations for _ in range(best.samples)]
        drawn = [step_seed(seed, "sample", k) if k else seed for seed in seeds for k in range(best.samples)]
        replies = self.chat(name, asked, drawn, sampling=self.sampling, bar=bar)
        several = [replies[first : first + best.samples] for first in range(0, len(replies), best.samples)]
        usable = [_usable(answers) for answers in several]
        shown = [[answers[k].text for k in places] for answers, places in zip(several, usable, strict=True)]
        asked_of = [(turns, texts) for turns, texts in zip(conversations, shown, strict=True) if texts]
        scored = iter(best.scores(asked_of))
        return [
            _best_of(answers, places, next(scored) if places else [])
            for answers, places in zip(several, usable, strict=True)
        ]

    def complete(
        self,
        name: str,
        texts: Sequence[str],
        seeds: Sequence[int],
        *,
        sampling: Sampling | None = None,
        model: str | None = None,
        bar: bool = True,
    ) -> list[Completion]:
        """Cleaned continuations of raw texts; otherwise as ``chat``."""
        drawn = sampling or self.sampling
        llm = self.llm(model or self.teacher)
        return self._replies(name, texts, seeds, bar, llm, lambda part, s: llm.complete(part, drawn, s))

    def written(self, turns: Sequence[Turn], model: str) -> str | None:
        """A conversation as the text that the model is sent, for ``complete``; None where only the
        server knows its format.
        """
        spec = self.context.model_spec(model)
        if isinstance(spec, ServerModel):
            return wrapped(spec.wrapper, turns) if spec.wrapper is not None else None
        llm: Any = self.llm(model)
        if (formatter := getattr(llm, "formatter", None)) is None:
            return None
        # Raw completion puts the beginning-of-sequence token in front itself.
        return str(formatter.prompt_text(turns)).removeprefix(llm.tokenizer.bos_token if formatter.adds_bos else "")

    def begun(
        self,
        name: str,
        questions: Sequence[str],
        starts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        model: str,
        bar: bool = True,
    ) -> list[Completion]:
        """Replies that go on after ``starts`` (one a question), as if the model had begun its answer so.

        Where a model's prompt cannot be written out (a chat server), the question itself has
        to ask for that start; a reply that repeats it has it taken off.
        """
        texts = [
            (self.written([Turn("user", question)], model), start)
            for question, start in zip(questions, starts, strict=True)
        ]
        # such as an empty thought, after which an answer begins
        lead = getattr(getattr(self.llm(model), "formatter", None), "lead", "")
        begun = [text + lead + start for text, start in texts if text is not None]
        if len(begun) == len(texts):
            spec = self.context.model_spec(model)
            ends = wrapper_stop(spec.wrapper) if isinstance(spec, ServerModel) and spec.wrapper else ()
            return self.complete(
                name, begun, seeds, sampling=replace(sampling, stop=(*sampling.stop, *ends)), model=model, bar=bar
            )
        replies = self.chat(
            name, [[Turn("user", question)] for question in questions], seeds, sampling=sampling, model=model, bar=bar
        )
        heads = [re.compile(r"[\s\"'*]*" + re.escape(start), re.IGNORECASE) for start in starts]
        return [
            replace(r, text=head.sub("", r.text, count=1) if head.match(r.text) else r.text)
            for head, r in zip(heads, replies, strict=True)
        ]

    def _replies(
        self,
        name: str,
        items: Sequence[T],
        seeds: Sequence[int],
        bar: bool,
        llm: LLM,
        ask: Callable[[Sequence[T], Sequence[int]], list[Completion]],
    ) -> list[Completion]:
        # Calls to a server are kept one by one, so nothing is gained by waiting for the slowest of a batch.
        alone = isinstance(llm, CachedLLM) and llm.unit == "call"
        size = max(1, len(items)) if alone else abreast(self.batch)
        replies: list[Completion] = []
        shown: AbstractContextManager[Any] = (
            self.context.progress.bar(name, len(items), "replies") if bar and items else nullcontext()
        )
        with shown as line:
            if isinstance(llm, CachedLLM):
                llm.heard = _shown_on(line, llm) if line is not None else None
            for first in range(0, len(items), size):
                replies += [
                    self._reply(name, reply) for reply in ask(items[first : first + size], seeds[first : first + size])
                ]
        assert len(replies) == len(items), "one reply a prompt"
        return replies

    def _reply(self, name: str, reply: Completion) -> Completion:
        self.prompt_tokens += reply.prompt_tokens
        self.tokens += reply.tokens
        self.seconds += reply.seconds
        text, markers = clean(reply.text)
        if markers:
            self.counts.add(f"{name}: special markers taken out")
        if reply.finish == "error":
            self.counts.add(f"{name}: refused by the server")
        return replace(reply, text=text)


def _shown_on(line: Bar, llm: CachedLLM) -> Callable[[int], None]:
    """Counts answers on a bar, beside the tokens a second that were written since now."""
    begun, before = time.monotonic(), llm.written

    def heard(answered: int) -> None:
        new = llm.written - before
        line.advance(answered, **({"tokens/s": new / max(time.monotonic() - begun, 1e-9)} if new else {}))

    return heard


# Special tokens that servers and de-tokenisers let through. The bare <s>, </s> is also HTML,
# so it goes only at the ends.
_SPECIAL = re.compile(
    r"<\|[A-Za-z_][\w ]{0,30}\|>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<<?/?SYS>>?"
)
_ENDS = re.compile(r"\A(?:</?s>\s*)+|(?<!\s)(?:\s*</?s>)+\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufffe\uffff]")
_LINE_ENDS = re.compile(r"\r\n?")


def clean(text: str) -> tuple[str, int]:
    """A reply without special tokens, control characters and outer white space, and how many special tokens it had."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = _CONTROL.sub("", _LINE_ENDS.sub("\n", text))
    text, markers = _SPECIAL.subn("", text)
    text, ends = _ENDS.subn("", text.strip())
    return text.strip(), markers + ends


def _usable(answers: Sequence[Completion]) -> list[int]:
    """Places of the answers that may be the best: those that came and say something, of them the finished ones
    if there are any.
    """
    came = [place for place, answer in enumerate(answers) if answer.finish != "error" and answer.text]
    return [place for place in came if answers[place].finish == "stop"] or came


def _best_of(answers: Sequence[Completion], places: Sequence[int], scores: Sequence[float | None]) -> BestCompletion:
    """The answer with the highest score, of equal ones the first; without any the first that may be."""
    known = {place: score for place, score in zip(places, scores, strict=True) if score is not None}
    first = next(iter(places), 0)
    best = max(known, key=lambda place: (known[place], -place), default=first)
    return BestCompletion(**vars(answers[best]), scores=tuple(map(known.get, range(len(answers)))))


def answered(work: Work, rows: Sequence[Row], replies: Sequence[Completion]) -> list[Row]:
    """The rows with their answers; a row whose answer was refused or is empty is dropped and counted."""
    kept: list[Row] = []
    for row, reply in zip(rows, replies, strict=True):
        if reply.finish == "error":
            work.counts.add("dropped: answer refused by the server")
        elif not reply.text:
            work.counts.add("dropped: empty answer")
        else:
            kept.append({**row, "response": reply.text, "finish": reply.finish, **recorded(reply)})
    return kept


def row_id(scheme: str, number: int) -> str:
    """The id of a scheme's row; ``number`` counts from 1."""
    return f"{scheme}-{number:05d}"


def normal(text: str) -> str:
    """A text as it is compared with others: without regard to case, white space and how it ends
    (full stop or question mark).
    """
    return " ".join(text.casefold().split()).rstrip(" .!?。．！？｡।။")


def unquoted(text: str) -> str:
    """A text without the quotation marks that a teacher puts around the whole of it."""
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        return text[1:-1].strip()
    return text


_QUOTES = {'"': '"', "'": "'", "“": "”", "`": "`"}


def shares(wanted: int, weights: Mapping[str, float], available: Mapping[str, int]) -> dict[str, int]:
    """``wanted`` split by weight (largest remainder), no name above what is available.

    What one name cannot give goes to the others by their weights, and when all weighted
    names are used up the split is short.
    """
    shares = dict.fromkeys(weights, 0)
    while (left := wanted - sum(shares.values())) > 0:
        open_ = {n: w for n, w in weights.items() if w > 0 and shares[n] < available[n]}
        if not open_:
            break
        total = sum(open_.values())
        exact = {n: left * w / total for n, w in open_.items()}
        parts = {n: math.floor(x) for n, x in exact.items()}
        for n in sorted(open_, key=lambda n: parts[n] - exact[n])[: left - sum(parts.values())]:
            parts[n] += 1
        for n, more in parts.items():
            shares[n] = min(available[n], shares[n] + more)
    return shares
