"""Rewards of answers: a reward model of the recipe, or one that a step trained, asked about conversations.

A conversation is read as its template writes it when it is finished. A prompt's answers share a tree
of the forest; classifiers that are no decoders, such as DeBERTa, are run a row an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import RewardModel
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import products_of
from openbezoar.rows.records import Turn

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
        self._opened: tuple[Formatter, Any, int] | None = None

    def scores(self, asked: Asked, done: Callable[[int], None] | None = None) -> list[list[float]]:
        """As ``Rewarder`` has it. Raises ModelError for rewards that are not numbers."""
        from openbezoar.forest import TokenPath

        formatter, scorer, window = self._open()
        trees = []
        for turns, answers in asked:
            wholes = [self._fitting(formatter, window, turns, answer) for answer in answers]
            trees.append(tuple(TokenPath(ids, (False,) * len(ids)) for ids in wholes))
        scores: list[list[float]] = scorer.scores(trees, done)
        return scores

    def _fitting(self, formatter: Formatter, window: int, turns: Sequence[Turn], answer: str) -> tuple[int, ...]:
        """Ids of a finished conversation; the end of one that does not fit."""
        ids = formatter.finished_ids(turns, answer)
        if len(ids) > window:
            self._count(CUT, 1)
        return tuple(ids[-window:])

    def _open(self) -> tuple[Formatter, Any, int]:
        if self._opened is None:
            from openbezoar.forest import RewardScorer
            from openbezoar.models.load import window_of
            from openbezoar.models.reward_models import load_reward_model, scalar_head

            self._say(f"  {self.name}: loading")
            model, tokenizer = load_reward_model(self.checkpoint)
            formatter = Formatter(tokenizer, self.checkpoint.prompt)
            for note in formatter.prompt_notes:
                self._say(f"  {self.name}: {note}")
            head, pad = scalar_head(model), model.config.get_text_config().pad_token_id
            scorer: Any = (
                Classifier(model, self.tokens) if head is None else RewardScorer(model, head, self.tokens, pad)
            )
            self._opened = formatter, scorer, window_of(model, tokenizer)
        return self._opened

    def close(self) -> None:
        """Give its memory back."""
        if self._opened is not None:
            from openbezoar.models.load import free

            self._opened = None
            free()


class Classifier:
    """Scores of a classifier that is no decoder, a row a path, padded on the right."""

    def __init__(self, model: Any, tokens: int) -> None:
        self.model, self.tokens = model, tokens

    def scores(self, trees: Sequence[Any], done: Callable[[int], None] | None = None) -> list[list[float]]:
        """Per tree the score of each path."""
        import torch

        from openbezoar.forest.trunk import no_numbers

        results = []
        for tree in trees:
            width = max(len(path.ids) for path in tree)
            ids = torch.full((len(tree), width), self.model.config.pad_token_id or 0)
            mask = torch.zeros_like(ids)
            for row, path in enumerate(tree):
                ids[row, : len(path.ids)] = torch.tensor(path.ids)
                mask[row, : len(path.ids)] = 1
            with torch.no_grad():
                device = self.model.device
                logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float().cpu()
            if not bool(logits.isfinite().all()):
                raise no_numbers()
            results.append(logits.tolist())
            if done is not None:
                done(1)
        return results
