"""The report's sections about training and merging."""

from __future__ import annotations

from collections.abc import Sequence

from openbezoar.recipe.losses import LOSSES
from openbezoar.reporting.document import Block, Fold, Gallery, Grid, Paragraph, Picture, Section
from openbezoar.reporting.facts import RunFacts, StepFacts
from openbezoar.reporting.figures import Series, line_chart
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate, number, slug, tally
from openbezoar.stats.intervals import proportion_interval


def training_section(facts: RunFacts) -> Section | None:
    """What every sft and dpo step did; None without one."""
    steps = facts.of("sft", "dpo")
    if not steps:
        return None
    blocks: list[Block] = [Grid(training_table(steps), "Training steps", stack=True)]
    if preference := [s for s in steps if s.verb == "dpo"]:
        blocks += [Grid(preference_table(preference), "Rewards of preference training", stack=True)]
    if pictures := tuple(picture for step in steps for picture in _curves(step)):
        blocks.append(Gallery(pictures))
    blocks.append(
        Fold("Settings of the training steps", (Grid(settings_table(steps), "Settings of training", stack=True),))
    )
    return Section("Training", tuple(blocks))


def training_table(steps: Sequence[StepFacts], speed: bool = True) -> Table:
    """Rows, steps, held-out loss before and after; with ``speed`` tokens a second, which no two runs have the same."""
    rows = []
    for step in steps:
        n = step.numbers
        loss = f"{number(n.get('heldout_loss_before'))} → {number(n.get('heldout_loss_after'))}"
        rows.append(
            (
                f"{step.name} ({step.verb})",
                str(step.settings.get("model", NOTHING)),
                number(n.get("rows")),
                number(n.get("steps")),
                f"{loss} (n={n.get('heldout_rows', NOTHING)} rows)",
                number(n.get("tokens")),
                *([number(_float(n.get("tokens_per_second")), 1)] if speed else []),
                _yes(n.get("answers_end_scored")),
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
        " steps may have trained on them. The loss of a dpo step is the preference loss, that of an sft step the mean"
        " per answer token in nats.",
    )


def settings_table(steps: Sequence[StepFacts]) -> Table:
    """The settings that a reader would need to train again."""
    rows = []
    for step in steps:
        s = step.settings
        lora = s.get("lora") or {}
        adapter = (
            f"r={lora.get('r')}, alpha={lora.get('alpha')}, dropout={lora.get('dropout')},"
            f" {' '.join(lora.get('targets') or [])}"
        )
        schedule = f"{s.get('schedule')}, warm-up {s.get('warmup')}"
        kind = s.get("adapter", "new")
        rows.append(
            (
                step.name,
                *(str(s.get(k, NOTHING)) for k in ("learning_rate", "batch", "epochs")),
                schedule,
                f"{kind}: {adapter}",
                str(s.get("quantize", NOTHING)),
                str(s.get("max_length", NOTHING)),
            )
        )
    note = "'continue' goes on with the adapter of the sft step below, and starts a new one on a model that has none."
    return Table(
        ("step", "learning rate", "batch", "epochs", "schedule", "adapter", "base held in", "most tokens"),
        tuple(rows),
        note,
    )


def preference_table(steps: Sequence[StepFacts]) -> Table:
    """Rewards of dpo steps."""
    rows = []
    for step in steps:
        n = step.numbers
        first_last = [f"{number(_float(first))} → {number(_float(last))}" for first, last in rewards(step).values()]
        rows.append(
            (
                step.name,
                str(n.get("loss") or step.settings.get("loss") or "sigmoid"),
                str(n.get("beta") or step.settings.get("beta") or NOTHING),
                number(_float(n.get("first_loss")), 4),
                *first_last,
                number(_float(n.get("heldout_accuracy_before"))),
                _accuracy(step),
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


def rewards(step: StepFacts) -> dict[str, tuple[object, object]]:
    """A dpo step's rewards in its first and its last batch, by name."""
    log = list(step.rows("metrics.jsonl"))
    first, last = (log[0], log[-1]) if log else ({}, {})
    return {k: (first.get(f"rewards/{k}"), last.get(f"rewards/{k}")) for k in ("chosen", "rejected", "margins")}


def heldout_accuracy(step: StepFacts) -> tuple[float, float, float, int] | None:
    """A dpo step's reward accuracy on held-out pairs after training with its 95 % interval and n; None without one."""
    value, n = step.numbers.get("heldout_accuracy_after"), step.numbers.get("heldout_rows")
    if not isinstance(value, int | float) or not isinstance(n, int) or n < 1:
        return None
    return (value, *proportion_interval(min(max(round(value * n), 0), n), n), n)


def _accuracy(step: StepFacts) -> str:
    found = heldout_accuracy(step)
    return NOTHING if found is None else f"{estimate(*found[:3])} n={found[3]}"


def _curves(step: StepFacts) -> list[Picture]:
    """Loss over optimiser steps, with the held-out measurements as dots; rewards and margins for dpo."""
    held_out = Series("held out", curve(step, "heldout.jsonl", "loss"), marks=True)
    pictures = [
        (f"{step.name}: loss", "loss", [Series("training batch", curve(step, "metrics.jsonl", "loss")), held_out])
    ]
    if step.verb == "dpo":
        rewards = [Series(k, curve(step, "metrics.jsonl", f"rewards/{k}")) for k in ("chosen", "rejected")]
        margins = [
            Series("training batch", curve(step, "metrics.jsonl", "rewards/margins")),
            Series("held out", curve(step, "heldout.jsonl", "margin"), marks=True),
        ]
        pictures += [
            (f"{step.name}: implicit rewards", "rewards", rewards),
            (f"{step.name}: margin between chosen and rejected", "margin", margins),
        ]
    return [
        Picture(svg, f"{slug(step.name)}-{kind}", f"{title} over optimiser steps")
        for title, kind, series in pictures
        if (svg := line_chart(series, title, "optimiser step"))
    ]


def curve(step: StepFacts, file: str, key: str) -> tuple[tuple[float, float], ...]:
    """A quantity of a training step's log over its optimiser steps."""
    rows = ((row.get("step"), row.get(key)) for row in step.rows(file))
    return tuple((float(x), float(y)) for x, y in rows if isinstance(x, int | float) and isinstance(y, int | float))


def merge_section(facts: RunFacts) -> Section | None:
    """How far each merged model is from the unmerged one; None without a merge."""
    steps = facts.of("merge")
    if not steps:
        return None
    rows = []
    for step in steps:
        n = step.numbers
        measured = f"{n['rows']} rows, {n['tokens']} tokens" if "rows" in n and "tokens" in n else NOTHING
        drift = [
            f"{n[k]:.3g}" if isinstance(n.get(k), int | float) else NOTHING
            for k in ("kl", "mean_logprob_difference", "max_logprob_difference")
        ]
        rows.append(
            (step.name, str(step.settings.get("merge", NOTHING)), str(n.get("onto", NOTHING)), *drift, measured)
        )
    table = Table(
        ("merge", "of", "onto", "KL per token, nats", "mean |Δ log p|", "greatest |Δ log p|", "measured on"),
        tuple(rows),
        "Unmerged against merged model on the same held-out answers.",
    )
    about = Paragraph(
        "Merging adds an adapter to 16-bit weights, which rounds. The drift is what the rounding and the choice of base"
        " changed in the model's predictions."
    )
    return Section("Merge drift", (about, Grid(table, "Drift of every merge", stack=True)))


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _yes(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, NOTHING) if isinstance(value, bool) else NOTHING
