"""The report's section about training. Reads the steps' logs; writes nothing."""

from __future__ import annotations

from openbezoar.reporting.document import Block, Fold, Gallery, Grid, Picture, Section
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.figures import Series, line_chart
from openbezoar.reporting.training import (
    HELD_OUT,
    METRICS,
    PreferenceNumbers,
    TrainingNumbers,
    UnpairedNumbers,
    curve,
    preference_table,
    settings_table,
    training_table,
    unpaired_table,
)
from openbezoar.reporting.wording import slug


def sections(facts: RunFacts) -> list[Section]:
    """What every step that trains did; nothing without one."""
    trainings = facts.results(TrainingNumbers)
    if not trainings:
        return []
    blocks: list[Block] = [Grid(training_table(trainings), "Training steps", stack=True)]
    if preference := facts.results(PreferenceNumbers):
        blocks += [Grid(preference_table(preference), "Rewards of preference training", stack=True)]
    if unpaired := facts.results(UnpairedNumbers):
        blocks += [Grid(unpaired_table(unpaired), "Rewards of training on liked and other answers", stack=True)]
    if pictures := tuple(picture for training in trainings for picture in _curves(training)):
        blocks.append(Gallery(pictures))
    settings = settings_table([training.step for training in trainings])
    blocks.append(Fold("Settings of the training steps", (Grid(settings, "Settings of training", stack=True),)))
    return [Section("Training", tuple(blocks))]


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
