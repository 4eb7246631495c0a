"""Trainings in numbers: what a step trained on, how its held-out loss moved, how it was set.

Asks the steps' results and reads their logs; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from openbezoar.recipe.losses import LOSSES
from openbezoar.recipe.train_steps import WHOLE
from openbezoar.reporting.measured import Score
from openbezoar.reporting.measured import score as score_of
from openbezoar.reporting.results import Number, Result, StepFacts
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, number, tally
from openbezoar.stats.intervals import proportion_interval
from openbezoar.stats.pair_accuracy import PairAccuracy

METRICS, HELD_OUT = "metrics.jsonl", "heldout.jsonl"
Curve = tuple[tuple[float, float], ...]
"""A quantity over optimiser steps."""


class TrainingNumbers(Result):
    """Of a step that trains, as ``training.loop.train`` gives them and the step adds to them."""

    ROWS: ClassVar[str] = "rows"
    """What is trained on, in the plural."""
    SINCE: ClassVar[Mapping[str, str]] = {"answers_end_scored": "whether the end of an answer was trained"}

    rows: int | None = None
    steps: int | None = None
    tokens: int | None = None
    tokens_per_second: Number | None = None
    matmul_fraction: Number | None = None
    first_loss: Number | None = None
    last_loss: Number | None = None
    trainable_parameters: int | None = None
    kept_step: int | None = None  # with measurements on the way: the step of the best one
    processes: int | None = None
    heldout_loss_before: Number | None = None
    heldout_loss_after: Number | None = None
    prompt_notes: list[str] | None = None  # of a base's template that cannot be trained as it is
    peak_memory_bytes: int | None = None  # of a GPU
    heldout_rows: int | None = None
    answers_end_scored: bool | None = None
    quantize: str | None = None  # how the base was held, where that was left to its size
    targets: list[str] | None = None  # of the adapter, where they were not named

    def outcome(self) -> str:
        before, after = number(self.heldout_loss_before, 2), number(self.heldout_loss_after, 2)
        return f"{number(self.rows)} {self.ROWS}, loss {before} → {after}"

    def line(self) -> str:
        """The step in one line."""
        return (
            f"{self.steps} steps on {self.rows} {self.ROWS}; held-out loss {self.heldout_loss_before:.3f} →"
            f" {self.heldout_loss_after:.3f}"
        )

    def speed(self) -> float | None:
        return self.tokens_per_second

    def tokens_trained(self) -> int | None:
        return self.tokens

    def losses(self) -> str:
        """The held-out loss before and after."""
        return f"{number(self.heldout_loss_before)} → {number(self.heldout_loss_after)}"

    def accuracy_after(self) -> float | None:
        """Reward accuracy on held-out pairs after a preference training."""
        return None

    def held_in(self) -> str:
        """How the base was held while it was trained on."""
        return self.quantize or str(self.step.settings.get("quantize", NOTHING))

    def adapter(self) -> str:
        """What was put on the base."""
        lora = self.step.settings.get("lora") or {}
        if lora == WHOLE:
            return "none: all weights"
        kind = self.step.settings.get("adapter", "new")
        scaled = " (rank-stabilised)" if lora.get("rslora") else ""
        targets = lora.get("targets") or []
        named = " ".join(self.targets or ([targets] if isinstance(targets, str) else targets))
        return f"{kind}: r={lora.get('r')}, alpha={lora.get('alpha')}{scaled}, dropout={lora.get('dropout')}, {named}"


class PreferenceNumbers(TrainingNumbers):
    """Of a step that trains on preferred against rejected answers."""

    ROWS: ClassVar[str] = "pairs"

    heldout_margin_before: Number | None = None
    heldout_margin_after: Number | None = None
    heldout_accuracy_before: Number | None = None
    heldout_accuracy_after: Number | None = None
    loss: str | None = None
    beta: Number | None = None  # other constants of a loss are kept under their names
    reference: str | None = None

    def line(self) -> str:
        accuracy = f"reward accuracy → {self.heldout_accuracy_after:.3f} (n={self.heldout_rows})"
        return f"{super().line()}, {accuracy}"

    def accuracy_after(self) -> float | None:
        return self.heldout_accuracy_after

    def heldout_accuracy(self) -> Score | None:
        """Reward accuracy on held-out pairs after training."""
        value, n = self.heldout_accuracy_after, self.heldout_rows
        if value is None or n is None or n < 1:
            return None
        return score_of(value, *proportion_interval(min(max(round(value * n), 0), n), n), n)

    def rewards(self) -> dict[str, tuple[object, object]]:
        """Rewards in the first and in the last batch, by name."""
        log = list(self.step.rows(METRICS))
        first, last = (log[0], log[-1]) if log else ({}, {})
        return {k: (first.get(f"rewards/{k}"), last.get(f"rewards/{k}")) for k in ("chosen", "rejected", "margins")}


class RewardNumbers(TrainingNumbers):
    """Of a step that trains a reward model on pairs. What says ``saved`` is of the classifier that was written."""

    ROWS: ClassVar[str] = "pairs"

    heldout_margin_before: Number | None = None
    heldout_margin_after: Number | None = None
    heldout_accuracy_before: Number | None = None
    heldout_accuracy_after: Number | None = None
    saved: PairAccuracy | None = None
    drift: Number | None = None  # mean difference of a reward, saved less trained, without its sign

    def line(self) -> str:
        if self.saved is None:
            return super().line()
        return f"{super().line()}, right about {self.saved.text()}"

    def outcome(self) -> str:
        return super().outcome() if self.saved is None else f"right about {self.saved.text()}"

    def trust(self) -> list[str]:
        if self.saved is None:
            return []
        step = self.kept_step
        kept = "" if step is None else f", by whose loss step {step} was kept: a little too good"
        return [
            f"The reward model {self.step.name} is right about {self.saved.text()} (pairs held out{kept}; the length:"
            " of the longer answer, or of the shorter one where that is right more often)."
        ]


class UnpairedNumbers(TrainingNumbers):
    """Of a step that trains on answers that were liked or not."""

    ROWS: ClassVar[str] = "answers"

    liked: int | None = None  # of the answers trained on
    heldout_liked: int | None = None
    beta: Number | None = None
    desirable_weight: Number | None = None
    undesirable_weight: Number | None = None
    heldout_reward_liked_before: Number | None = None
    heldout_reward_liked_after: Number | None = None
    heldout_reward_disliked_before: Number | None = None
    heldout_reward_disliked_after: Number | None = None
    heldout_margin_before: Number | None = None  # None where no held-out answer was liked, or all were
    heldout_margin_after: Number | None = None
    heldout_auc_before: Number | None = None
    heldout_auc_after: Number | None = None
    heldout_kl_before: Number | None = None
    heldout_kl_after: Number | None = None

    def line(self) -> str:
        if self.heldout_auc_after is None:
            return super().line()
        return f"{super().line()}, AUC of rewards → {self.heldout_auc_after:.3f} (n={self.heldout_rows})"


def curve(step: StepFacts, file: str, key: str) -> Curve:
    """A quantity of a training step's log over its optimiser steps."""
    rows = ((row.get("step"), row.get(key)) for row in step.rows(file))
    return tuple((float(x), float(y)) for x, y in rows if isinstance(x, int | float) and isinstance(y, int | float))


def training_table(trainings: Sequence[TrainingNumbers], speed: bool = True) -> Table:
    """Rows, steps, held-out loss before and after; with ``speed`` tokens a second, which no two runs have the same."""
    rows = []
    for n in trainings:
        step = n.step
        rows.append(
            (
                f"{step.name} ({step.verb})",
                str(step.settings.get("model", NOTHING)),
                number(n.rows),
                number(n.steps),
                f"{n.losses()} (n={NOTHING if n.heldout_rows is None else n.heldout_rows} rows)",
                number(n.tokens),
                *([_decimal(n.tokens_per_second, 1)] if speed else []),
                NOTHING if n.answers_end_scored is None else "yes" if n.answers_end_scored else "no",
                tally(step.counts),
            )
        )
    headers = (
        "step",
        "on top of",
        "rows",
        "optimiser steps",
        "held-out loss before → after",
        "tokens",
        *(["tokens/s"] if speed else []),
        "end of answer trained",
        "rows counted by reason",
    )
    return Table(
        headers,
        tuple(rows),
        "Held-out rows are every n-th row, kept out of the step's training, or the rows that the recipe names; earlier"
        " steps may have trained on them. The loss of a dpo or kto step is the preference loss, that of an sft step the"
        " mean per answer token in nats.",
    )


def settings_table(trainings: Sequence[TrainingNumbers]) -> Table:
    """The settings that a reader would need to train again."""
    rows = []
    for n in trainings:
        step, s = n.step, n.step.settings
        schedule = f"{s.get('schedule')}, warm-up {s.get('warmup')}"
        rows.append(
            (
                step.name,
                *(str(s.get(k, NOTHING)) for k in ("learning_rate", "batch", "epochs")),
                schedule,
                n.adapter(),
                n.held_in(),
                str(s.get("max_length", NOTHING)),
            )
        )
    note = "'continue' goes on with the adapter of the sft step below, and starts a new one on a model that has none."
    return Table(
        ("step", "learning rate", "batch", "epochs", "schedule", "adapter", "base held in", "most tokens"),
        tuple(rows),
        note,
    )


def preference_table(trainings: Sequence[PreferenceNumbers]) -> Table:
    """Rewards of preference trainings."""
    rows = []
    for n in trainings:
        settings = n.step.settings
        after = n.heldout_accuracy()
        rows.append(
            (
                n.step.name,
                str(n.loss or settings.get("loss") or "sigmoid"),
                str(n.beta or settings.get("beta") or NOTHING),
                _decimal(n.first_loss, 4),
                *(f"{_decimal(first)} → {_decimal(last)}" for first, last in n.rewards().values()),
                _decimal(n.heldout_accuracy_before),
                NOTHING if after is None else after.text(),
            )
        )
    headers = (
        "step",
        "preference loss",
        "beta",
        "loss before the first update",
        "reward of chosen, first → last batch",
        "reward of rejected",
        "margin",
        "held-out reward accuracy before",
        "after",
    )
    alone = ", ".join(name for name, loss in LOSSES.items() if not loss.needs_reference)
    note = (
        "Before the first update policy and reference are the same model: DPO's loss is ln 2 = 0.6931, and rewards,"
        " margins and accuracy (chosen strictly above rejected) are 0 by definition. Losses without a reference"
        f" ({alone}) have no such start; their rewards are the policy's own mean log-probabilities of a token, scaled."
    )
    return Table(headers, tuple(rows), note)


def unpaired_table(trainings: Sequence[UnpairedNumbers]) -> Table:
    """Rewards of trainings on answers that were liked or not."""
    rows = []
    for n in trainings:
        others = None if n.rows is None or n.liked is None else n.rows - n.liked
        held = None if n.heldout_rows is None or n.heldout_liked is None else n.heldout_rows - n.heldout_liked
        moved = (
            (n.heldout_reward_liked_before, n.heldout_reward_liked_after),
            (n.heldout_reward_disliked_before, n.heldout_reward_disliked_after),
            (n.heldout_margin_before, n.heldout_margin_after),
            (n.heldout_auc_before, n.heldout_auc_after),
            (n.heldout_kl_before, n.heldout_kl_after),
        )
        rows.append(
            (
                n.step.name,
                f"{number(n.liked)} : {number(others)}",
                " : ".join(NOTHING if w is None else f"{w:g}" for w in (n.desirable_weight, n.undesirable_weight)),
                _decimal(n.beta),
                _decimal(n.first_loss, 4),
                f"{number(n.heldout_liked)} : {number(held)}",
                *(f"{_decimal(before)} → {_decimal(after)}" for before, after in moved),
            )
        )
    headers = (
        "step",
        "liked : other answers",
        "their weights",
        "beta",
        "loss before the first update",
        "held out, liked : other",
        "reward of liked, before → after",
        "reward of other answers",
        "margin",
        "AUC of rewards",
        "z0",
    )
    note = (
        "All from the margin's left on is of held-out answers. A reward is beta times the log-ratio of policy and"
        " reference; the margin is the difference of the two mean rewards, of answers to different prompts. AUC is the"
        " chance that a liked answer has a higher reward than one that was not, 0.5 where rewards tell nothing, as"
        " before the first update. z0 is the estimate of the divergence from the reference with which the loss"
        " compares, in nats."
    )
    return Table(headers, tuple(rows), note)


def _decimal(value: object, digits: int = 3) -> str:
    """A number with so many decimals, whole ones too."""
    return number(float(value), digits) if isinstance(value, int | float) and not isinstance(value, bool) else NOTHING
