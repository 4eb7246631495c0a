"""The report's first section: for a stranger, in plain words, what was made, what got better, what
is noise, what is not known.

Takes what the other sections read; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openbezoar.recipe.verbs import row_of
from openbezoar.reporting.document import Block, Fold, Grid, Point, Points, Section
from openbezoar.reporting.facts import RunFacts, reference_of
from openbezoar.reporting.funnels import funnels, makers
from openbezoar.reporting.gains import gains_table, is_of
from openbezoar.reporting.measured import Difference
from openbezoar.reporting.scores import answer_differences, checkpoints, differences, published
from openbezoar.reporting.scores_table import Column, columns
from openbezoar.reporting.training import TrainingNumbers
from openbezoar.reporting.wording import NOTHING, duration, estimate, plural
from openbezoar.verbs.report.environment_section import stated_licences
from openbezoar.verbs.report.recipe_section import costs

READING = (
    (
        "A number in square brackets is a 95 % interval: with other questions of the same kind the score would likely"
        " lie in it. n is how many items were scored."
    ),
    (
        "Two checkpoints are compared on the same items. A difference counts as better or worse only if chance alone"
        " would show one as large in fewer than 5 of 100 cases (p below 0.05), after correction for how many"
        " comparisons were made. Everything else is called no clear difference: it may be there, but this run cannot"
        " show it."
    ),
    "acc is the share of questions answered right; acc_norm the same with long answers not put at a disadvantage.",
    (
        "Held-out loss says how unexpected the answers of rows kept out of training are to the model, in nats a token:"
        " lower is better."
    ),
    (
        "Reward accuracy is the share of pairs in which the answer that people preferred has become likelier, compared"
        " with the reference, by more than the other answer has: what preference training is after; 0.5 is chance."
        " Likelihood accuracy is the share in which the model finds the preferred answer the likelier one; short"
        " answers win there."
    ),
    (
        "MT-Bench here means two-turn questions graded by a judge from 1 to 10; a small judge tells little apart."
        " Answers that stop are those that the model ended itself before the token limit."
    ),
    (
        "sft is supervised fine-tuning, dpo direct preference optimisation, kto preference optimisation on answers that"
        " were liked or not; the implicit reward of dpo and kto is how much likelier the model has become to give an"
        " answer than its reference."
    ),
)


def summary_section(facts: RunFacts) -> Section:
    """The points, and how to read numbers."""
    rows = [*differences(facts), *answer_differences(facts)]
    points = (*_made(facts), *verdicts(facts, rows), *_trust(facts), *_cost(facts), *_missing(facts, rows))
    gains = gains_table(facts)
    blocks: list[Block] = [Grid(gains, "Before and after", stack=True)] if gains.rows else []
    blocks += [Points(points), Fold("How to read the numbers", (Points(tuple(map(Point, READING))),))]
    return Section("In short", tuple(blocks))


def ends(facts: RunFacts) -> tuple[str, str] | None:
    """The first and the last scored checkpoint of the recipe; None if there are not two. Published
    answers of other models are none of it.
    """
    others = published(facts)
    names = [name for name in checkpoints(facts) if name not in others]
    return (names[0], names[-1]) if len(names) > 1 else None


def _made(facts: RunFacts) -> Iterator[Point]:
    """What was made from what."""
    about = f"{facts.recipe.description.rstrip('.')}. " if facts.recipe is not None and facts.recipe.description else ""
    seed = "" if facts.seed is None else f", seed {facts.seed}"
    last = max(s.finished for s in facts.steps.values()) or NOTHING
    yield Point(
        f"{about}Recipe '{facts.run.name}'{seed}: {plural(len(facts.steps), 'finished step')}, the last on {last}"
        " (UTC).",
        "made",
    )
    if made := makers(facts):
        models = facts.models()
        named = [str(teacher) for result in made if (teacher := result.step.settings.get("teacher"))]
        teachers = dict.fromkeys(reference_of(models.get(teacher, {"model": teacher})) for teacher in named)
        rows = sum(result.row_counts().kept for result in made)
        filtered = [f for f in funnels(facts) if len(f.results) > 1]
        kept = sum(f.results[-1].row_counts().kept for f in filtered)
        schemes = ", ".join(dict.fromkeys(str(result.scheme()) for result in made))
        yield Point(
            f"{' and '.join(teachers) or 'A teacher'} wrote {rows:,} instructions with answers ({schemes}); {kept:,}"
            " passed the filters.",
            "made",
        )
    if trainings := facts.results(TrainingNumbers):
        licences, models = stated_licences(facts), facts.models()
        roots = dict.fromkeys(r for n in trainings if (r := facts.trained_on(n.step.name)))
        bases = ", ".join(
            f"{reference_of(models.get(r, {'model': r}))} (licence: {licences.get(r, 'not stated')})" for r in roots
        )
        steps = ", ".join(f"{n.step.name} on {'?' if n.rows is None else n.rows} {n.ROWS}" for n in trainings)
        yield Point(f"Trained, starting from {bases}: {steps}.", "made")


def verdicts(facts: RunFacts, found: Sequence[Difference]) -> Iterator[Point]:
    """The last checkpoint against the first, measure by measure."""
    pair = ends(facts)
    if pair is None:
        return
    here = [d for d in found if (d.before, d.after) == pair]
    listed = columns(facts)
    for tone in ("better", "worse", "changed"):
        for d in (d for d in here if d.verdict == tone):
            yield Point(f"{sentence(d, listed)}.", tone)
    noise = [d for d in here if d.verdict == "noise"]
    if noise:
        what = "; ".join(f"{_named(d)} ({d.value:+.3f}, n={d.n})" for d in noise)
        yield Point(f"between {pair[0]} and {pair[1]} in {what}.", "noise")
    if here and len(noise) == len(here) and not _unpaired(pair, here, listed):
        yield Point(
            f"Nothing that was measured shows {pair[1]} to be better or worse than {pair[0]}. More test items would"
            " narrow the intervals."
        )


def _unpaired(pair: tuple[str, str], found: Sequence[Difference], shown: Sequence[Column]) -> list[str]:
    """What both checkpoints have a score in, but no paired difference."""
    compared = [d for d in found if (d.before, d.after) == pair]
    # A win rate is held against an even one, not against another checkpoint's.
    return [
        c.title
        for c in shown
        if c.kind != "wins" and all(name in c.scores for name in pair) and not any(is_of(d, c) for d in compared)
    ]


def _named(d: Difference) -> str:
    """What was measured; a failure's name alone says too little."""
    return f"answers that are {d.label}" if d.kind == "failures" else d.label


def sentence(d: Difference, shown: Sequence[Column]) -> str:
    """A difference with the two scores that it is between."""
    column = next((c for c in shown if is_of(d, c) and d.before in c.scores and d.after in c.scores), None)
    ends = f" from {column.scores[d.before].value:.3g} to {column.scores[d.after].value:.3g}," if column else ""
    p = "" if d.p is None else f", p={d.p:.2g}"
    return (
        f"{_named(d)}:{ends} {d.before} → {d.after}, difference {estimate(d.value, d.low, d.high, sign=True)},"
        f" n={d.n}{p}"
    )


def _trust(facts: RunFacts) -> Iterator[Point]:
    """How far the judge can be trusted."""
    spoken_for = {name for step in facts.steps.values() for name in step.result.stands_for()}
    speaking = (step for name, step in facts.steps.items() if name not in spoken_for)
    yield from (Point(sentence) for step in speaking for sentence in step.result.trust())


def _cost(facts: RunFacts) -> Iterator[Point]:
    all_costs = costs(facts).values()
    money = [c.money for c in all_costs if c.money is not None]
    spent = [c.asked for c in all_costs if c.asked is not None]
    tokens = sum(a.prompt_tokens + a.tokens for a in spent)
    machine = next((s.environment for s in facts.steps.values() if s.environment.get("cores")), {})
    where = f" on {machine['cores']} cores ({machine.get('machine', 'unknown machine')})" if machine else ""
    sentence = f"{duration(sum(s.seconds for s in facts.steps.values()))} of work{where}"
    sentence += f", {tokens:,} tokens read and written by asked models" if spent else ""
    yield Point(f"{sentence}, money {sum(money):.4g}." if money else f"{sentence}.", "cost")


def _missing(facts: RunFacts, found: Sequence[Difference]) -> Iterator[Point]:
    """What this run, or another version's files, do not tell."""
    yield from (Point(line, "missing") for step in facts.steps.values() for line in step.result.missing())
    if facts.recipe is not None:
        left = [n for n, s in facts.recipe.steps.items() if n not in facts.steps and not row_of(s).tells]
        if left:
            yield Point(
                f"what the recipe's {'steps' if len(left) > 1 else 'step'} {', '.join(left)} would show (not finished,"
                " or not reported on here).",
                "missing",
            )
    for verb, what in (
        ("evaluate", "scores on benchmarks and held-out rows"),
        ("mt_bench", "graded answers"),
        ("failures", "how often answers loop, refuse or never end"),
    ):
        if not facts.of(verb):
            yield Point(f"{what} (no {verb} step is finished).", "missing")
    if any(d.p is None for d in found):
        yield Point(
            "p values of some differences: the run is of a version that did not test them, so their 95 % interval"
            " decides, uncorrected.",
            "missing",
        )
    if facts.of("mt_bench") and not facts.of("agreement"):
        yield Point(
            "how far the judge agrees with people (no agreement step is finished); its ratings are worth no more than"
            " that.",
            "missing",
        )
    if (pair := ends(facts)) and (left := _unpaired(pair, found, columns(facts))):
        yield Point(
            f"whether {pair[1]} differs from {pair[0]} in {'; '.join(left)}: the run has no paired comparison of the"
            " two in it.",
            "missing",
        )
