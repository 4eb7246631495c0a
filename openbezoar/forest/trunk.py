"""A decoder's layers, run over whole trees: as one row in which each shared prefix is computed once, or a row a path.

What is asked of the hidden states, log-probabilities (``scorer``) or rewards (``rewards``), stands above this.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from openbezoar.errors import ModelError, UserError, brief
from openbezoar.forest.attention import register
from openbezoar.forest.layout import Layout, TokenPath, Tree, in_order, on_device, weight

# of a machine that refuses, which says nothing of the model
_EXHAUSTED = re.compile(r"memory|thread|ALLOC", re.IGNORECASE)

Deal = Callable[[Any, str, Sequence[Any], Callable[[Any], float]], Iterable[tuple[int, Any]]]
"""Who does what: an object, the name of its method, items, what each weighs → (place, what the method makes of the
item there), in any order. The results are on the CPU, and may come from a twin of the object in another process.
"""


def in_turn(owner: Any, method: str, items: Sequence[Any], weight: Callable[[Any], float]) -> Iterable[tuple[int, Any]]:
    """A ``Deal``: this process does it all."""
    return enumerate(map(getattr(owner, method), items))


SPREAD: WeakKeyDictionary[nn.Module, Deal] = WeakKeyDictionary()
"""Models that lie in other processes too, and how what is asked of them is dealt out."""


def deal_of(model: nn.Module) -> Deal:
    """Who does what is asked of a model."""
    return SPREAD.get(model, in_turn)


class Trunk(ABC):
    """A model of transformers without its head.

    model: bare or wrapped by PEFT. tokens: budget of tokens of one forward pass. plain: a row a
    path, nothing shared; so it is too for a model whose layers ask for more than the forest knows.
    """

    def __init__(self, model: nn.Module, tokens: int, plain: bool) -> None:
        self.model, self.tokens = model, tokens
        base: Any = model
        self.base = base.get_base_model() if hasattr(model, "get_base_model") else base
        # transformers' own word for what each family calls otherwise (model, transformer,
        # gpt_neox); the model itself where there is no such part.
        self.trunk: nn.Module = self.base.base_model
        if self.trunk is self.base:
            raise ModelError(
                f"a {type(self.base).__name__} has no trunk apart from its head; the scorer needs a causal language"
                " model of transformers"
            )
        config = self.base.config
        self.config: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
        # The key/value cache's own argument, which transformers renamed in 5.40.
        self.cache_argument = (
            "cache" if "cache" in inspect.signature(self.trunk.forward).parameters else "past_key_values"
        )
        self.device = next(model.parameters()).device
        self.plain = plain or not _knows(self.config)
        self.checked = self.plain
        self.deal = deal_of(model)

    def _share(self) -> None:
        """Give the model the forest's attention, once nothing else speaks against it."""
        if not self.plain:
            self.base.set_attn_implementation(register())

    COARSE: ClassVar[float]
    """Greatest ``_distance`` of the two ways in 16 bits."""

    @abstractmethod
    def _distance(self, shared: Tensor, apart: Tensor) -> float:
        """How far the same numbers of the two ways lie apart."""

    @abstractmethod
    def _both_ways(self, tree: Tree, probe: Tree) -> tuple[Tensor, Tensor]:
        """The same numbers of two trees: in one row, and a row a path."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""

    @property
    @abstractmethod
    def head_work(self) -> float:
        """Floating-point operations of a training pass for each token that the head reads."""

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
                    left = self.tokens - weight(trees[i]) - 1
            return passes
        longest = [max(len(path.ids) for path in tree) for tree in trees]
        for i in sorted(range(len(trees)), key=lambda i: (-longest[i], i)):
            together = [*passes[-1], i] if passes else [i]
            if passes and longest[together[0]] * sum(len(trees[k]) for k in together) <= self.tokens:
                passes[-1].append(i)
            else:
                passes.append([i])
        return passes

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

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states [rows, longest, hidden] of a plain pass, padded on the right."""
        width = max(map(len, rows))
        ids, mask = on_device(
            (
                [token for row in rows for token in (*row, *(0,) * (width - len(row)))],
                [seen for row in rows for seen in (*(1,) * len(row), *(0,) * (width - len(row)))],
            ),
            self.device,
        )
        padded = any(len(row) < width for row in rows)
        shape = len(rows), width
        hidden: Tensor = self.trunk(
            input_ids=ids.view(shape), attention_mask=mask.view(shape) if padded else None, use_cache=False
        ).last_hidden_state
        return hidden

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
            shared, apart = self._both_ways(tree, probe)
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
        allowed = 1e-4 if self.dtype == torch.float32 else self.COARSE
        if len(shared) and not self._distance(shared, apart) <= allowed:
            raise ModelError(
                f"{type(self.trunk).__name__}: scoring with shared prefixes differs from plain scoring: this model's"
                " attention is not supported; take a model of another kind"
            )


def no_numbers(where: str = "") -> ModelError:
    """The error for scores that are not finite; ``where`` says which."""
    return ModelError(
        f"{where}the model gives log-probabilities that are not numbers; its weights are damaged, or its dtype"
        " overflows (try dtype float32)"
    )


def on_cpu(parts: Sequence[Tensor]) -> Tensor:
    """Vectors one after another, brought over together: each copy would wait for the device."""
    return torch.cat(list(parts)).cpu()


def tokens_of(item: tuple[Sequence[Tree], bool]) -> int:
    """What a pass weighs: its tokens, more or less."""
    return sum(len(path.ids) for tree in item[0] for path in tree)


def _knows(config: Any) -> bool:
    """Whether the forest's attention and positions are all that this model's layers ask for."""
    types = set(getattr(config, "layer_types", None) or ())
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {
        str(r.get("rope_type", "default"))
        for r in ([rope] if "rope_type" in rope else [v for v in rope.values() if isinstance(v, dict)])
    }
    return types <= {"full_attention", "sliding_attention"} and not kinds & {"dynamic", "longrope"}
