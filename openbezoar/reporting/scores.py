"""Scores of finished evaluate and mt_bench steps as numbers with n and interval.

Reads ``scores.json`` of those steps; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from openbezoar.judging.scores import question_of
from openbezoar.reporting.facts import RunFacts, StepFacts
from openbezoar.reporting.wording import estimate
from openbezoar.stats.comparisons import correct, every_pair
from openbezoar.stats.seeds import step_seed

SCORES = "scores.json"
ACCURACIES = {"rewards": "reward accuracy", "pairs": "likelihood accuracy"}
"""What is said of preference pairs: by the implicit reward, seen from a reference, and by the log-probability alone."""


@dataclass(frozen=True)
class Score:
    """A number with what makes it believable; low and high are None where no interval exists."""

    value: float
    low: float | None
    high: float | None
    n: int

    def text(self, digits: int = 3) -> str:
        return f"{estimate(self.value, self.low, self.high, digits)} n={self.n}"


@dataclass(frozen=True)
class Measured:
    """One score of one checkpoint. ``kind``: task, loss, rewards, pairs, rating or ended."""

    checkpoint: str
    kind: str
    name: str  # as the differences name it
    title: str
    score: Score
    digits: int = 3
    lower: bool = False  # lower values are better


def score_of(value: Any, n: Any = None, key: str = "value") -> Score | None:
    """A score from JSON; None if its number or its n is missing."""
    if not isinstance(value, Mapping):
        return None
    number, low, high = value.get(key), value.get("low"), value.get("high")
    n = value.get("n") if n is None else n
    if not isinstance(number, int | float) or not isinstance(n, int) or n < 1:
        return None
    if isinstance(low, int | float) and isinstance(high, int | float):
        return Score(float(number), float(low), float(high), n)
    return Score(float(number), None, None, n)


def share(value: Any, n: int) -> Score | None:
    """A share of n with Wilson's interval."""
    if not isinstance(value, int | float) or isinstance(value, bool) or n < 1 or not 0 <= value <= 1:
        return None
    from openbezoar.stats.intervals import proportion_interval

    hits = round(value * n)
    return Score(hits / n, *proportion_interval(hits, n), n)


def measured(step: StepFacts) -> Iterator[Measured]:
    """All scores of an evaluate or mt_bench step. A number without n is none and is left out."""
    scores = step.read_json(SCORES)
    for checkpoint, content in mapping(scores.get("checkpoints")).items():
        yield from _evaluated(checkpoint, mapping(content))
    for grades in graded(step):
        if grades.mean is not None:
            yield Measured(grades.checkpoint, "rating", "MT-Bench", "MT-Bench: mean rating, 1 to 10", grades.mean, 2)
        if grades.ended is not None:
            yield Measured(grades.checkpoint, "ended", "ended", "MT-Bench: answers that stop", grades.ended)


def _evaluated(checkpoint: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    for name, task in mapping(content.get("tasks")).items():
        metric = task.get("main")
        if score := score_of(mapping(task.get("metrics")).get(metric), task.get("n")):
            shots = f", {task['fewshot']}-shot" if task.get("fewshot") is not None else ""
            lower = lower_is_better(task)
            yield Measured(
                checkpoint,
                "task",
                name,
                f"{name}: {metric}{shots}{', lower is better' if lower else ''}",
                score,
                lower=lower,
            )
    for name, loss in mapping(content.get("losses")).items():
        if score := score_of(loss):
            yield Measured(checkpoint, "loss", name, f"{name}: held-out loss", score, lower=True)
    for kind, title in ACCURACIES.items():
        for name, pair in mapping(content.get(kind)).items():
            if score := score_of(pair.get("accuracy"), pair.get("n")):
                yield Measured(checkpoint, kind, name, f"{name}: {title}", score)


def lower_is_better(task: Mapping[str, Any]) -> bool:
    """Whether lower values of a task's main metric are better; results of older versions do not
    say, and then higher ones are.
    """
    return task.get("higher_is_better") is False


@dataclass(frozen=True)
class Grades:
    """What mt_bench found out about one checkpoint's answers."""

    checkpoint: str
    mean: Score | None  # n counts questions
    rated: int | None  # turns
    unscored: int | None
    ended: Score | None
    degenerate: Score | None
    empty: Score | None
    errors: int | None
    mean_tokens: float | None
    by_category: Mapping[str, Score]
    by_turn: Mapping[str, Score]


def graded(step: StepFacts) -> list[Grades]:
    """Grades of every checkpoint of an mt_bench step."""
    found = []
    for name, content in mapping(step.read_json(SCORES).get("models")).items():
        answers = mapping(content.get("answers"))
        came = int(answers.get("turns") or 0) - int(answers.get("errors") or 0)
        empty = answers.get("empty")
        groups = [
            {str(k): s for k, v in mapping(content.get(by)).items() if (s := score_of(v, key="mean"))}
            for by in ("by_category", "by_turn")
        ]
        found.append(
            Grades(
                checkpoint=name,
                mean=score_of(content.get("score"), key="mean"),
                rated=content.get("n"),
                unscored=content.get("unscored"),
                ended=share(answers.get("ended"), came),
                degenerate=share(answers.get("degenerate"), came),
                empty=share(empty / came, came) if isinstance(empty, int) and came else None,
                errors=answers.get("errors"),
                mean_tokens=answers.get("mean_tokens"),
                by_category=groups[0],
                by_turn=groups[1],
            )
        )
    return found


def checkpoints_of(step: StepFacts) -> list[str]:
    """The scored checkpoints of a step, in the order of its list."""
    listed = step.settings.get(step.verb)
    scores = step.read_json(SCORES)
    scored = [*mapping(scores.get("checkpoints") or scores.get("models"))]
    wanted = [n for n in listed if n in scored] if isinstance(listed, list) else []
    return [*wanted, *(n for n in scored if n not in wanted)]


def published(facts: RunFacts) -> set[str]:
    """The models of mt_bench steps that are none of the recipe's: their answers were only set beside its own."""
    listed = [(step, step.settings.get(step.verb)) for step in facts.of("mt_bench")]
    found = {name for step, own in listed if isinstance(own, list) for name in checkpoints_of(step) if name not in own}
    return found.difference(*map(checkpoints_of, facts.of("evaluate")))


# -------------------------------------------------------------------------- differences


ALPHA = 0.05
LOWER_IS_BETTER = ("loss", "degenerate", "cut off", "empty", "unsafe", "unsupported")
NO_DIRECTION = ("refusals", "words")  # neither more nor fewer of them is better as such


@dataclass(frozen=True)
class Difference:
    """A paired difference of two checkpoints: ``after`` minus ``before``, on n shared items."""

    before: str
    after: str
    what: str
    value: float
    low: float
    high: float
    n: int | None
    kind: str = "task"  # task, loss, pairs, rating, ended or failures
    p: float | None = None  # corrected for the number of comparisons of its step
    step: str = ""  # where several steps of the run measure the same
    lower: bool = False  # of a task: lower values are better

    @property
    def label(self) -> str:
        """What was measured, in words that tell it from every other measure of the run."""
        return f"{self.what}, {self.step}" if self.step else self.what

    @property
    def gain(self) -> float:
        """How much better ``after`` is: the difference with the sign of what is measured, 0 where
        there is no better.
        """
        measure = "loss" if self.kind == "loss" else self.what
        return (
            0.0 if measure in NO_DIRECTION else -self.value if self.lower or measure in LOWER_IS_BETTER else self.value
        )

    @property
    def worse(self) -> bool:
        """Whether ``after`` is the worse one: a higher loss, more answers that loop, a lower score."""
        return self.gain < 0

    @property
    def verdict(self) -> str:
        """better, worse, changed (outside noise, but neither), or noise."""
        if not self.outside_noise:
            return "noise"
        return "worse" if self.gain < 0 else "better" if self.gain > 0 else "changed"

    @property
    def outside_noise(self) -> bool:
        """Whether the corrected test rejects that there is none; without a test, whether the 95 %
        interval excludes 0.
        """
        return self.p < ALPHA if self.p is not None else self.low > 0 or self.high < 0

    def __str__(self) -> str:
        n = "" if self.n is None else f" n={self.n}"
        p = "" if self.p is None else f", p={self.p:.2g}"
        return (
            f"{self.before} → {self.after}, {self.label}: {estimate(self.value, self.low, self.high, sign=True)}{n}{p}"
        )


def told_apart(facts: RunFacts, step: StepFacts) -> str:
    """The step's name where the run has several with its verb, else nothing."""
    return step.name if len(facts.of(step.verb)) > 1 else ""


def differences(facts: RunFacts) -> list[Difference]:
    """Paired differences between every two checkpoints of each evaluate and mt_bench step."""
    found = []
    for step in facts.of("evaluate", "mt_bench"):
        for kind, what, entry in _paired(step):
            value, low, high, n, p = (entry.get(k) for k in ("difference", "low", "high", "n", "p_holm"))
            if value is not None and low is not None and high is not None:
                a, b = str(entry.get("a")), str(entry.get("b"))
                scored = mapping(mapping(mapping(step.read_json(SCORES).get("checkpoints")).get(b)).get("tasks"))
                lower = kind == "task" and lower_is_better(mapping(scored.get(str(entry.get("task")))))
                found.append(Difference(a, b, what, value, low, high, n, kind, p, told_apart(facts, step), lower))
    return found


def stop_differences(facts: RunFacts) -> list[Difference]:
    """Paired differences in the share of answers that stop by themselves, over the questions of each mt_bench step.

    A question's value is the share that ended of the turns that both answered; p values are
    corrected for the pairs of checkpoints.
    """
    found = []
    for step in facts.of("mt_bench"):
        values = stopped(step)
        rows = every_pair(
            {c: values[c] for c in checkpoints_of(step) if c in values},
            step_seed(facts.seed or 0, step.name, "ended"),
            {"what": "ended"},
            question_of,
        )
        correct(rows)
        what = "MT-Bench: answers that stop"
        found += [
            Difference(
                d["a"],
                d["b"],
                what,
                d["difference"],
                d["low"],
                d["high"],
                d["n"],
                "ended",
                d["p_holm"],
                told_apart(facts, step),
            )
            for d in rows
        ]
    return found


def failure_differences(facts: RunFacts) -> list[Difference]:
    """Paired differences in what goes wrong, between every two checkpoints of each failures step."""
    return [
        Difference(
            str(d["a"]),
            str(d["b"]),
            str(d["what"]),
            d["difference"],
            d["low"],
            d["high"],
            d["n"],
            "failures",
            d.get("p_holm"),
            told_apart(facts, step),
        )
        for step in facts.of("failures")
        for d in step.read_json(SCORES).get("differences") or []
    ]


def stopped(step: StepFacts) -> dict[str, dict[tuple[Any, int], float]]:
    """{checkpoint: {(question, turn): whether the model ended its answer itself, 0 or 1}} of an mt_bench step."""
    values: dict[str, dict[tuple[Any, int], float]] = {}
    for row in step.rows("answers.jsonl"):
        for turn, finish in enumerate(row.get("finish") or [], 1):
            if finish not in (None, "error"):
                values.setdefault(str(row.get("model")), {})[row.get("question_id"), turn] = float(finish == "stop")
    return values


def _paired(step: StepFacts) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(kind, what, numbers) as the two stages write them: the later less the earlier."""
    scores = step.read_json(SCORES)
    for key, kind, label in (
        ("differences", "task", ""),
        ("loss_differences", "loss", ": held-out loss"),
        ("pair_differences", "pairs", f": {ACCURACIES['pairs']}"),
    ):
        for entry in scores.get(key) or []:
            metric = f": {entry['metric']}" if entry.get("metric") else ""
            if entry.get("what") == "rating":
                yield "rating", "MT-Bench: mean rating", entry
            else:
                yield kind, f"{entry.get('task', entry.get('set'))}{metric}{label}", entry


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
