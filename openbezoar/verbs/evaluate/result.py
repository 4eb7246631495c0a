"""What ``evaluate`` leaves for others to read: its ``scores.json``.

{"version", "checkpoints": {name: {"tasks": {task: …}, "losses": {set: …}, "pairs": {set: …},
 "rewards": {set: …}, "kl": {set: …}, "wins": {set: …}}}, "reference",
 "differences": [{"a", "b", "task", "metric", "n", "difference", "low", "high", "p", "p_holm"}],
 "loss_differences": [{"a", "b", "set", …}], "pair_differences": [{"a", "b", "set", …}],
 "wins": {set: {"by", "prompts", …}}, "win_differences": [{"a", "b", "set", "what", …}]}; the last two with
``wins``, whose answers stand in ``answers.jsonl``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from openbezoar.reporting.document import Block, Fold, Grid, Paragraph, Part, Texts
from openbezoar.reporting.measured import Comparable, Difference, Items, Measured, Score, score
from openbezoar.reporting.results import Estimated, Number, PairedDifference, Record, Scores
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, shorten
from openbezoar.rows.records import Row
from openbezoar.stats.seeds import step_seed
from openbezoar.store.digests import digest

REWARD, LIKELIHOOD = "reward accuracy", "likelihood accuracy"
"""What is said of preference pairs: by the implicit reward, seen from a reference, and by the log-probability alone."""
ANSWERS, COMPARISONS = "answers.jsonl", "comparisons.jsonl"
WIN_RATE, STOPPED, DEGENERATE = "win_rate", "stopped", "degenerate"
"""What two checkpoints' answers to a set of prompts are compared in."""
SHOWN = 10  # pairs of answers in the report
LIMIT = 6000  # characters of an answer shown
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


class WinRate(Record):
    """How often a checkpoint's answers were preferred to another one's; a tie counts half."""

    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    unscored: int | None = None
    win_rate: Estimated | None = None
    length_controlled: Estimated | None = None  # as if both answers were of one length
    items: Values | None = None


class AnswersOnSet(Record):
    """What a checkpoint's answers to a set of prompts are like, and its win rates by opponent."""

    n: int | None = None
    errors: int | None = None
    tokens: Estimated | None = None
    stopped: Estimated | None = None
    degenerate: Estimated | None = None
    empty: Estimated | None = None
    reward: Estimated | None = None
    against: dict[str, WinRate] = Field(default_factory=dict)
    items: dict[str, Values] = Field(default_factory=dict)


class ComparedBy(Record):
    """Who compared the answers to a set of prompts. trust: how far that is to be believed, in sentences."""

    by: str | None = None
    prompts: int | None = None
    temperature: Number | None = None
    max_new_tokens: int | None = None
    trust: list[str] = Field(default_factory=list)

    def words(self) -> str:
        how = f"Preferred by '{self.by}'."
        return " ".join((how, *(self.trust or ["How far its preferences are people's was not measured here."])))


class AnswerPair(NamedTuple):
    """A prompt with two checkpoints' answers. All of it may be a model's, or anybody's: show it as text only."""

    prompt: str
    before: str
    after: str


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
            rates = {other: of.win_rate for other, of in answers.against.items() if of.win_rate is not None}
            values |= {_against(name, other): rate.value for other, rate in rates.items()}
            values |= {_titles(name)[STOPPED]: answers.stopped.value} if answers.stopped is not None else {}
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
            yield from _won(checkpoint, name, answers)


class EvaluateScores(Scores):
    """``scores.json`` of an evaluate step."""

    SINCE: ClassVar[Mapping[str, str]] = {"task_differences": "paired differences of checkpoints"}

    by_checkpoint: dict[str, CheckpointScores] = Field(default_factory=dict, alias="checkpoints")
    reference: str | None = None
    task_differences: list[PairedDifference] = Field(default_factory=list, alias="differences")
    loss_differences: list[PairedDifference] = Field(default_factory=list)
    pair_differences: list[PairedDifference] = Field(default_factory=list)
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
            row.told("task", f"{row.task}: {row.metric}" if row.metric else str(row.task), self._lower(row))
            for row in self.task_differences
        ]
        differences += [row.told("loss", f"{row.rows}: held-out loss") for row in self.loss_differences]
        differences += [row.told("pairs", f"{row.rows}: {LIKELIHOOD}") for row in self.pair_differences]
        differences += [
            row.told("wins", self._whose_win_rate(row)) for row in self.win_differences if row.what == WIN_RATE
        ]
        return [difference for difference in differences if difference is not None]

    def _whose_win_rate(self, row: PairedDifference) -> str:
        """A win rate's name: the later checkpoint's, or where that is the opponent what is left of it."""
        later = self.by_checkpoint.get(str(row.b), CheckpointScores()).wins.get(str(row.rows), AnswersOnSet())
        one_sided = str(row.a) in later.against
        return _against(str(row.rows), str(row.a)) if one_sided else f"{row.rows}: win rate over {row.a}"

    def answer_differences(self) -> list[Difference]:
        told = [
            row.told("ended", _titles(str(row.rows))[str(row.what)], lower=row.what == DEGENERATE)
            for row in self.win_differences
            if row.what in (STOPPED, DEGENERATE)
        ]
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
            return self._won_items(m)
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

    def _won_items(self, m: Measured) -> tuple[Items | None, str | None]:
        """As ``_items``; win rates are comparable where the opponent is the same and who compares is."""
        wins = self.step.settings.get("wins")
        for name, answers in self.by_checkpoint[m.checkpoint].wins.items():
            own = wins.get(name) if isinstance(wins, Mapping) else None
            settings = own if isinstance(own, Mapping) else {}
            data = self.step.data(settings.get("prompts"))
            asked = [data, *(settings.get(key) for key in ("limit", "max_new_tokens", "temperature", "top_p"))]
            for what, title in _titles(name).items():
                if m.name == title:
                    return _by_place(answers.items.get(what)), digest(asked) if data else None
            for other, rate in answers.against.items():
                if m.name == _against(name, other):
                    who = [self._identity(some) for some in (settings.get("by"), other)]
                    same = None if data is None or None in who else digest([*asked, *who, settings.get("mode")])
                    return _by_place(rate.items), same
        return None, None

    def _identity(self, name: Any) -> Any:
        """What makes a model or a step's model the same one."""
        parts = self.step.parts
        return (parts.get("models") or {}).get(name) or (parts.get("inputs") or {}).get(name)

    def answer_pairs(self, name: str, before: str, after: str, n: int = SHOWN) -> list[AnswerPair]:
        """So many prompts of a set with two checkpoints' answers, drawn by the run's seed and nobody's taste,
        in the prompts' order. Prompts that one of the two has no answer to are none.
        """
        by_model: dict[str, dict[str, Row]] = {before: {}, after: {}}
        for row in self.step.rows(ANSWERS):
            if row.get("set") == name and row.get("model") in by_model and row.get("finish") != "error":
                by_model[str(row["model"])][str(row.get("id"))] = row
        shared = [key for key in by_model[before] if key in by_model[after]]
        seed = step_seed(self.step.parts.get("seed") or 0, self.step.name, "shown", name)
        drawn = set(Random(seed).sample(shared, min(n, len(shared))))
        return [
            AnswerPair(
                _dialogue(by_model[after][key].get("prompt")),
                str(by_model[before][key].get("answer")),
                str(by_model[after][key].get("answer")),
            )
            for key in shared
            if key in drawn
        ]

    def blocks(self) -> list[Block]:
        return [*self._reference_blocks(), *(self._win_blocks(name) for name in self.compared_by)]

    def _win_blocks(self, name: str) -> Part:
        """A set's win rates and answers as tables, and some answers side by side."""
        found = {c: of.wins[name] for c, of in self.by_checkpoint.items() if name in of.wins}
        rates = tuple(
            (c, other, _text(rate.win_rate), _text(rate.length_controlled), *_counts(rate))
            for c, of in found.items()
            for other, rate in of.against.items()
        )
        note = (
            f"{self.compared_by[name].words()} Win rate: wins and half the ties, 0.5 is even. At equal length: by"
            " AlpacaEval 2's regression (arXiv 2404.04475), without its terms for other models."
        )
        answers = tuple(
            (c, _text(of.tokens, 1), *map(_text, (of.stopped, of.degenerate, of.empty, of.reward)))
            for c, of in found.items()
        )
        headers = ("checkpoint", "against", "win rate", "at equal length", "wins", "ties", "losses", "unscored")
        state = ("checkpoint", "mean tokens", "stopped by itself", "degenerate", "empty", "mean reward")
        blocks: list[Block] = [
            Grid(Table(headers, rates, note), "Win rates", stack=True),
            Grid(Table(state, answers), "The answers", stack=True),
        ]
        return Part(f"{name} ({self.step.name})", (*blocks, *self._shown(name, found)))

    def _shown(self, name: str, found: Mapping[str, AnswersOnSet]) -> Iterator[Block]:
        """Answers of the last checkpoint beside those of its first opponent."""
        after = [*found][-1] if found else ""
        before = next(iter(found[after].against), "") if after else ""
        pairs = self.answer_pairs(name, before, after) if before else []
        if pairs:
            about = Paragraph(f"{len(pairs)} prompts, drawn by the run's seed.")
            texts = [
                Texts((("Prompt", _cut(p.prompt)), (before, _cut(p.before)), (after, _cut(p.after)))) for p in pairs
            ]
            yield Fold(f"Answers of {before} and {after} side by side", (about, *texts))

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


def _against(name: str, other: str) -> str:
    return f"{name}: win rate against {other}"


def _titles(name: str) -> dict[str, str]:
    """What is said of a set's answers, by what they are compared in."""
    return {STOPPED: f"{name}: answers that stop", DEGENERATE: f"{name}: degenerate answers"}


def _won(checkpoint: str, name: str, answers: AnswersOnSet) -> Iterator[Measured]:
    """What the table tells of a set of prompts."""
    for other, rate in answers.against.items():
        title = _against(name, other)
        for of, measured, words in (
            (rate.win_rate, title, title),
            (
                rate.length_controlled,
                f"{title}, length-controlled",
                f"{name}: length-controlled win rate against {other}",
            ),
        ):
            if of is not None and (found := of.score()) is not None:
                yield Measured(checkpoint, "wins", measured, words, found)
    titles = _titles(name)
    for what, of in ((STOPPED, answers.stopped), (DEGENERATE, answers.degenerate)):
        if of is not None and (found := of.score()) is not None:
            lower = what == DEGENERATE
            words = titles[what] + ", lower is better" * lower
            yield Measured(checkpoint, "ended", titles[what], words, found, lower=lower)


def _counts(rate: WinRate) -> list[str]:
    return [NOTHING if n is None else str(n) for n in (rate.wins, rate.ties, rate.losses, rate.unscored)]


def _text(of: Estimated | None, digits: int = 3) -> str:
    found = None if of is None else of.score()
    return NOTHING if found is None else found.text(digits)


def _cut(text: str) -> str:
    return shorten(text, LIMIT)


def _dialogue(prompt: Any) -> str:
    """A prompt's turns as text: one alone by itself, more with who says what."""
    turns = [turn for turn in prompt if isinstance(turn, Mapping)] if isinstance(prompt, list) else []
    if len(turns) == 1:
        return str(turns[0].get("content"))
    return "\n\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns)


def _accuracy(of: Likelihoods | SubsetRewards) -> Score | None:
    return None if of.accuracy is None else of.accuracy.score(of.n)


def _texts(rewards: SubsetRewards) -> list[str]:
    return [NOTHING if found is None else found.text() for found in rewards.scores()]


def _by_place(values: Sequence[Number | None] | None) -> Items | None:
    return None if values is None else {place: float(v) for place, v in enumerate(values) if v is not None}
