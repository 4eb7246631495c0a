"""A model in this process: batched sampling with a key/value cache, and log-probabilities of given answers.

Each row draws from a generator of its own seed, so what it draws does not depend on its
neighbours; rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from openbezoar.chat import Formatter
from openbezoar.forest import Path, Scorer
from openbezoar.llm import Completion, Sampling, Samplings, each
from openbezoar.llm.cache import roomy_cache
from openbezoar.llm.streaming import Stream
from openbezoar.models import Checkpoint
from openbezoar.records import Turn
from openbezoar.training.load import free, load_for_inference, window_of

CANDIDATES = (512, 8192)  # tokens sorted for top-p before the whole vocabulary is
CHECK_EVERY = 8  # tokens between looks for a stop string


@dataclass
class Sampled:
    """One answer in the making. ends: tokens that end it."""

    place: int
    sampling: Sampling
    ends: tuple[int, ...]
    draws: Tensor  # uniform numbers, one a token
    ids: list[int] = field(default_factory=list)
    finish: str = "length"

    @property
    def said(self) -> list[int]:
        """The ids without the one that ends the answer."""
        return self.ids[:-1] if self.ids and self.ids[-1] in self.ends else self.ids


class Local:
    """A checkpoint that answers."""

    def __init__(self, checkpoint: Checkpoint, loaded: tuple[Any, Any] | None = None) -> None:
        """loaded: the checkpoint's (model, tokenizer), where a caller has them already."""
        self.name = checkpoint.name
        self.model, self.tokenizer = loaded or load_for_inference(checkpoint)
        self.formatter = Formatter(self.tokenizer, checkpoint.prompt)
        self.scorer = Scorer(self.model)
        self.device = self.scorer.device
        self.own_ends = _own_ends(self.model) if checkpoint.prompt.template == "own" else ()

    def close(self) -> None:
        """Free the model's memory."""
        del self.model, self.scorer
        free()

    def chat(self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Answers in the checkpoint's own prompt format."""
        return self.generate([self.formatter.prompt_ids(c) for c in conversations], sampling, seeds)

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Continuations of plain texts; the tokenizer adds its beginning-of-sequence token if it has one."""
        return self.generate([list(self.tokenizer(p).input_ids) for p in prompts], sampling, seeds)

    def choice_logprobs(self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]) -> list[list[float]]:
        """Summed log-probability of each choice right after ``prefix`` in the answer, [conversations][choices].

        A choice that begins another one ('1' and '10') takes its probability in; close both with
        the same text ('1]', '10]') to tell them apart.
        """
        trees = []
        for conversation in conversations:
            start = self.formatter.prompt_text(conversation) + prefix
            given = self._ids(start)
            paths = []
            for choice in choices:
                whole = self._ids(start + choice)
                shared = next((i for i, (a, b) in enumerate(zip(given, whole, strict=False)) if a != b), min(len(given), len(whole)))
                paths.append(Path.of(whole[:shared], whole[shared:]))
            trees.append(tuple(paths))
        return [[float(path.sum()) for path in tree] for tree in self.scorer.logprobs(trees)]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Answers to prompts of token ids, all in one batch."""
        return [self._completion(row, len(prompts[row.place])) for row in self.sample(prompts, sampling, seeds)]

    def answer(self, conversation: Sequence[Turn], sampling: Sampling, seed: int, say: Callable[[str], None]) -> Completion:
        """What ``chat`` answers to one conversation, said piece by piece while it comes; an exception in between, such as an interrupt, ends it."""
        prompt = self.formatter.prompt_ids(conversation)
        stream = Stream(partial(self.tokenizer.decode, skip_special_tokens=True), (*sampling.stop, *self.formatter.stop), say)
        (row,) = self.sample([prompt], sampling, [seed], lambda row: stream.feed(row.said))
        made = self._completion(row, len(prompt))
        stream.finish(made.text)
        return made

    @property
    def window(self) -> int:
        """Most tokens of a conversation and its answer together."""
        return window_of(self.model, self.tokenizer)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Samplings, seeds: Sequence[int], taken: Callable[[Sampled], None] = lambda row: None
    ) -> list[Sampled]:
        """The token ids drawn after prompts of token ids, all in one batch; ``taken`` is told of each row after each of its tokens."""
        if not prompts:
            return []
        rows = [
            Sampled(i, drawn, self._ends(drawn), torch.rand(drawn.max_new_tokens, generator=torch.Generator().manual_seed(seed)))
            for i, (drawn, seed) in enumerate(zip(each(sampling, len(prompts)), seeds, strict=True))
        ]
        hidden, cache, mask = self._prefilled(prompts)
        positions = mask.sum(-1, keepdim=True)
        ids, live = positions, rows
        for step in range(max(row.sampling.max_new_tokens for row in rows)):
            if step:
                hidden = self.scorer.trunk(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True).last_hidden_state[
                    :, -1
                ]
                positions = positions + 1
            # Contiguous: from a strided slice of three dimensions, the head's product would copy its matrix once a row.
            logits = self.scorer.logits(hidden.contiguous())
            for i, row in enumerate(live):
                if step < row.sampling.min_new_tokens:
                    logits[i, list(row.ends)] = -torch.inf
            drawn = pick(logits, [row.sampling for row in live], torch.stack([row.draws[step] for row in live]))
            for row, token in zip(live, drawn.tolist(), strict=True):
                self._take(row, token)
                taken(row)
            keep = [i for i, row in enumerate(live) if row.finish == "length" and len(row.ids) < row.sampling.max_new_tokens]
            if not keep:
                break
            ids = drawn[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            if len(keep) < len(live):
                index = torch.tensor(keep, device=self.device)
                cache.batch_select_indices(index)
                ids, positions, mask, live = ids[index], positions[index], mask[index], [live[i] for i in keep]
        return rows

    def _ends(self, sampling: Sampling) -> tuple[int, ...]:
        """Tokens that end an answer: the format's, the model's in its own format, and stop strings that are tokens, which decoding may leave out."""
        added = self.tokenizer.get_added_vocab() if sampling.stop else {}
        return (*self.formatter.stop_ids(), *self.own_ends, *(added[stop] for stop in sampling.stop if stop in added))

    def _prefilled(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache, Tensor]:
        """Hidden states after each prompt [rows, hidden], the cache with all prompts padded on the left, and its mask [rows, width]."""
        width, n = max(map(len, prompts)), len(prompts)
        mask = torch.zeros(n, width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            mask[i, width - len(prompt) :] = 1
        mask = mask.to(self.device)
        cache = roomy_cache(self.scorer.config)
        if self.scorer.plain:
            ids = torch.full((n, width), self.tokenizer.pad_token_id, dtype=torch.long)
            for i, prompt in enumerate(prompts):
                ids[i, width - len(prompt) :] = torch.tensor(prompt)
            positions = (mask.cumsum(-1) - 1).clamp_min(0)
            out = self.scorer.trunk(input_ids=ids.to(self.device), attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            return out.last_hidden_state[:, -1], cache, mask
        hidden: list[Tensor] = [torch.empty(0)] * n
        held: list[list[Tensor]] = [[torch.empty(0)] * n for _ in range(2 * len(cache.layers))]  # keys and values by layer, then by row
        trees = [(Path((*prompt, 0), (False,) * len(prompt) + (True,)),) for prompt in prompts]
        for chosen in self.scorer.batches(trees):
            filled = roomy_cache(self.scorer.config, whole=True)
            after, places = self.scorer.prefill([trees[i] for i in chosen], filled)
            row = [x for layer in filled.layers for x in (layer.keys[0], layer.values[0])]
            for k, i in enumerate(chosen):
                hidden[i] = after[k]
                at = torch.tensor(places[k], device=self.device)
                for slot, one in zip(held, row, strict=True):
                    slot[i] = one[:, at]
        for number, layer in enumerate(cache.layers):
            layer.update(_left_padded(held[2 * number], width), _left_padded(held[2 * number + 1], width))
        return torch.stack(hidden), cache, mask

    def _take(self, row: Sampled, token: int) -> None:
        row.ids.append(token)
        stop = (*row.sampling.stop, *self.formatter.stop)
        if token in row.ends:
            row.finish = "stop"
        elif stop and (len(row.ids) == row.sampling.max_new_tokens or len(row.ids) % CHECK_EVERY == 0):
            tail = self.tokenizer.decode(row.ids[-4 * CHECK_EVERY :], skip_special_tokens=True)
            if any(s in tail for s in stop):
                row.finish = "stop"

    def _completion(self, row: Sampled, prompt_tokens: int) -> Completion:
        stop = (*row.sampling.stop, *self.formatter.stop)
        text = self.tokenizer.decode(row.said, skip_special_tokens=True)
        cut = min((text.find(s) for s in stop if s in text), default=-1)
        if cut >= 0:
            text, row.finish = text[:cut], "stop"
        return Completion(text.strip(), "stop" if row.finish == "stop" else "length", prompt_tokens, len(row.ids))


def _own_ends(model: Any) -> tuple[int, ...]:
    """The end tokens that a model's own generation settings list; some models end an answer in several ways."""
    settings = getattr(model, "generation_config", None)
    ids = None if settings is None or settings._from_model_config else settings.eos_token_id  # a config's may be its class's default
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def _left_padded(rows: Sequence[Tensor], width: int) -> Tensor:
    """Tensors [heads, n, d] of different n → [rows, heads, width, d], zeros on the left."""
    made = rows[0].new_zeros(len(rows), rows[0].shape[0], width, rows[0].shape[2])
    for i, row in enumerate(rows):
        made[i, :, width - row.shape[1] :] = row
    return made


def pick(logits: Tensor, samplings: Sequence[Sampling], draws: Tensor) -> Tensor:
    """One token a row from fp32 logits [rows, vocabulary], which it may overwrite, and uniform numbers [rows].

    Greedy at temperature 0. Otherwise the inverse of the cumulative distribution at the
    row's number, over the smallest set of likeliest tokens whose mass reaches top-p.
    """
    picked = logits.argmax(-1)
    random = [i for i, sampling in enumerate(samplings) if sampling.temperature > 0]
    if not random:
        return picked

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    left = torch.tensor(random, device=logits.device)
    top_p = column([sampling.top_p for sampling in samplings])
    # In place: a fresh [rows, vocabulary] each time costs more in page faults than the arithmetic.
    scaled = logits.div_(column([sampling.temperature or 1.0 for sampling in samplings]))
    normaliser = scaled.logsumexp(-1, keepdim=True)
    for n in (*(c for c in CANDIDATES if c < logits.shape[-1]), logits.shape[-1]):
        part = scaled if len(left) == len(scaled) else scaled[left]
        values, tokens = part.topk(n, dim=-1)
        mass = (values - normaliser[left]).exp().cumsum(-1)
        # The token that crosses top-p still belongs to the set.
        size = (mass < top_p[left]).sum(-1).clamp_max(n - 1)
        reached = mass.gather(-1, size[:, None])
        place = (mass < draws.to(mass.device)[left, None] * reached).sum(-1)
        whole = (mass[:, -1] >= top_p[left, 0]) | torch.tensor(n == logits.shape[-1], device=mass.device)
        chosen = tokens.gather(-1, torch.minimum(place, size)[:, None])[:, 0]
        picked[left[whole]] = chosen[whole]
        left = left[~whole]
        if not len(left):
            break
    return picked
