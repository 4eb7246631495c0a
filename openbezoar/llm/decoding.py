"""Tokens drawn after prompts, a batch at a time, with a key/value cache.

Prompts are read as a forest, what they share once. Each row draws from a generator of its own
seed, so what it draws does not depend on its neighbours; rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from openbezoar.dialogue import thoughts
from openbezoar.forest import Scorer, TokenPath
from openbezoar.llm import Sampling
from openbezoar.llm.kv_cache import roomy_cache

CANDIDATES = (512, 8192)  # tokens sorted for top-p before the whole vocabulary is


@dataclass
class Sampled:
    """One answer in the making. ends: tokens that end it."""

    place: int
    sampling: Sampling
    ends: tuple[int, ...]
    draws: Tensor  # uniform numbers, one a token
    ids: list[int] = field(default_factory=list)
    finish: str = "length"

    @classmethod
    def of(cls, place: int, sampling: Sampling, ends: tuple[int, ...], seed: int) -> Sampled:
        """A row before its first token."""
        return cls(
            place, sampling, ends, torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed))
        )

    @property
    def answer_ids(self) -> list[int]:
        """The ids without the one that ends the answer."""
        return self.ids[:-1] if self.ids and self.ids[-1] in self.ends else self.ids


class Decoder:
    """Draws with a scorer's model. pad: any token id; what it stands for is masked."""

    def __init__(self, scorer: Scorer, pad: int) -> None:
        self.scorer, self.pad, self.device = scorer, pad, scorer.device

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[Sampled],
        stopped: Callable[[Sampled], bool],
        on_token: Callable[[Sampled], None] = lambda row: None,
    ) -> None:
        """Fill ``rows`` with what follows the prompts of token ids, one row each, all in one batch.

        A row ends at one of its ``ends``, where ``stopped`` says so, or at its limit; ``on_token``
        is told of it after each of its tokens.
        """
        if not rows:
            return
        hidden, cache, mask = self._prefilled(prompts)
        positions = mask.sum(-1, keepdim=True)
        ids, live = positions, list(rows)
        for step in range(max(row.sampling.max_new_tokens for row in rows)):
            if step:
                hidden = self._read(ids, mask, positions, cache)
                positions = positions + 1
            # Contiguous: from a strided slice of three dimensions, the head's product would copy its matrix once a row.
            logits = self.scorer.logits(hidden.contiguous())
            for i, row in enumerate(live):
                if step < row.sampling.min_new_tokens:
                    logits[i, list(row.ends)] = -torch.inf
            tokens = pick(logits, [row.sampling for row in live], torch.stack([row.draws[step] for row in live]))
            for row, token in zip(live, tokens.tolist(), strict=True):
                row.ids.append(token)
                if token in row.ends or stopped(row):
                    row.finish = "stop"
                on_token(row)
            keep = [
                i for i, row in enumerate(live) if row.finish == "length" and len(row.ids) < row.sampling.max_new_tokens
            ]
            if not keep:
                break
            ids = tokens[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            if len(keep) < len(live):
                index = torch.tensor(keep, device=self.device)
                cache.batch_select_indices(index)
                ids, positions, mask, live = ids[index], positions[index], mask[index], [live[i] for i in keep]

    def _read(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Hidden states after the last of some tokens [rows, hidden]; the cache takes their keys and values."""
        argument = {self.scorer.cache_argument: cache}
        out = self.scorer.trunk(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **argument)
        return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def _prefilled(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache, Tensor]:
        """Hidden states after each prompt [rows, hidden], the cache with all prompts padded on the
        left, and its mask [rows, width].
        """
        width, n = max(map(len, prompts)), len(prompts)
        mask = torch.zeros(n, width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            mask[i, width - len(prompt) :] = 1
        mask = mask.to(self.device)
        cache = roomy_cache(self.scorer.config)
        if self.scorer.plain:
            ids = torch.full((n, width), self.pad, dtype=torch.long)
            for i, prompt in enumerate(prompts):
                ids[i, width - len(prompt) :] = torch.tensor(prompt)
            positions = (mask.cumsum(-1) - 1).clamp_min(0)
            return self._read(ids.to(self.device), mask, positions, cache), cache, mask
        hidden: list[Tensor] = [torch.empty(0)] * n
        # keys and values by layer, then by row
        held: list[list[Tensor]] = [[torch.empty(0)] * n for _ in range(2 * len(cache.layers))]
        trees = [(TokenPath((*prompt, 0), (False,) * len(prompt) + (True,)),) for prompt in prompts]
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


class TextOf:
    """Token ids as text: without special tokens, but for those without which thoughts would read as what is said."""

    def __init__(self, tokenizer: Any) -> None:
        special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        marks = thoughts.marks_among(special.values())
        self.tokenizer, self.marks = tokenizer, {number: text for number, text in special.items() if text in marks}

    def __call__(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        text, begun = "", 0
        for place, token in enumerate(ids if self.marks else ()):
            if token in self.marks:
                text += str(self.tokenizer.decode(ids[begun:place], skip_special_tokens=True)) + self.marks[token]
                begun = place + 1
        return text + str(self.tokenizer.decode(ids[begun:], skip_special_tokens=True))


def end_tokens(settings: Any) -> tuple[int, ...]:
    """The ids that end an answer by a model's generation settings: none, one or several."""
    ids = settings.eos_token_id
    if isinstance(ids, list):
        return tuple(ids)
    return () if ids is None else (ids,)


def _left_padded(rows: Sequence[Tensor], width: int) -> Tensor:
    """Tensors [heads, n, d] of different n → [rows, heads, width, d], zeros on the left."""
    padded = rows[0].new_zeros(len(rows), rows[0].shape[0], width, rows[0].shape[2])
    for i, row in enumerate(rows):
        padded[i, :, width - row.shape[1] :] = row
    return padded


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
