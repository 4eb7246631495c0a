"""Scoring over ordinary forward passes, the plain engine that the forest's numbers are held against.

Each path is a row of its own; rows of like length share a pass, padded on the right. The
vocabulary head runs only at the positions whose next token is asked for, in chunks, and
its backward never holds [tokens × vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openbezoar.errors import ModelError


@dataclass(frozen=True)
class Path:
    """Token ids, and for each whether its log-probability is asked for (never the first)."""

    ids: Sequence[int]
    scored: Sequence[bool]

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Sequence[int]) -> Path:
        """Prompt unscored, completion scored."""
        return cls((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))

    @property
    def n_scored(self) -> int:
        return sum(self.scored)


Tree = tuple[Path, ...]


class _SelectedLogProb(torch.autograd.Function):
    """log p(target) at each row of hidden states, with its gradient found in the same sweep.

    d log p_t / dh = W_t - sum_v p_v W_v needs no upstream value, so it is computed chunk by
    chunk in the forward pass and only [rows, hidden] is kept. The head must be frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, cap: float | None, chunk: int, likeliest: Tensor | None) -> Tensor:
        need = hidden.requires_grad
        out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if need else None
        for first in range(0, len(hidden), chunk):
            rows = slice(first, first + chunk)
            logits = torch.nn.functional.linear(hidden[rows].to(weight.dtype), weight, bias).float()
            if scale != 1.0:
                logits *= scale
            if cap is not None:
                logits = logits.div_(cap).tanh_().mul_(cap)
            wanted = targets[rows, None]
            if likeliest is not None:
                likeliest[rows] = logits.argmax(-1) == targets[rows]
            normaliser = logits.logsumexp(-1, keepdim=True)
            out[rows] = (logits.gather(-1, wanted) - normaliser)[:, 0]
            if gradient is not None:
                slope = None if cap is None else 1 - (logits / cap).square()
                error = logits.sub_(normaliser).exp_().neg_()  # onehot - p
                error.scatter_add_(-1, wanted, torch.ones_like(wanted, dtype=error.dtype))
                if slope is not None:
                    error *= slope
                if scale != 1.0:
                    error *= scale
                gradient[rows] = (error.to(weight.dtype) @ weight).to(gradient.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None].to(gradient.dtype), None, None, None, None, None, None, None)


class Scorer:
    """Log-probabilities from one decoder model.

    model: a causal language model of transformers, bare or wrapped by PEFT.
    tokens: budget of tokens, padding included, of one forward pass.
    """

    def __init__(self, model: nn.Module, tokens: int = 2048, head_bytes: int = 64 << 20) -> None:
        self.model, self.tokens = model, tokens
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.trunk: nn.Module = base.model  # type: ignore[assignment]
        head = base.get_output_embeddings()  # type: ignore[operator]
        if type(head) is not nn.Linear:
            raise ModelError(f"the output head is a {type(head).__name__}; the scorer needs a plain linear head (take 'lm_head' out of the adapter's targets)")
        if head.weight.requires_grad:
            raise ModelError("the output head is trainable; the scorer needs a frozen head")
        self.head = head
        config = base.config.get_text_config() if hasattr(base.config, "get_text_config") else base.config  # type: ignore[union-attr,operator]
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.chunk = max(1, head_bytes // (4 * head.out_features))
        self.device = next(model.parameters()).device

    def batches(self, trees: Sequence[Tree]) -> list[list[int]]:
        """Indices of the trees in passes of at most ``tokens`` tokens (one tree at least), like lengths together."""
        longest = [max(len(path.ids) for path in tree) for tree in trees]
        order = sorted(range(len(trees)), key=lambda i: (-longest[i], i))
        passes: list[list[int]] = []
        rows = 0
        for i in order:
            rows += len(trees[i])
            if passes and rows * longest[passes[-1][0]] <= self.tokens:
                passes[-1].append(i)
            else:
                passes.append([i])
                rows = len(trees[i])
        return passes

    def forward(self, paths: Sequence[Path], greedy: list[Tensor] | None = None) -> list[Tensor]:
        """One pass: for each path a float32 vector of the asked-for log-probabilities, in order.

        ``greedy`` is extended by a boolean vector for each path: was the token the likeliest?
        """
        width = max(len(p.ids) for p in paths)
        ids = torch.zeros(len(paths), width, dtype=torch.long)
        mask = torch.zeros(len(paths), width, dtype=torch.long)
        rows, columns, targets, counts = [], [], [], []
        for r, path in enumerate(paths):
            ids[r, : len(path.ids)] = torch.tensor(path.ids)
            mask[r, : len(path.ids)] = 1
            asked = [c for c, s in enumerate(path.scored) if s]
            assert not asked or asked[0] > 0, "the first token has nothing before it"
            rows += [r] * len(asked)
            columns += [c - 1 for c in asked]
            targets += [path.ids[c] for c in asked]
            counts.append(len(asked))
        padded = bool((mask == 0).any())
        hidden = self.trunk(input_ids=ids.to(self.device), attention_mask=mask.to(self.device) if padded else None, use_cache=False).last_hidden_state
        picked = hidden[torch.tensor(rows, device=self.device), torch.tensor(columns, device=self.device)]
        likeliest = None if greedy is None else torch.empty(len(targets), dtype=torch.bool, device=self.device)
        scores = _SelectedLogProb.apply(picked, self.head.weight, self.head.bias, torch.tensor(targets, device=self.device), self.scale, self.cap, self.chunk, likeliest)  # type: ignore[no-untyped-call]
        if greedy is not None and likeliest is not None:
            greedy.extend(likeliest.split(counts))  # type: ignore[no-untyped-call]
        return list(scores.split(counts))  # type: ignore[no-untyped-call]

    def score(self, trees: Sequence[Tree], greedy: list[Tensor] | None = None) -> list[list[Tensor]]:
        """One pass over whole trees, with gradients where they are on: per tree and path the asked-for log-probabilities.

        A caller that trains takes the passes of ``batches`` and calls ``backward`` on each
        one's share of the loss before the next. ``greedy``: as in ``forward``, path by path.
        """
        scores = iter(self.forward([path for tree in trees for path in tree], greedy))
        return [[next(scores) for _ in tree] for tree in trees]

    @torch.no_grad()
    def logprobs(self, trees: Sequence[Tree], done: Callable[[int], None] | None = None, greedy: list[list[bool]] | None = None) -> list[list[Tensor]]:
        """Per tree and path, the asked-for log-probabilities (float32, on the CPU).

        Leaves the model in evaluation mode during the call and as it was after it; ``done``
        is told the number of trees that each pass finished. ``greedy``, an empty list, is
        filled per tree and path with whether all of its asked-for tokens were the likeliest.
        """
        if greedy is not None:
            greedy.extend([True] * len(tree) for tree in trees)
        results: list[list[Tensor]] = [[torch.empty(0)] * len(tree) for tree in trees]
        training = self.model.training
        self.model.eval()
        try:
            for chosen in self.batches(trees):
                flags: list[Tensor] | None = None if greedy is None else []
                for i, scores in zip(chosen, self.score([trees[i] for i in chosen], flags), strict=True):
                    results[i] = [score.cpu() for score in scores]
                if greedy is not None and flags is not None:
                    hits = iter(flags)
                    for i in chosen:
                        greedy[i] = [bool(next(hits).all()) for _ in trees[i]]
                if done is not None:
                    done(len(chosen))
        finally:
            self.model.train(training)
        return results
