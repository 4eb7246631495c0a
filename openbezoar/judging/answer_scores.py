"""How good several answers to one prompt are: a number each, by a reward model or by a judge's ratings.

Asks the model that a recipe names; writes nothing. Only what stands between two answers to the same
prompt means something.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from openbezoar.context import StepContext
from openbezoar.judging.ratings import Item, rate
from openbezoar.judging.rewards import Asked, Rewarder, is_reward_model, open_rewards
from openbezoar.llm import LLM, open_llm
from openbezoar.recipe.fields import RatingSettings
from openbezoar.rows.held import question_text

LOWEST, BATCH = 1.0, 32  # of a judge's ratings; of its calls


class AnswerScores:
    """What scores answers, opened when it is first asked. files: texts for a judge instead of the project's own."""

    def __init__(
        self, name: str, context: StepContext, rating: RatingSettings, files: Mapping[str, Path], batch: int = BATCH
    ) -> None:
        self.name, self.context, self.rating, self.files, self.batch = name, context, rating, files, batch
        self._rewards: Rewarder | None = None
        self._judge: LLM | None = None

    def __call__(self, asked: Asked) -> list[list[float | None]]:
        """For each conversation (turns up to the answer) the score of each of its answers; None of one
        that the judge gave no rating, which is counted.
        """
        if not asked:
            return []
        if is_reward_model(self.context.recipe, self.name):
            return [list(scores) for scores in self._by_reward(asked)]
        return self._by_rating(asked)

    def close(self) -> None:
        """Give back what it holds."""
        for opened in (self._rewards, self._judge):
            if opened is not None:
                opened.close()
        self._rewards = self._judge = None

    def _by_reward(self, asked: Asked) -> list[list[float]]:
        if self._rewards is None:
            self._rewards = open_rewards(self.context, self.name)
        with self.context.progress.bar("rewards", len(asked), "prompts") as bar:
            return self._rewards.scores(asked, bar.advance)

    def _by_rating(self, asked: Asked) -> list[list[float | None]]:
        if self._judge is None:
            self._judge = open_llm(self.name, self.context)
        shown = [
            (question_text([turn.as_dict() for turn in turns]), answer)
            for turns, answers in asked
            for answer in answers
        ]
        items: list[Item] = [(place, question, answer) for place, (question, answer) in enumerate(shown)]
        verdicts = rate(
            self._judge,
            self.rating,
            self.context,
            items,
            batch=self.batch,
            min_rating=LOWEST,
            files=self.files,
        )
        for verdict in verdicts:
            if "unscored" in verdict:
                self.context.counts.add(f"answers unscored: {verdict['unscored']}")
        ratings = iter(verdict.get("rating") for verdict in verdicts)
        return [[next(ratings) for _ in answers] for _, answers in asked]
