"""Rewards of whole conversations: a scalar head on the hidden state of each path's last token, with
gradients where they are on.

Of decoders, as transformers' sequence classifiers read them: the last token that is not the padding
token counts. A path's last token lies in the forest's row because a token is put after it, which is
asked for and never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openbezoar.errors import ModelError
from openbezoar.forest.layout import TokenPath, Tree, lay_out, on_device
from openbezoar.forest.trunk import Trunk, no_numbers, on_cpu, tokens_of


class RewardScorer(Trunk):
    """Rewards from one decoder model.

    model: of transformers, bare or wrapped by PEFT. head: [1, hidden], read in float32. pad: the
    token that is passed over at a path's end; None where there is none.
    """

    def __init__(
        self, model: nn.Module, head: nn.Linear, tokens: int = 2048, pad: int | None = None, plain: bool = False
    ) -> None:
        super().__init__(model, tokens, plain)
        if head.out_features != 1:
            raise ModelError(f"the head has {head.out_features} outputs; a reward model has one")
        self.head, self.pad = head, pad
        self._share()

    def twin(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """As of a ``Scorer``."""
        head = next(name for name, part in self.model.named_modules() if part is self.head)
        return _twin, (head, self.tokens, self.pad, self.plain)

    # Two orders of summation move a hidden state by a hundredth or so of its length; a wrong mask by a sixth and more.
    COARSE = 0.1

    def _distance(self, shared: Tensor, apart: Tensor) -> float:
        """Of hidden states [n, hidden], of which a reward is a small sum: relative, the mean over n."""
        gaps, lengths = (shared - apart).float().norm(dim=-1), apart.float().norm(dim=-1)
        return float((gaps / lengths.clamp(min=1e-12)).mean())

    def _both_ways(self, tree: Tree, probe: Tree) -> tuple[Tensor, Tensor]:
        both = (tree, tuple(_followed(path.ids) for path in probe))
        return self._in_one_row(both), self._row_a_path(both)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.trunk.parameters()).dtype

    @property
    def head_work(self) -> float:
        return 0.0  # one product of a vector a path

    def batches(self, trees: Sequence[Tree]) -> list[list[int]]:
        return super().batches([self._asked(tree) for tree in trees])

    def rewards(self, trees: Sequence[Tree]) -> list[Tensor]:
        """One pass over whole trees: per tree float32 [paths]."""
        asked = [self._asked(tree) for tree in trees]
        self._check_once(asked)
        hidden = self._row_a_path(asked) if self.plain else self._in_one_row(asked)
        bias = None if self.head.bias is None else self.head.bias.float()
        values = nn.functional.linear(hidden.float(), self.head.weight.float(), bias)[:, 0]
        return list(values.split([len(tree) for tree in trees]))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def scores(self, trees: Sequence[Tree], done: Callable[[int], None] | None = None) -> list[list[float]]:
        """Per tree the reward of each path, dropout off; ``done`` is told the trees that each pass finished.

        Leaves the model as it was. Raises ModelError for rewards that are not numbers.
        """
        results: list[list[float]] = [[]] * len(trees)
        passes = self.batches(trees)
        items = [([trees[i] for i in chosen], False) for chosen in passes]
        training = self.model.training
        self.model.eval()
        try:
            for number, values in self.deal(self, "measured", items, tokens_of):
                for i, part in zip(passes[number], values, strict=True):
                    results[i] = part
                if done is not None:
                    done(len(passes[number]))
        finally:
            self.model.train(training)
        return results

    @torch.no_grad()
    def measured(self, item: tuple[Sequence[Tree], bool]) -> list[list[float]]:
        """Of one pass, per tree the reward of each path."""
        values = on_cpu(self.rewards(item[0]))
        if not bool(values.isfinite().all()):
            raise no_numbers()
        return [part.tolist() for part in values.split([len(tree) for tree in item[0]])]  # type: ignore[no-untyped-call]

    def _asked(self, tree: Tree) -> Tree:
        """The tree with one more token after each path, which alone is asked for."""
        return tuple(_followed(self._read(path.ids)) for path in tree)

    def _read(self, ids: Sequence[int]) -> Sequence[int]:
        """A path's ids up to the token whose hidden state counts."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self.pad:
            end -= 1
        return ids[:end]

    def _in_one_row(self, asked: Sequence[Tree]) -> Tensor:
        """Hidden states [paths, hidden] of the paths' last tokens."""
        layout = lay_out(asked, self.device)
        return self._row(layout)[layout.rows]

    def _row_a_path(self, asked: Sequence[Tree]) -> Tensor:
        """As ``_in_one_row``, in a plain pass."""
        rows = [path.ids[:-1] for tree in asked for path in tree]
        (ends,) = on_device([[len(row) - 1 for row in rows]], self.device)
        return self._padded(rows)[torch.arange(len(rows), device=self.device), ends]


def _twin(loaded: Any, head: str, *arguments: Any) -> RewardScorer:
    return RewardScorer(loaded.model, loaded.model.get_submodule(head), *arguments)


def _followed(ids: Sequence[int]) -> TokenPath:
    return TokenPath((*ids, 0), (False,) * len(ids) + (True,))
