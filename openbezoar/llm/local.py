"""A model in this process: answers in its prompt's format, and log-probabilities of given ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from openbezoar.dialogue import thoughts
from openbezoar.dialogue.prompt import Formatter
from openbezoar.dialogue.tokens import Frame
from openbezoar.forest import Scorer, TokenPath
from openbezoar.llm import Completion, Sampling, Samplings, each
from openbezoar.llm.decoding import Decoder, Sampled, TextOf, end_tokens
from openbezoar.llm.spoken import Spoken
from openbezoar.llm.streaming import Stream
from openbezoar.models.driving import is_spread, shares
from openbezoar.models.load import free, load_for_inference, window_of
from openbezoar.models.references import Checkpoint
from openbezoar.rows.records import Turn

CHECK_EVERY = 8  # tokens between looks for a stop string


def unheard(row: Sampled) -> None:
    """For rows whose tokens nobody waits for."""


class LocalLLM:
    """A checkpoint that answers."""

    def __init__(self, checkpoint: Checkpoint, loaded: tuple[Any, Any] | None = None) -> None:
        """loaded: the checkpoint's (model, tokenizer), where a caller has them already."""
        self.name = checkpoint.name
        self.model, self.tokenizer = loaded or load_for_inference(checkpoint)
        self.formatter = Formatter(self.tokenizer, checkpoint.prompt)
        self.frame = Frame.of(self.tokenizer)
        self.scorer = Scorer(self.model)
        pad = self.tokenizer.pad_token_id
        self.decoder = Decoder(self.scorer, self.tokenizer.eos_token_id if pad is None else pad)
        self.decode = TextOf(self.tokenizer)
        self.own_ends = _own_ends(self.model) if checkpoint.prompt.template == "own" else ()

    def close(self) -> None:
        """Free the model's memory."""
        del self.model, self.scorer, self.decoder
        free()

    def chat(
        self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]
    ) -> list[Completion]:
        """Answers in the checkpoint's own prompt format, thoughts and all: with the mark of a
        thought that the prompt ended in.
        """
        prompts = [self.formatter.prompt_ids(c) for c in conversations]
        return self.generate(
            prompts, sampling, seeds, [thoughts.opening(self.formatter.prompt_text(c)) for c in conversations]
        )

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Continuations of plain texts, after the beginning-of-sequence token where the tokenizer
        adds one; thoughts as in ``chat``.
        """
        return self.generate(
            [self.frame.ids(self.tokenizer, p) for p in prompts],
            sampling,
            seeds,
            [thoughts.opening(p) for p in prompts],
        )

    def choice_logprobs(
        self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]
    ) -> list[list[float]]:
        """Summed log-probability of each choice right after ``prefix`` in the answer, [conversations][choices].

        A choice that begins another one ('1' and '10') takes its probability in; close both with
        the same text ('1]', '10]') to tell them apart. Of a conversation that fills the model's
        window the list is empty.
        """
        trees = []
        for conversation in conversations:
            start = self.formatter.prompt_text(conversation) + self.formatter.lead + prefix
            head = self._ids(start)
            paths, longest = [], 0
            for choice in choices:
                whole = self._ids(start + choice)
                shared = next(
                    (i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b),
                    min(len(head), len(whole)),
                )
                paths.append(TokenPath.of(whole[:shared], whole[shared:]))
                longest = max(longest, len(whole))
            trees.append(tuple(paths) if longest <= self.window else ())
        weighed = iter(self.scorer.logprobs([tree for tree in trees if tree]))
        return [[float(path.sum()) for path in next(weighed)] if tree else [] for tree in trees]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Samplings, seeds: Sequence[int], opened: Sequence[str] = ()
    ) -> list[Completion]:
        """Answers to prompts of token ids, all in one batch. A prompt that fills the model's window
        has none; an answer ends with the window.

        opened: for each prompt, the mark of a thought that it ended in.
        """
        rooms = [self.window - len(prompt) for prompt in prompts]
        fit = [i for i, room in enumerate(rooms) if room > 0]
        answers = [Completion("", "error", len(prompt), 0, refused="too long") for prompt in prompts]
        if not fit:
            return answers
        samplings = each(sampling, len(prompts))
        within = [replace(samplings[i], max_new_tokens=min(samplings[i].max_new_tokens, rooms[i])) for i in fit]
        for row in self.sample([prompts[i] for i in fit], within, [seeds[i] for i in fit]):
            place = fit[row.place]
            answers[place] = self._completion(row, len(prompts[place]), opened[place] if opened else "")
        return answers

    def answer(
        self,
        conversation: Sequence[Turn],
        sampling: Sampling,
        seed: int,
        say: Callable[[str], None],
        think: Callable[[str], None] = lambda piece: None,
    ) -> Completion:
        """What ``chat`` answers to one conversation, piece by piece while it comes; an exception in
        between, such as an interrupt, ends it.

        ``think`` is told the pieces of thoughts, which are no part of the answer.
        """
        prompt, opened = (
            self.formatter.prompt_ids(conversation),
            thoughts.opening(self.formatter.prompt_text(conversation)),
        )
        stream = Stream(self.decode, (*sampling.stop, *self.formatter.stop), say, opened, think)
        (row,) = self.sample([prompt], sampling, [seed], lambda row: stream.feed(row.answer_ids))
        (completion,) = Spoken(self.name).of([self._completion(row, len(prompt), opened)])
        stream.finish(completion.text)
        return completion

    @property
    def window(self) -> int:
        """Most tokens of a conversation and its answer together."""
        return window_of(self.model, self.tokenizer)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Samplings,
        seeds: Sequence[int],
        on_token: Callable[[Sampled], None] = unheard,
    ) -> list[Sampled]:
        """The token ids drawn after prompts of token ids, all in one batch, or where the model lies in several
        processes one in each; ``on_token`` is told of each row after each of its tokens, by this process alone.
        """
        settings = each(sampling, len(prompts))
        rows = [
            Sampled.of(i, setting, self._ends(setting), seed)
            for i, (setting, seed) in enumerate(zip(settings, seeds, strict=True))
        ]
        if on_token is unheard and is_spread(self.model):
            parts = shares(range(len(rows)), lambda i: len(prompts[i]) + settings[i].max_new_tokens)
            items = [tuple([of[i] for i in part] for of in (prompts, settings, seeds)) for part in parts]
            for place, drawn in self.scorer.deal(self, "drawn", items, lambda item: len(item[0])):
                for i, (ids, finish) in zip(parts[place], drawn, strict=True):
                    rows[i].ids, rows[i].finish = ids, finish
            return rows
        self.decoder.draw(prompts, rows, self._stopped, on_token)
        return rows

    def drawn(
        self, item: tuple[Sequence[Sequence[int]], Sequence[Sampling], Sequence[int]]
    ) -> list[tuple[list[int], str]]:
        """What ``sample`` draws in one batch: ids and finish of each row. item: its arguments."""
        prompts, samplings, seeds = item
        rows = [Sampled.of(i, s, self._ends(s), seed) for i, (s, seed) in enumerate(zip(samplings, seeds, strict=True))]
        self.decoder.draw(prompts, rows, self._stopped)
        return [(row.ids, row.finish) for row in rows]

    def twin(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """As of a ``Scorer``."""
        return _twin, ()

    def _ends(self, sampling: Sampling) -> tuple[int, ...]:
        """Tokens that end an answer: the format's, the model's in its own format, and stop strings
        that are tokens, which decoding may leave out.
        """
        added = self.tokenizer.get_added_vocab() if sampling.stop else {}
        return (*self.formatter.stop_ids(), *self.own_ends, *(added[stop] for stop in sampling.stop if stop in added))

    def _stopped(self, row: Sampled) -> bool:
        """Whether the row's last tokens hold a stop string; looked at now and then."""
        stop = (*row.sampling.stop, *self.formatter.stop)
        if not stop or (len(row.ids) != row.sampling.max_new_tokens and len(row.ids) % CHECK_EVERY):
            return False
        tail = self.tokenizer.decode(row.ids[-4 * CHECK_EVERY :], skip_special_tokens=True)
        return any(s in tail for s in stop)

    def _completion(self, row: Sampled, prompt_tokens: int, opened: str) -> Completion:
        stop = (*row.sampling.stop, *self.formatter.stop)
        text = self.decode(row.answer_ids)
        cut = min((text.find(s) for s in stop if s in text), default=-1)
        if cut >= 0:
            text, row.finish = text[:cut], "stop"
        return Completion(
            (opened + text).strip(), "stop" if row.finish == "stop" else "length", prompt_tokens, len(row.ids)
        )


def _twin(loaded: Any) -> LocalLLM:
    return LocalLLM(loaded.checkpoint, (loaded.model, loaded.tokenizer))


def _own_ends(model: Any) -> tuple[int, ...]:
    """The end tokens that a model's own generation settings list; some models end an answer in several ways."""
    settings = getattr(model, "generation_config", None)
    # a config's may be its class's default
    return () if settings is None or settings._from_model_config else end_tokens(settings)
