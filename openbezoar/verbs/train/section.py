"""The report's section about training. Reads the steps' logs; writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from openbezoar.inspection.numbers import shown
from openbezoar.inspection.steps import read_look, worth_a_look
from openbezoar.reporting.document import Block, Fold, Gallery, Grid, Part, Picture, Point, Points, Section, Texts
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.figures import Series, line_chart
from openbezoar.reporting.reward_tables import accuracy_blocks
from openbezoar.reporting.samples import sampled_answers
from openbezoar.reporting.table import Table
from openbezoar.reporting.training import (
    HELD_OUT,
    METRICS,
    PreferenceNumbers,
    RewardNumbers,
    TrainingNumbers,
    UnpairedNumbers,
    curve,
    preference_table,
    settings_table,
    training_table,
    unpaired_table,
)
from openbezoar.reporting.wording import NOTHING, number, slug


def sections(facts: RunFacts) -> list[Section]:
    """What every step that trains did; nothing without one."""
    trainings = facts.results(TrainingNumbers)
    if not trainings:
        return []
    blocks: list[Block] = [Grid(training_table(trainings), "Training steps", stack=True)]
    if preference := facts.results(PreferenceNumbers):
        blocks += [Grid(preference_table(preference), "Rewards of preference training", stack=True)]
    for of_rewards in facts.results(RewardNumbers):
        if of_rewards.saved is not None:
            title = f"The reward model of {of_rewards.step.name}"
            blocks.append(Part(title, tuple(accuracy_blocks(of_rewards.saved))))
    if unpaired := facts.results(UnpairedNumbers):
        blocks += [Grid(unpaired_table(unpaired), "Rewards of training on liked and other answers", stack=True)]
    if pictures := tuple(picture for training in trainings for picture in _curves(training)):
        blocks.append(Gallery(pictures))
    blocks += _data(trainings)
    blocks += [
        Part(f"{training.step.name}: asked before and after", tuple(asked))
        for training in trainings
        if (asked := _answers(training))
    ]
    settings = settings_table(trainings)
    blocks.append(Fold("Settings of the training steps", (Grid(settings, "Settings of training", stack=True),)))
    return [Section("Training", tuple(blocks))]


def _answers(training: TrainingNumbers) -> list[Block]:
    """The same prompts before the first step and after the kept one; those between are in a fold."""
    lines = sampled_answers(training.step.folder)
    if len(lines) < 2:
        return []
    first = lines[0]
    last = next((line for line in lines if line.step == training.kept_step), lines[-1])
    before = {one.prompt: one for one in first.answers}
    rows = [(one.prompt, before[one.prompt].text(), one.text()) for one in last.answers if one.prompt in before]
    note = "Greedy answers; […]: cut at the limit of tokens. Three answers show how a model writes, not how good it is."
    headers = ("prompt", f"after {first.step} steps", f"after {last.step} steps")
    between = [
        Fold(f"After {line.step} steps", (Texts(tuple((one.prompt, one.text()) for one in line.answers)),))
        for line in lines
        if line.step not in (first.step, last.step)
    ]
    return [Grid(Table(headers, tuple(rows), note), f"Answers of {training.step.name}", stack=True), *between]


def _data(trainings: Sequence[TrainingNumbers]) -> list[Block]:
    """What was seen of the rows that the steps trained on; nothing of steps that did not look."""
    steps = [training.step for training in trainings]
    looks = [(step.name, step, look) for step in steps if (look := read_look(step.folder)) is not None]
    if not looks:
        return []
    rows = []
    for name, step, look in looks:
        longer = None if look.pairs is None else look.pairs.longer_chosen
        share = NOTHING if look.learnt_share is None else f"{look.learnt_share:.0%}"
        spread = [NOTHING] * 3
        if (tokens := look.tokens) is not None:
            spread = [f"{value:,}" for value in (tokens.median, tokens.p95, tokens.longest)]
        rows.append(
            (
                name,
                ", ".join(look.forms) or NOTHING,
                f"{look.passed:,} ({look.drawn:,} drawn)",
                *spread,
                number(step.settings.get("max_length")),
                share,
                NOTHING if look.twins is None else f"{look.twins.k:,}",
                NOTHING if look.near is None else shown(look.near),
                NOTHING if longer is None else shown(longer),
            )
        )
    headers = (
        "step",
        "rows taken for",
        "rows",
        "tokens, in the middle",
        "95 % have at most",
        "the longest",
        "most tokens",
        "of them learnt",
        "word for word twice",
        "prompt nearly another's",
        "longer answer chosen",
    )
    note = (
        "All but the number of rows is of the rows drawn, before any is left out. In brackets: 95 % interval (Wilson)."
    )
    lines = worth_a_look([(name, look) for name, _, look in looks])
    points = Points(tuple(Point(line) for line in lines or ["Nothing about the rows drawn stands out."]))
    return [Grid(Table(headers, tuple(rows), note), "Rows that were trained on", stack=True), points]


def _curves(training: TrainingNumbers) -> list[Picture]:
    """Loss over optimiser steps, with the held-out measurements as dots; rewards and margins for preferences."""
    step = training.step
    held_out = Series("held out", curve(step, HELD_OUT, "loss"), marks=True)
    pictures = [(f"{step.name}: loss", "loss", [Series("training batch", curve(step, METRICS, "loss")), held_out])]
    if isinstance(training, PreferenceNumbers | UnpairedNumbers):
        kinds = ("chosen", "rejected") if isinstance(training, PreferenceNumbers) else ("liked", "other")
        logged = zip(kinds, ("chosen", "rejected"), strict=True)
        rewards = [Series(kind, curve(step, METRICS, f"rewards/{k}")) for kind, k in logged]
        margins = [
            Series("training batch", curve(step, METRICS, "rewards/margins")),
            Series("held out", curve(step, HELD_OUT, "margin"), marks=True),
        ]
        pictures += [
            (f"{step.name}: implicit rewards", "rewards", rewards),
            (f"{step.name}: margin between {' and '.join(kinds)}", "margin", margins),
        ]
    return [
        Picture(svg, f"{slug(step.name)}-{kind}", f"{title} over optimiser steps")
        for title, kind, series in pictures
        if (svg := line_chart(series, title, "optimiser step"))
    ]
