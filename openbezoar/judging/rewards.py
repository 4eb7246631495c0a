"""Rewards of answers: a reward model of the recipe, or one that a step trained, asked about conversations.

A conversation is read as its template writes it when it is finished. A prompt's answers share a tree
of the forest; classifiers that are no decoders, such as DeBERTa, are run a row an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.dialogue.tokens import Frame
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import RewardModel
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import products_of
from openbezoar.rows.records import Turn
from openbezoar.training.encode import without_oldest

CUT = "conversations cut to the reward model's window"
Asked = Sequence[tuple[Sequence[Turn], Sequence[str]]]


class Rewarder(Protocol):
    """What gives answers a number; a higher one is better, and only differences mean something."""

    def scores(self, asked: Asked, done: Callable[[int], None] | None = None) -> list[list[float]]:
        """For each conversation (turns up to the answer) with its answers: the reward of each answer.

        ``done`` is told how many conversations were finished.
        """

    def close(self) -> None:
        """Give its memory back."""


def is_reward_model(recipe: Recipe, name: str) -> bool:
    """Whether a name of a recipe stands for one."""
    if name in recipe.models:
        return isinstance(recipe.models[name], RewardModel)
    return name in recipe.steps and "reward model" in products_of(recipe.steps, name)


def open_rewards(context: StepContext, name: str) -> Rewarder:
    """The reward model behind a name of the recipe, loaded when it is first asked."""
    return LocalRewards(name, context.checkpoint(name), context.progress.say, context.counts.add)


class LocalRewards:
    """A reward model in this process. count: of conversations that were cut; tokens: of one pass."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        say: Callable[[str], None] = lambda line: None,
        count: Callable[[str, int], None] = lambda reason, n: None,
        tokens: int = 2048,
    ) -> None:
        self.name, self.checkpoint, self.tokens = name, checkpoint, tokens
        self._say, self._count = say, count
        self._opened: _Opened | None = None

    def scores(self, asked: Asked, done: Callable[[int], None] | None = None) -> list[list[float]]:
        """As ``Rewarder`` has it. Raises ModelError for rewards that are not numbers."""
        from openbezoar.forest import TokenPath

        opened = self._open()
        trees = []
        for turns, answers in asked:
            wholes = [self._fitting(opened, tuple(turns), answer) for answer in answers]
            trees.append(tuple(TokenPath(ids, (False,) * len(ids)) for ids in wholes))
        scores: list[list[float]] = opened.scorer.scores(trees, done)
        return scores

    def _fitting(self, opened: _Opened, turns: tuple[Turn, ...], answer: str) -> tuple[int, ...]:
        """Ids of a finished conversation. One that does not fit loses its oldest turns, then the beginning of
        what is left, but for its first token, which some models read all of it from.
        """
        ids, left = opened.ids(turns, answer), turns
        while len(ids) > opened.window and (shorter := without_oldest(left)) is not None:
            left = shorter
            ids = opened.ids(left, answer)
        if len(ids) > opened.window or left is not turns:
            self._count(CUT, 1)
        return tuple(ids if len(ids) <= opened.window else [ids[0], *ids[1 - opened.window :]])

    def _open(self) -> _Opened:
        if self._opened is None:
            from openbezoar.forest import RewardScorer
            from openbezoar.models.load import window_of
            from openbezoar.models.reward_models import load_reward_model, scalar_head

            self._say(f"  {self.name}: loading")
            model, tokenizer = load_reward_model(self.checkpoint)
            if tokenizer.eos_token is None:  # as of BERT, whose texts end in a separator
                tokenizer.eos_token = tokenizer.sep_token
            formatter = Formatter(tokenizer, self.checkpoint.prompt)
            for note in formatter.prompt_notes:
                self._say(f"  {self.name}: {note}")
            head, window = scalar_head(model), min(window_of(model, tokenizer), tokenizer.model_max_length)
            if head is None:
                self._opened = _Opened(formatter, Classifier(model, self.tokens), window, Frame.of(tokenizer))
            else:
                pad = model.config.get_text_config().pad_token_id
                self._opened = _Opened(formatter, RewardScorer(model, head, self.tokens, pad), window, Frame((), ()))
        return self._opened

    def close(self) -> None:
        """Give its memory back."""
        if self._opened is not None:
            from openbezoar.models.load import free

            self._opened = None
            free()


@dataclass(frozen=True)
class _Opened:
    """A loaded model. window: most ids; frame: what its tokenizer puts around every text, of those that are
    no decoders.
    """

    formatter: Formatter
    scorer: Any
    window: int
    frame: Frame

    def ids(self, turns: Sequence[Turn], answer: str) -> list[int]:
        ids = self.formatter.finished_ids(turns, answer)
        before, after = list(self.frame.before), list(self.frame.after)
        ids = ids if ids[: len(before)] == before else before + ids
        return ids if not after or ids[-len(after) :] == after else ids + after


class Classifier:
    """Scores of a classifier that is no decoder, a row a path, padded on the right. tokens: of one pass."""

    def __init__(self, model: Any, tokens: int) -> None:
        self.model, self.tokens = model, tokens

    def scores(self, trees: Sequence[Any], done: Callable[[int], None] | None = None) -> list[list[float]]:
        """Per tree the score of each path. Raises ModelError for scores that are not numbers."""
        from openbezoar.forest.trunk import deal_of

        results: list[list[float]] = [[]] * len(trees)
        deal = deal_of(self.model)
        for place, scores in deal(self, "measured", trees, lambda tree: sum(len(path.ids) for path in tree)):
            results[place] = scores
            if done is not None:
                done(1)
        return results

    def twin(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """As of a ``Scorer``."""
        return _classifier, (self.tokens,)

    def measured(self, tree: Any) -> list[float]:
        """The score of each path of a tree."""
        rows = [list(path.ids) for path in tree]
        most = max(1, self.tokens // max(map(len, rows)))
        parts = [self._pass(rows[first : first + most]) for first in range(0, len(rows), most)]
        return [score for part in parts for score in part]

    def _pass(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch

        from openbezoar.forest.trunk import no_numbers

        ids = torch.full((len(rows), max(map(len, rows))), self.model.config.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        device = self.model.device
        with torch.no_grad():
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float().cpu()
        if not bool(logits.isfinite().all()):
            raise no_numbers()
        scores: list[float] = logits.tolist()
        return scores


def _classifier(loaded: Any, tokens: int) -> Classifier:
    return Classifier(loaded.model, tokens)
