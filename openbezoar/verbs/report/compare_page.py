"""The comparison of two runs as a page: ``compare.html`` and ``compare.md``, in a folder that disturbs neither run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openbezoar.reporting.document import (
    Block,
    Fold,
    Gallery,
    Grid,
    Page,
    Paragraph,
    Part,
    Picture,
    Point,
    Points,
    Section,
    write_page,
)
from openbezoar.reporting.facts import RunFacts, known_recipe, read_facts
from openbezoar.reporting.figures import IntervalRow, Series, interval_chart, line_chart
from openbezoar.reporting.funnels import RowNumbers, funnels
from openbezoar.reporting.measured import Score
from openbezoar.reporting.scores_section import WORDS
from openbezoar.reporting.table import Table
from openbezoar.reporting.training import HELD_OUT, METRICS, TrainingNumbers, curve
from openbezoar.reporting.wording import NOTHING, duration, estimate, number, plural, shorten, slug
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.report.compare import Compared, Setting, compare_scores, settings_that_differ
from openbezoar.verbs.report.recipe_section import Cost, costs

NAME = "compare"
OPEN = 20  # settings that differ up to which all of them are unfolded


def write_comparison(first: RunFolder, other: RunFolder, out: Path) -> Path:
    """Write ``compare.html``, ``compare.md`` and its pictures into ``out``; the page's path. Raises
    RunError if a run has no finished step.
    """
    facts = [read_facts(run, recipe=known_recipe(run)) for run in (first, other)]
    out.mkdir(parents=True, exist_ok=True)
    write_page(comparison(facts[0], facts[1]), out, NAME)
    return out / f"{NAME}.html"


def labels(first: RunFolder, other: RunFolder) -> tuple[str, str]:
    """What the two runs are called: their folders' names, with the folder above where these are the same."""
    if first.name != other.name:
        return first.name, other.name
    a, b = (f"{run.path.resolve().parent.name}/{run.name}" for run in (first, other))
    return (a, b) if a != b else (f"{a} (first)", f"{b} (second)")


def comparison(first: RunFacts, other: RunFacts) -> Page:
    """The page as plain data."""
    names = labels(first.run, other.run)
    compared, differing = compare_scores(first, other), settings_that_differ(first, other)
    sections = [
        _summary(first, other, names, compared, differing),
        _settings(names, differing),
        _scores(names, compared),
        _data(first, other, names),
        _training(first, other, names),
        _costs(first, other, names),
    ]
    return Page(f"Runs '{names[0]}' and '{names[1]}' compared", tuple(s for s in sections if s is not None))


Names = tuple[str, str]


def _summary(
    first: RunFacts, other: RunFacts, names: Names, compared: Sequence[Compared], differing: Sequence[Setting]
) -> Section:
    """What differs, what got better or worse, what is noise."""
    keys = [{name: s.manifest.get("key") for name, s in facts.steps.items()} for facts in (first, other)]
    same = sum(keys[0].get(name) == key and key is not None for name, key in keys[1].items())
    points = [
        Point(
            f"'{names[0]}' has {plural(len(first.steps), 'finished step')}, '{names[1]}' has {len(other.steps)}; {same}"
            " of them are the same by their keys.",
            "made",
        ),
        Point(
            (
                f"{plural(len(differing), 'setting')} or inputs differ."
                if differing
                else "No setting and no input differs."
            ),
            "made",
        ),
    ]
    paired = [c for c in compared if c.difference is not None]
    for tone in ("better", "worse", "changed"):
        points += [
            Point(f"{_sentence(c, names)}.", tone)
            for c in paired
            if c.difference is not None and c.difference.verdict == tone
        ]
    noise = sum(c.difference is not None and c.difference.verdict == "noise" for c in paired)
    if noise:
        points.append(
            Point(f"in {noise} of {plural(len(paired), 'paired score')} the two runs cannot be told apart.", "noise")
        )
    if unpaired := sum(c.difference is None for c in compared):
        points.append(
            Point(
                f"whether the runs differ in {plural(unpaired, 'score')} that could not be paired, or that one run only"
                " has; the tables say why.",
                "missing",
            )
        )
    about = (
        f"A difference is '{names[1]}' less '{names[0]}' on the same items. Better and worse are said of '{names[1]}',"
        f" and only where the paired test, corrected for all {len(paired)} comparisons here by Holm's method, has p"
        " below 0.05."
    )
    if not paired:
        about = (
            "The runs have scored nothing in common that could be paired, so what follows holds their numbers side by"
            " side and judges nothing."
        )
    return Section("In short", (Paragraph(about), Points(tuple(points))))


def _sentence(c: Compared, names: Names) -> str:
    d = c.difference
    assert d is not None and c.first is not None and c.other is not None
    ends = f"{c.first.value:.{c.digits}f} in '{names[0]}', {c.other.value:.{c.digits}f} in '{names[1]}'"
    return (
        f"{c.checkpoint}, {c.title}: {ends}, difference {estimate(d.value, d.low, d.high, c.digits, sign=True)},"
        f" n={d.n}, p={d.p or 0:.2g}"
    )


def _settings(names: Names, differing: Sequence[Setting]) -> Section:
    if not differing:
        return Section(
            "What differs", (Paragraph("Both runs have the same steps with the same settings, files and models."),)
        )
    by_step: dict[str, list[Setting]] = {}
    for setting in differing:
        by_step.setdefault(setting.step, []).append(setting)
    note = Paragraph(f"{NOTHING}: the run has none. Hashes are shown by their beginning.")
    blocks = [
        Fold(f"{step}: {plural(len(own), 'difference')}", (_differing(names, step, own),), open=len(differing) <= OPEN)
        for step, own in by_step.items()
    ]
    return Section("What differs", (note, *blocks))


def _differing(names: Names, step: str, settings: Sequence[Setting]) -> Grid:
    rows = tuple((s.key, *(NOTHING if v is None else shorten(v, 300) for v in (s.first, s.other))) for s in settings)
    return Grid(Table(("setting", *names), rows), f"What differs in {step}", stack=True)


def _scores(names: Names, compared: Sequence[Compared]) -> Section | None:
    if not compared:
        return None
    headers = ("measured", *names, f"verdict on '{names[1]}'", "difference [95 % interval]", "n", "p, corrected")
    note = (
        "Scores are paired by item where both runs asked the same questions of a checkpoint with the same name, by the"
        " same judge."
    )
    blocks: list[Block] = [Paragraph(note)]
    both = [c for c in compared if c.first and c.other]
    for checkpoint in dict.fromkeys(c.checkpoint for c in both):
        rows = tuple(
            (c.title, _score(c.first, c.digits), _score(c.other, c.digits), *_difference(c))
            for c in both
            if c.checkpoint == checkpoint
        )
        blocks.append(
            Part(checkpoint, (Grid(Table(headers, rows), f"Scores of {checkpoint} in both runs", stack=True),))
        )
    if alone := [c for c in compared if not (c.first and c.other)]:
        lone = tuple((c.checkpoint, c.title, _score(c.first, c.digits), _score(c.other, c.digits)) for c in alone)
        table = Grid(Table(("checkpoint", "measured", *names), lone), "Scores of one run only", stack=True)
        blocks.append(Fold(f"Scored in one run only ({len(alone)})", (table,)))
    pictures = [
        Picture(svg, f"score-{i}", f"{c.checkpoint}, {c.title}: both runs with 95 % intervals")
        for i, c in enumerate(compared, 1)
        if c.first
        and c.other
        and (
            svg := interval_chart(
                [IntervalRow(n, s.value, s.low, s.high) for n, s in zip(names, (c.first, c.other), strict=True)],
                f"{c.checkpoint}: {c.title}",
            )
        )
    ]
    if pictures:
        blocks.append(Fold("Intervals as pictures", (Gallery(tuple(pictures)),)))
    return Section("Scores", tuple(blocks))


def _score(score: Score | None, digits: int) -> str:
    return NOTHING if score is None else score.text(digits)


def _difference(c: Compared) -> tuple[str, str, str, str]:
    d = c.difference
    if d is None:
        return f"not paired: {c.why}", NOTHING, NOTHING, NOTHING
    return (
        WORDS[d.verdict],
        estimate(d.value, d.low, d.high, c.digits, sign=True),
        str(d.n),
        NOTHING if d.p is None else f"{d.p:.2g}",
    )


def _data(first: RunFacts, other: RunFacts, names: Names) -> Section | None:
    """Rows that every generate and filter step of either run left."""
    results = [{r.step.name: r for f in funnels(facts) for r in f.results} for facts in (first, other)]
    names_of_steps = list(dict.fromkeys([*results[0], *results[1]]))
    rows = tuple((name, *(_rows(found.get(name)) for found in results)) for name in names_of_steps)
    reasons = []
    for name in names_of_steps:
        counts = [found[name].step.counts if name in found else None for found in results]
        for reason in dict.fromkeys(reason for counted in counts for reason in counted or ()):
            cells = (NOTHING if counted is None else str(counted.get(reason, 0)) for counted in counts)
            reasons.append((name, reason, *cells))
    if not rows:
        return None
    blocks: list[Block] = [Grid(Table(("step", *names), rows), "Rows of both runs")]
    if reasons:
        blocks.append(
            Fold(
                "Counted by reason",
                (Grid(Table(("step", "reason", *names), tuple(reasons)), "Rows counted by reason", stack=True),),
            )
        )
    return Section("Data", tuple(blocks))


def _rows(result: RowNumbers | None) -> str:
    if result is None:
        return NOTHING
    rows, kept, *_ = result.row_counts().texts()
    return f"{kept} of {rows} kept" if result.scheme() is None else f"{kept} rows"


def _training(first: RunFacts, other: RunFacts, names: Names) -> Section | None:
    """Held-out losses side by side, and the curves of both runs in one frame."""
    trainings = [{n.step.name: n for n in facts.results(TrainingNumbers)} for facts in (first, other)]
    if not any(trainings):
        return None
    order = list(dict.fromkeys([*trainings[0], *trainings[1]]))
    rows = tuple((name, *(text for found in trainings for text in _losses(found.get(name)))) for name in order)
    headers = (
        "step",
        *(
            f"{what}, {name}"
            for name in names
            for what in ("rows", "held-out loss, before → after", "reward accuracy after")
        ),
    )
    pictures = []
    for name in (n for n in order if all(n in found for found in trainings)):
        for what, file, key in (
            ("training loss", METRICS, "loss"),
            ("held-out loss", HELD_OUT, "loss"),
            ("training margin", METRICS, "rewards/margins"),
        ):
            series = [
                Series(label, curve(found[name].step, file, key), file == HELD_OUT)
                for label, found in zip(names, trainings, strict=True)
            ]
            if svg := line_chart(series, f"{name}: {what}", "optimiser step"):
                pictures.append(
                    Picture(svg, f"{slug(name)}-{slug(what)}", f"{name}: {what} of both runs over optimiser steps")
                )
    return Section(
        "Training", (Grid(Table(headers, rows), "Training of both runs", stack=True), Gallery(tuple(pictures)))
    )


def _losses(n: TrainingNumbers | None) -> tuple[str, str, str]:
    if n is None:
        return NOTHING, NOTHING, NOTHING
    return number(n.rows), n.losses(), number(n.accuracy_after())


def _costs(first: RunFacts, other: RunFacts, names: Names) -> Section:
    run_costs = [costs(first), costs(other)]
    rows = [
        (name, *(text for of in run_costs for text in _cost(of.get(name))))
        for name in dict.fromkeys([*run_costs[0], *run_costs[1]])
    ]
    rows.append(
        ("all steps", *(text for of in run_costs for text in (duration(sum(c.seconds for c in of.values())), "", "")))
    )
    headers = ("step", *(f"{what}, {name}" for name in names for what in ("time", "tokens asked", "money")))
    environment = [(key, *values) for key, values in _environments(first, other) if values[0] != values[1]]
    blocks: list[Block] = [
        Grid(
            Table(headers, tuple(rows), "Times of different machines do not compare."),
            "Cost and time of both runs",
            stack=True,
        )
    ]
    if environment:
        blocks.append(Grid(Table(("environment", *names), tuple(environment)), "Environments that differ", stack=True))
    return Section("Cost, time and environment", tuple(blocks))


def _cost(cost: Cost | None) -> tuple[str, str, str]:
    if cost is None:
        return NOTHING, NOTHING, NOTHING
    tokens = f"{cost.asked.prompt_tokens + cost.asked.tokens:,}" if cost.asked and cost.asked.calls else NOTHING
    return duration(cost.seconds), tokens, NOTHING if cost.money is None else f"{cost.money:.4g}"


def _environments(first: RunFacts, other: RunFacts) -> list[tuple[str, tuple[str, str]]]:
    lines: list[dict[str, str]] = []
    for facts in (first, other):
        found: dict[str, dict[str, None]] = {}
        for step in facts.steps.values():
            for key, value in {**step.environment, **(step.environment.get("packages") or {})}.items():
                if key != "packages" and value is not None:
                    found.setdefault(str(key), {})[str(value)] = None
        lines.append({key: ", ".join(values) for key, values in found.items()})
    return [
        (key, (lines[0].get(key, NOTHING), lines[1].get(key, NOTHING))) for key in dict.fromkeys([*lines[0], *lines[1]])
    ]
