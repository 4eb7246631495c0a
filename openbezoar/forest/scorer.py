"""Log-probabilities of the asked-for tokens of trees, with gradients where they are on.

Two ways behind one interface: the forest, where a pass is one row of whole trees and each
shared prefix is computed once; and plain passes, a row a path, padded on the right, which
are the forest's oracle and what models are scored with whose attention the forest does not
know. The vocabulary head runs only at the positions whose next token is asked for, in
chunks, and its backward never holds [tokens × vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openbezoar.errors import ModelError
from openbezoar.forest.head import AdaptedLogProb, SelectedLogProb, Shaping, TrainedLogProb, adapted
from openbezoar.forest.layout import TokenPath, Tree, lay_out, on_device
from openbezoar.forest.trunk import Trunk, on_cpu, tokens_of


class TreeScores(list[list[Tensor]]):
    """Per tree and path a vector of the asked-for log-probabilities. asked: int64 [paths], how many of each, beside
    them on their device.
    """

    def __init__(self, scores: Iterable[list[Tensor]], asked: Tensor) -> None:
        super().__init__(scores)
        self.asked = asked


class Scorer(Trunk):
    """Log-probabilities from one decoder model.

    model: a causal language model of transformers, bare or wrapped by PEFT.
    tokens: budget of tokens of one forward pass. plain: a row a path, nothing shared.
    """

    def __init__(
        self, model: nn.Module, tokens: int = 2048, head_bytes: int | None = None, plain: bool = False
    ) -> None:
        super().__init__(model, tokens, plain)
        self.head_bytes = head_bytes
        head = self.base.get_output_embeddings()
        self.adapter: Any = head if hasattr(head, "lora_A") else None  # PEFT's layer around the head
        if self.adapter is not None:
            head = self.adapter.base_layer
        if type(head) is not nn.Linear:
            raise ModelError(
                f"the output head is a {type(head).__name__}; the scorer needs a linear head, plain or with a LoRA"
                " adapter"
            )
        if head.weight.requires_grad and self.adapter is not None:
            raise ModelError("the output head's own weight is trainable and has an adapter; train one of the two")
        self.head = head
        scale = float(getattr(self.config, "logit_scale", None) or 1.0) / float(
            getattr(self.config, "logits_scaling", None) or 1.0
        )
        # Above 32 MiB a CPU allocation is mapped afresh each time, and its page faults cost more than the arithmetic.
        most = head_bytes or (30 << 20 if self.device.type == "cpu" else 256 << 20)
        # Fewer rows than 64 a product read the head's weights more often than they use them.
        self.shaping = Shaping(
            scale,
            getattr(self.config, "final_logit_softcapping", None),
            max(1 if head_bytes else 64, most // (4 * head.out_features)),
        )
        self._share()

    def twin(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What makes the same around the model in another process, and its arguments after that model."""
        return _twin, (self.tokens, self.head_bytes, self.plain)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [rows, vocabulary] of hidden states [rows, hidden], as the model's own head makes them."""
        update = self._update(hidden)
        weight, bias = self.head.weight, self.head.bias
        product = self.head(hidden.to(weight.dtype)) if update is None else adapted(hidden, *update, weight, bias)
        return self.shaping.logits(product)[0]

    def _update(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """(s A h [rows, r], B [vocabulary, r]) of the head's adapter; None where there is none, or
        it is switched off.
        """
        layer = self.adapter
        if layer is None or layer.disable_adapters or layer.merged:
            return None
        (name,) = layer.active_adapters
        x = layer.lora_dropout[name](hidden.to(self.head.weight.dtype))
        return layer.scaling[name] * (x @ layer.lora_A[name].weight.to(x.dtype).T), layer.lora_B[name].weight

    def forest(self, trees: Sequence[Tree], greedy: list[Tensor] | None = None) -> list[Tensor]:
        """One pass over whole trees laid out in one row: a float32 vector for each path, in order."""
        return self._forest(trees, greedy)[0]

    def _forest(self, trees: Sequence[Tree], greedy: list[Tensor] | None) -> tuple[list[Tensor], Tensor]:
        layout = lay_out(trees, self.device)
        if len(layout.rows):
            hidden = self._row(layout)[layout.rows]
        else:  # nothing is asked for
            hidden = torch.empty(0, self.head.in_features, device=self.device)
        return self._select(hidden, layout.targets, layout.counts, greedy), layout.asked

    @torch.no_grad()
    def prefill(self, trees: Sequence[Tree], cache: Any) -> tuple[Tensor, list[list[int]]]:
        """One pass over trees of which each path asks for its last token alone, filling an empty
        key/value cache with the row.

        Returns the hidden states that predict those tokens [paths, hidden], and each path's places in the row.
        """
        self._check_once(trees)
        layout = lay_out(trees, self.device)
        return self._row(layout, cache)[layout.rows], layout.places

    def _select(self, hidden: Tensor, targets: Tensor, counts: list[int], greedy: list[Tensor] | None) -> list[Tensor]:
        likeliest = None if greedy is None else torch.empty(len(targets), dtype=torch.bool, device=self.device)
        head = self.head.weight, self.head.bias, targets, self.shaping, likeliest
        update = self._update(hidden)
        if update is None and self.head.weight.requires_grad:
            scores = TrainedLogProb.apply(hidden, *head)  # type: ignore[no-untyped-call]
        elif update is None:
            scores = SelectedLogProb.apply(hidden, *head)  # type: ignore[no-untyped-call]
        else:
            scores = AdaptedLogProb.apply(hidden, *update, *head)  # type: ignore[no-untyped-call]
        if greedy is not None and likeliest is not None:
            greedy.extend(likeliest.split(counts))  # type: ignore[no-untyped-call]
        return list(scores.split(counts))  # type: ignore[no-untyped-call]

    def forward(self, paths: Sequence[TokenPath], greedy: list[Tensor] | None = None) -> list[Tensor]:
        """One plain pass, a row a path: for each a float32 vector of the asked-for log-probabilities, in order.

        ``greedy`` is extended by a boolean vector for each path: was the token the likeliest?
        """
        return self._forward(paths, greedy)[0]

    def _forward(self, paths: Sequence[TokenPath], greedy: list[Tensor] | None) -> tuple[list[Tensor], Tensor]:
        rows, columns, targets, counts = [], [], [], []
        for r, path in enumerate(paths):
            scored = [c for c, s in enumerate(path.scored) if s]
            assert not scored or scored[0] > 0, "the first token has nothing before it"
            rows += [r] * len(scored)
            columns += [c - 1 for c in scored]
            targets += [path.ids[c] for c in scored]
            counts.append(len(scored))
        hidden = self._padded([path.ids for path in paths])
        where, which, target_ids, asked = on_device((rows, columns, targets, counts), self.device)
        return self._select(hidden[where, which], target_ids, counts, greedy), asked

    def score(self, trees: Sequence[Tree], greedy: list[Tensor] | None = None) -> TreeScores:
        """One pass over whole trees, with gradients where they are on: per tree and path the
        asked-for log-probabilities.

        A caller that trains takes the passes of ``batches`` and calls ``backward`` on each
        one's share of the loss before the next. ``greedy``: as in ``forward``, path by path.
        """
        self._check_once(trees)
        if self.plain:
            scores, asked = self._forward([path for tree in trees for path in tree], greedy)
        else:
            scores, asked = self._forest(trees, greedy)
        path = iter(scores)
        return TreeScores(([next(path) for _ in tree] for tree in trees), asked)

    # Two orders of summation differ by some hundredths of a nat; a wrong mask differs by whole nats.
    COARSE = 0.5

    def _distance(self, shared: Tensor, apart: Tensor) -> float:
        return float((shared - apart).abs().mean())

    def _both_ways(self, tree: Tree, probe: Tree) -> tuple[Tensor, Tensor]:
        return torch.cat(self.forest((tree, probe))), torch.cat(self.forward([*tree, *probe]))

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def head_work(self) -> float:
        return (6.0 if self.head.weight.requires_grad else 4.0) * self.head.in_features * self.head.out_features

    @torch.no_grad()
    def logprobs(
        self, trees: Sequence[Tree], done: Callable[[int], None] | None = None, greedy: list[list[bool]] | None = None
    ) -> list[list[Tensor]]:
        """Per tree and path, the asked-for log-probabilities (float32, on the CPU).

        Leaves the model in evaluation mode during the call and as it was after it; ``done``
        is told the number of trees that each pass finished. ``greedy``, an empty list, is
        filled per tree and path with whether all of its asked-for tokens were the likeliest.
        """
        if greedy is not None:
            greedy.extend([True] * len(tree) for tree in trees)
        results: list[list[Tensor]] = [[torch.empty(0)] * len(tree) for tree in trees]
        passes = self.batches(trees)
        items = [([trees[i] for i in chosen], greedy is not None) for chosen in passes]
        training = self.model.training
        self.model.eval()
        try:
            for number, (scores, flags) in self.deal(self, "measured", items, tokens_of):
                chosen = passes[number]
                counts = [path.n_scored for i in chosen for path in trees[i]]
                values = iter(scores.split(counts))
                for i in chosen:
                    results[i] = [next(values) for _ in trees[i]]
                if greedy is not None:
                    hits = iter(flags.split(counts))
                    for i in chosen:
                        greedy[i] = [bool(next(hits).all()) for _ in trees[i]]
                if done is not None:
                    done(len(chosen))
        finally:
            self.model.train(training)
        return results

    @torch.no_grad()
    def before_answer(self, path: TokenPath) -> Tensor:
        """Hidden states [answer tokens, hidden] that predict a path's tokens from the first asked-for one on, from a
        plain pass, on the CPU.
        """
        start = list(path.scored).index(True)
        ids = torch.tensor([path.ids], device=self.device)
        return self.trunk(input_ids=ids, use_cache=False).last_hidden_state[0, start - 1 : -1].cpu().clone()  # type: ignore[no-any-return]

    @torch.no_grad()
    def measured(self, item: tuple[Sequence[Tree], bool]) -> tuple[Tensor, Tensor | None]:
        """Of one pass, on the CPU: the asked-for log-probabilities one after another, float32 [asked]; and, where the
        item says so, whether each token was the likeliest, bool [asked].
        """
        trees, greedy = item
        flags: list[Tensor] | None = [] if greedy else None
        values = on_cpu([path for tree in self.score(trees, flags) for path in tree])
        return values, None if flags is None else on_cpu(flags)


def _twin(loaded: Any, *arguments: Any) -> Scorer:
    return Scorer(loaded.model, *arguments)
