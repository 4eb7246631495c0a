"""Log-probabilities of the asked-for tokens of trees, with gradients where they are on.

Two ways behind one interface: the forest, where a pass is one row of whole trees and each
shared prefix is computed once; and plain passes, a row a path, padded on the right, which
are the forest's oracle and what models are scored with whose attention the forest does not
know. The vocabulary head runs only at the positions whose next token is asked for, in
chunks, and its backward never holds [tokens × vocabulary].
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openbezoar.errors import ModelError, UserError, brief
from openbezoar.forest.attention import register
from openbezoar.forest.head import AdaptedLogProb, SelectedLogProb, Shaping, adapted
from openbezoar.forest.layout import Layout, TokenPath, Tree, in_order, lay_out

# of a machine that refuses, which says nothing of the model
_EXHAUSTED = re.compile(r"memory|thread|ALLOC", re.IGNORECASE)


class Scorer:
    """Log-probabilities from one decoder model.

    model: a causal language model of transformers, bare or wrapped by PEFT.
    tokens: budget of tokens of one forward pass. plain: a row a path, nothing shared.
    """

    def __init__(
        self, model: nn.Module, tokens: int = 2048, head_bytes: int | None = None, plain: bool = False
    ) -> None:
        self.model, self.tokens = model, tokens
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        # transformers' own word for what each family calls otherwise (model, transformer,
        # gpt_neox); the model itself where there is no such part.
        self.trunk: nn.Module = base.base_model  # type: ignore[assignment]
        if self.trunk is base:
            raise ModelError(
                f"a {type(base).__name__} has no trunk apart from its head; the scorer needs a causal language model of"
                " transformers"
            )
        head = base.get_output_embeddings()  # type: ignore[operator]
        self.adapter: Any = head if hasattr(head, "lora_A") else None  # PEFT's layer around the head
        if self.adapter is not None:
            head = self.adapter.base_layer
        if type(head) is not nn.Linear:
            raise ModelError(
                f"the output head is a {type(head).__name__}; the scorer needs a linear head, plain or with a LoRA"
                " adapter"
            )
        if head.weight.requires_grad:
            raise ModelError(
                "the output head's own weight is trainable; the scorer needs it frozen, with an adapter on it if it is"
                " to change"
            )
        self.head = head
        self.config: Any = base.config.get_text_config() if hasattr(base.config, "get_text_config") else base.config  # type: ignore[union-attr,operator]
        scale = float(getattr(self.config, "logit_scale", None) or 1.0) / float(
            getattr(self.config, "logits_scaling", None) or 1.0
        )
        # The key/value cache's own argument, which transformers renamed in 5.40.
        self.cache_argument = (
            "cache" if "cache" in inspect.signature(self.trunk.forward).parameters else "past_key_values"
        )
        self.device = next(model.parameters()).device
        # Above 32 MiB a CPU allocation is mapped afresh each time, and its page faults cost more than the arithmetic.
        most = head_bytes or (30 << 20 if self.device.type == "cpu" else 256 << 20)
        # Fewer rows than 64 a product read the head's weights more often than they use them.
        self.shaping = Shaping(
            scale,
            getattr(self.config, "final_logit_softcapping", None),
            max(1 if head_bytes else 64, most // (4 * head.out_features)),
        )
        self.plain = plain or not _knows(self.config)
        self.checked = self.plain
        if not self.plain:
            base.set_attn_implementation(register())  # type: ignore[operator]

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

    def batches(self, trees: Sequence[Tree]) -> list[list[int]]:
        """Indices of the trees in passes of at most ``tokens`` tokens (one tree at least), like
        beginnings or like lengths together.
        """
        passes: list[list[int]] = []
        if not self.plain:
            left = 0
            for i, cost in in_order(trees):
                if passes and cost <= left:
                    passes[-1].append(i)
                    left -= cost
                else:
                    passes.append([i])
                    # What its own paths share counts once too; the last token of a path is predicted, not read.
                    left = self.tokens - in_order([trees[i]])[0][1] - 1
            return passes
        longest = [max(len(path.ids) for path in tree) for tree in trees]
        for i in sorted(range(len(trees)), key=lambda i: (-longest[i], i)):
            together = [*passes[-1], i] if passes else [i]
            if passes and longest[together[0]] * sum(len(trees[k]) for k in together) <= self.tokens:
                passes[-1].append(i)
            else:
                passes.append([i])
        return passes

    def forest(self, trees: Sequence[Tree], greedy: list[Tensor] | None = None) -> list[Tensor]:
        """One pass over whole trees laid out in one row: a float32 vector for each path, in order."""
        layout = lay_out(trees, self.device)
        if not len(layout.rows):  # nothing is asked for
            return self._select(
                torch.empty(0, self.head.in_features, device=self.device), layout.targets, layout.counts, greedy
            )
        return self._select(self._row(layout)[layout.rows], layout.targets, layout.counts, greedy)

    def _row(self, layout: Layout, cache: Any = None) -> Tensor:
        """Hidden states [n, hidden] of a row; a ``cache`` that is given must be empty, and takes
        its keys and values.
        """
        # Four dimensions are taken for a finished mask; the registered attention reads the layout instead.
        mask: Any = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        if types := set(getattr(self.config, "layer_types", None) or ()):
            mask = dict.fromkeys(types, mask)
        keep = {"use_cache": False} if cache is None else {"use_cache": True, self.cache_argument: cache}
        hidden: Tensor = self.trunk(
            input_ids=layout.ids[None], attention_mask=mask, position_ids=layout.positions[None], forest=layout, **keep
        ).last_hidden_state[0]
        return hidden

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
        if update is None:
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
        width = max(len(p.ids) for p in paths)
        ids = torch.zeros(len(paths), width, dtype=torch.long)
        mask = torch.zeros(len(paths), width, dtype=torch.long)
        rows, columns, targets, counts = [], [], [], []
        for r, path in enumerate(paths):
            ids[r, : len(path.ids)] = torch.tensor(path.ids)
            mask[r, : len(path.ids)] = 1
            scored = [c for c, s in enumerate(path.scored) if s]
            assert not scored or scored[0] > 0, "the first token has nothing before it"
            rows += [r] * len(scored)
            columns += [c - 1 for c in scored]
            targets += [path.ids[c] for c in scored]
            counts.append(len(scored))
        padded = bool((mask == 0).any())
        hidden = self.trunk(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device) if padded else None, use_cache=False
        ).last_hidden_state
        where, which, target_ids = (
            torch.tensor(x, dtype=torch.long, device=self.device) for x in (rows, columns, targets)
        )
        return self._select(hidden[where, which], target_ids, counts, greedy)

    def score(self, trees: Sequence[Tree], greedy: list[Tensor] | None = None) -> list[list[Tensor]]:
        """One pass over whole trees, with gradients where they are on: per tree and path the
        asked-for log-probabilities.

        A caller that trains takes the passes of ``batches`` and calls ``backward`` on each
        one's share of the loss before the next. ``greedy``: as in ``forward``, path by path.
        """
        self._check_once(trees)
        scores = iter(
            self.forward([path for tree in trees for path in tree], greedy)
            if self.plain
            else self.forest(trees, greedy)
        )
        return [[next(scores) for _ in tree] for tree in trees]

    def _check_once(self, trees: Sequence[Tree]) -> None:
        """At first use, score a short one of the trees both ways."""
        if not self.checked:
            short = [tree for tree in trees if len(tree[0].ids) <= 128] or [
                min(trees, key=lambda tree: len(tree[0].ids))
            ]
            self._check(max(short, key=lambda tree: (len(tree), len(tree[0].ids)))[:4])

    @torch.no_grad()
    def _check(self, tree: Tree) -> None:
        """Score one real tree both ways, beside two paths made of it; a model whose attention
        ignores the layout is found here.

        One path goes off halfway and one begins elsewhere: a tree of one path by itself, or
        beside a copy, would be plain causal attention, which every model does.
        """
        self.checked = True
        ids = tuple(tree[0].ids)
        beside = [(*ids[: len(ids) // 2], *ids[len(ids) // 2 + 1 :]), ids[1:]]
        probe = tuple(TokenPath(other, (False,) + (True,) * (len(other) - 1)) for other in beside if len(other) > 1)
        training = self.model.training
        self.model.eval()
        try:
            shared, apart = torch.cat(self.forest((tree, probe))), torch.cat(self.forward([*tree, *probe]))
        except UserError:
            raise
        except Exception as error:  # a family's own code meets a layout that it does not know
            if isinstance(error, OSError | MemoryError) or _EXHAUSTED.search(str(error)):
                raise
            raise ModelError(
                f"{type(self.trunk).__name__}: models of this kind cannot be scored with shared prefixes"
                f" ({brief(error)}); take another one"
            ) from None
        finally:
            self.model.train(training)
        if bool(apart.isnan().any()):
            raise no_numbers()
        # In 16 bits two orders of summation differ by some hundredths; a wrong mask differs by whole units.
        allowed = 1e-4 if self.head.weight.dtype == torch.float32 else 0.5
        if len(shared) and not float((shared - apart).abs().mean()) <= allowed:
            raise ModelError(
                f"{type(self.trunk).__name__}: scoring with shared prefixes differs from plain scoring: this model's"
                " attention is not supported; take a model of another kind"
            )

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
        training = self.model.training
        self.model.eval()
        try:
            for chosen in self.batches(trees):
                flags: list[Tensor] | None = None if greedy is None else []
                values = _on_cpu([path for tree in self.score([trees[i] for i in chosen], flags) for path in tree])
                for i in chosen:
                    results[i] = [next(values) for _ in trees[i]]
                if greedy is not None and flags is not None:
                    hits = _on_cpu(flags)
                    for i in chosen:
                        greedy[i] = [bool(next(hits).all()) for _ in trees[i]]
                if done is not None:
                    done(len(chosen))
        finally:
            self.model.train(training)
        return results


def no_numbers(where: str = "") -> ModelError:
    """The error for scores that are not finite; ``where`` says which."""
    return ModelError(
        f"{where}the model gives log-probabilities that are not numbers; its weights are damaged, or its dtype"
        " overflows (try dtype float32)"
    )


def _on_cpu(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Vectors as they are, brought over together: each copy would wait for the device."""
    whole: Iterator[Tensor] = iter(torch.cat(list(parts)).cpu().split([len(part) for part in parts]))  # type: ignore[no-untyped-call]
    return whole


def _knows(config: Any) -> bool:
    """Whether the forest's attention and positions are all that this model's layers ask for."""
    types = set(getattr(config, "layer_types", None) or ())
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {
        str(r.get("rope_type", "default"))
        for r in ([rope] if "rope_type" in rope else [v for v in rope.values() if isinstance(v, dict)])
    }
    return types <= {"full_attention", "sliding_attention"} and not kinds & {"dynamic", "longrope"}
