"""What ``evaluate`` leaves for others to read: its ``scores.json``.

{"version", "checkpoints": {name: {"tasks": {task: …}, "losses": {set: …}, "pairs": {set: …},
 "rewards": {set: …}, "kl": {set: …}, "wins": {set: …}}}, "reference",
 "differences": [{"a", "b", "task", "metric", "n", "difference", "low", "high", "p", "p_holm"}],
 "loss_differences": [{"a", "b", "set", …}], "pair_differences": [{"a", "b", "set", …}],
 "reward_differences": [{"a", "b", "set", …}],
 "wins": {set: {"by", "prompts", …}}, "win_differences": [{"a", "b", "set", "what", …}]}; the last two with
``wins`` (``won``). A reward difference from the reference is one from chance, 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from openbezoar.reporting.document import Block, Grid, Part
from openbezoar.reporting.measured import Comparable, Difference, Items, Measured, Score, score
from openbezoar.reporting.results import Estimated, Number, PairedDifference, Record, Scores
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING
from openbezoar.store.digests import digest
from openbezoar.verbs.evaluate.won import (
    DEGENERATE,
    STOPPED,
    WIN_RATE,
    AnswersOnSet,
    ComparedBy,
    against,
    titles,
    win_blocks,
    won_items,
)

REWARD, LIKELIHOOD = "reward accuracy", "likelihood accuracy"
"""What is said of preference pairs: by the implicit reward, seen from a reference, and by the log-probability alone."""
Values = list[Number | None]
"""A value for each item, None for one left out."""


class ByItem(NamedTuple):
    """A quantity's value for each item."""

    kind: str  # task, pairs or loss
    values: Values
    lower: bool  # lower values are better


class TaskScores(Record):
    """A benchmark's result, as ``harness.run`` gives it."""

    task: str | None = None
    fewshot: int | None = None
    n: int | None = None
    revision: Any = Field(None, alias="version")  # lm-eval's of the task
    metrics: dict[str, Estimated] = Field(default_factory=dict)
    main: str | None = None
    higher_is_better: bool | None = None  # of ``main``; older files do not say, and then it is
    items: Values | None = None
    truncated: int | None = None
    prompt_hash: str | None = None
    thoughts_left_out: int | None = None
    end_left_out: str | None = None
    subjects: dict[str, Any] | None = None

    @property
    def lower(self) -> bool:
        """Whether lower values of the main metric are better."""
        return self.higher_is_better is False

    def main_score(self) -> Score | None:
        main = self.metrics.get(self.main or "")
        return None if main is None else main.score(self.n)


class HeldOutLoss(Estimated):
    """A held-out loss, in nats a token."""

    tokens: int | None = None
    unscored: int | None = None
    items: Values | None = None


class SubsetShare(Record):
    """A likelihood accuracy of a named subset of the pairs."""

    n: int | None = None
    accuracy: Estimated | None = None


class Likelihoods(Record):
    """How often the chosen answer of a pair is the likelier one."""

    accuracy: Estimated | None = None
    n: int | None = None
    normalised: Estimated | None = None  # by the mean over an answer's tokens
    identical: int | None = None
    unscored: int | None = None
    subsets: dict[str, SubsetShare] = Field(default_factory=dict)
    items: Values | None = None
    sums: list[list[Number] | None] | None = None  # log-probabilities of chosen and rejected


class SubsetRewards(Record):
    """Implicit rewards on some pairs."""

    n: int | None = None
    accuracy: Estimated | None = None
    margin: Estimated | None = None  # nats

    def scores(self) -> tuple[Score | None, Score | None]:
        """Accuracy and margin."""
        return _accuracy(self), None if self.margin is None else self.margin.score(self.n)


class Rewards(SubsetRewards):
    """Implicit rewards on a set of pairs, seen from the reference; ``items`` are margins."""

    subsets: dict[str, SubsetRewards] = Field(default_factory=dict)
    items: Values | None = None


class Divergence(Record):
    """KL divergence from the reference over the checkpoint's own answers, in nats."""

    n: int | None = None
    tokens: int | None = None
    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    per_token: Number | None = None

    def text(self) -> str:
        whole = score(self.value, self.low, self.high, self.n)
        return NOTHING if whole is None or self.per_token is None else f"{whole.text()}, {self.per_token:.4f} a token"


class CheckpointScores(Record):
    """All that was measured of a checkpoint, by task and by name of a set of rows."""

    tasks: dict[str, TaskScores] = Field(default_factory=dict)
    losses: dict[str, HeldOutLoss] = Field(default_factory=dict)
    pairs: dict[str, Likelihoods] = Field(default_factory=dict)
    rewards: dict[str, Rewards] = Field(default_factory=dict)
    kl: dict[str, Divergence] = Field(default_factory=dict)
    wins: dict[str, AnswersOnSet] = Field(default_factory=dict)

    def main_values(self) -> dict[str, float]:
        """The main value of each task and set, to four decimals."""
        values: dict[str, Number | None] = {}
        for name, task in self.tasks.items():
            values[name] = task.metrics[str(task.main)].value
        values |= {f"loss {name}": loss.value for name, loss in self.losses.items()}
        for title, sets in ((REWARD, self.rewards), (LIKELIHOOD, self.pairs)):
            values |= {f"{name}, {title}": of.accuracy.value for name, of in sets.items() if of.accuracy is not None}
        for name, answers in self.wins.items():
            values |= answers.main_values(name)
        return {name: round(value, 4) for name, value in values.items() if value is not None}

    def by_item(self) -> dict[str, ByItem]:
        """Values by item of each task, set of pairs and set of rows; of those of one name the first."""
        tasks = {name: ByItem("task", task.items or [], task.lower) for name, task in self.tasks.items()}
        pairs = {name: ByItem("pairs", of.items or [], False) for name, of in self.pairs.items()}
        losses = {name: ByItem("loss", loss.items or [], True) for name, loss in self.losses.items()}
        return tasks | {name: of for name, of in (pairs | losses | pairs).items() if name not in tasks}

    def set_of(self, kind: str, name: str) -> HeldOutLoss | Likelihoods | Rewards:
        """What was measured on a set of rows."""
        if kind == "loss":
            return self.losses[name]
        return self.rewards[name] if kind == "rewards" else self.pairs[name]

    def measured(self, checkpoint: str) -> Iterator[Measured]:
        for name, task in self.tasks.items():
            if (found := task.main_score()) is not None:
                shots = "" if task.fewshot is None else f", {task.fewshot}-shot"
                direction = ", lower is better" if task.lower else ""
                title = f"{name}: {task.main}{shots}{direction}"
                yield Measured(checkpoint, "task", name, title, found, lower=task.lower)
        for name, loss in self.losses.items():
            if (found := loss.score()) is not None:
                yield Measured(checkpoint, "loss", name, f"{name}: held-out loss", found, lower=True)
        for name, rewards in self.rewards.items():
            if (found := _accuracy(rewards)) is not None:
                yield Measured(checkpoint, "rewards", name, f"{name}: {REWARD}", found)
        for name, pairs in self.pairs.items():
            if (found := _accuracy(pairs)) is not None:
                yield Measured(checkpoint, "pairs", name, f"{name}: {LIKELIHOOD}", found)
        for name, answers in self.wins.items():
            yield from answers.measured(checkpoint, name)


class EvaluateScores(Scores):
    """``scores.json`` of an evaluate step."""

    SINCE: ClassVar[Mapping[str, str]] = {"task_differences": "paired differences of checkpoints"}

    by_checkpoint: dict[str, CheckpointScores] = Field(default_factory=dict, alias="checkpoints")
    reference: str | None = None
    task_differences: list[PairedDifference] = Field(default_factory=list, alias="differences")
    loss_differences: list[PairedDifference] = Field(default_factory=list)
    pair_differences: list[PairedDifference] = Field(default_factory=list)
    reward_differences: list[PairedDifference] = Field(default_factory=list)
    compared_by: dict[str, ComparedBy] = Field(default_factory=dict, alias="wins")
    win_differences: list[PairedDifference] = Field(default_factory=list)

    def outcome(self) -> str:
        return f"{len(self.by_checkpoint)} checkpoints"

    def checkpoints(self) -> list[str]:
        return self._listed(self.by_checkpoint)

    def scores(self) -> list[Measured]:
        return [m for name, found in self.by_checkpoint.items() for m in found.measured(name)]

    def seen_from(self) -> str | None:
        return self.reference

    def differences(self) -> list[Difference]:
        differences = [
            row.told(
                "task",
                str(row.task),
                f"{row.task}: {row.metric}" if row.metric else str(row.task),
                lower=self._lower(row),
            )
            for row in self.task_differences
        ]
        for kind, title, rows in (
            ("loss", "held-out loss", self.loss_differences),
            ("pairs", LIKELIHOOD, self.pair_differences),
        ):
            differences += [row.told(kind, str(row.rows), f"{row.rows}: {title}") for row in rows]
        differences += [self._of_rewards(row) for row in self.reward_differences]
        differences += [self._of_win_rate(row) for row in self.win_differences if row.what == WIN_RATE]
        return [difference for difference in differences if difference is not None]

    def _of_rewards(self, row: PairedDifference) -> Difference | None:
        """The reference has no reward accuracy of its own: chance stands for it."""
        chance = row.a == self.reference
        title = f"{row.rows}: {REWARD}{' less 0.5, which is chance' if chance else ''}"
        return row.told("rewards", str(row.rows), title, chance=chance)

    def _of_win_rate(self, row: PairedDifference) -> Difference | None:
        """Of the later checkpoint's win rate, or where that is the opponent what the other's leaves of it."""
        later = self.by_checkpoint.get(str(row.b), CheckpointScores()).wins.get(str(row.rows), AnswersOnSet())
        if str(row.a) in later.against:
            title = against(str(row.rows), str(row.a))
            return row.told("wins", title, title)
        return row.told("wins", against(str(row.rows), str(row.b)), f"{row.rows}: win rate over {row.a}")

    def answer_differences(self) -> list[Difference]:
        told = []
        for row in (row for row in self.win_differences if row.what in (STOPPED, DEGENERATE)):
            title = titles(str(row.rows))[str(row.what)]
            told.append(row.told("ended", title, title, lower=row.what == DEGENERATE))
        return [difference for difference in told if difference is not None]

    def beside(self) -> list[str]:
        return [f"{name}: {by.words()}" for name, by in self.compared_by.items()]

    def _lower(self, row: PairedDifference) -> bool:
        later = self.by_checkpoint.get(str(row.b), CheckpointScores()).tasks.get(str(row.task))
        return later is not None and later.lower

    def comparable(self) -> Iterator[Comparable]:
        for m in self.scores():
            yield Comparable(m, *self._items(m))

    def _items(self, m: Measured) -> tuple[Items | None, str | None]:
        """Values by place, and what says that two lists of places are of the same items."""
        scores, settings = self.by_checkpoint[m.checkpoint], self.step.settings
        if m.kind in ("wins", "ended"):
            return won_items(self.step, m, scores.wins)
        if m.kind == "task":
            task = scores.tasks[m.name]
            identity = [task.prompt_hash, task.task, task.main, task.fewshot, len(task.items or ())]
            return _by_place(task.items), digest(identity) if identity[0] else None
        of = scores.set_of(m.kind, m.name)
        refs = settings.get("losses" if m.kind == "loss" else "pairs")
        ref = refs.get(m.name) if isinstance(refs, Mapping) else None
        # A loss a token is comparable only where the same text is as many tokens.
        tokens = of.tokens if isinstance(of, HeldOutLoss) else None
        identity = [self.step.data(ref), settings.get("loss_rows"), tokens, len(of.items or ())]
        items = _by_place(of.items)
        if m.kind == "rewards":
            identity.append(self.reference)
            # margins, in nats, of which the accuracy counts those above zero
            items = items and {place: float(margin > 0) for place, margin in items.items()}
        return items, digest(identity) if identity[0] else None

    def blocks(self) -> list[Block]:
        of_wins = (win_blocks(self.step, name, by, self._on(name)) for name, by in self.compared_by.items())
        return [*self._reference_blocks(), *of_wins]

    def _on(self, name: str) -> dict[str, AnswersOnSet]:
        """What each checkpoint answered to a set of prompts."""
        return {c: of.wins[name] for c, of in self.by_checkpoint.items() if name in of.wins}

    def _reference_blocks(self) -> list[Block]:
        """Implicit rewards on pairs, by subset, and the divergence, where a reference was named."""
        rows: list[tuple[str, ...]] = []
        for checkpoint, found in self.by_checkpoint.items():
            for name, rewards in found.rewards.items():
                drift = found.kl[name].text() if name in found.kl else NOTHING
                rows.append((checkpoint, name, *_texts(rewards), drift))
                rows += [
                    (checkpoint, f"{name}: {subset}", *_texts(part), NOTHING)
                    for subset, part in rewards.subsets.items()
                ]
        if not rows:
            return []
        headers = ("checkpoint", "pairs", "reward accuracy", "margin, nats", "KL divergence of whole answers, nats")
        note = (
            f"Seen from '{self.reference}': how much likelier an answer has become than it was there. KL: over answers"
            " that the checkpoint itself gave."
        )
        table = Grid(Table(headers, tuple(rows), note), "Implicit rewards and divergence", stack=True)
        return [Part(f"Against the reference ({self.step.name})", (table,))]


def _accuracy(of: Likelihoods | SubsetRewards) -> Score | None:
    return None if of.accuracy is None else of.accuracy.score(of.n)


def _texts(rewards: SubsetRewards) -> list[str]:
    return [NOTHING if found is None else found.text() for found in rewards.scores()]


def _by_place(values: Sequence[Number | None] | None) -> Items | None:
    return None if values is None else {place: float(v) for place, v in enumerate(values) if v is not None}
