"""What ``mt_bench`` and ``agreement`` leave for others to read: their ``scores.json``.

mt_bench: {"version", "judge", "mode", "questions", "models": {name: {"score", "by_category",
"by_turn", "answers", …}}, "differences", "self_preference", "pairwise"}; the ratings are there where
answers were graded one at a time, ``pairwise`` where they were in pairs. agreement: {"version",
"judge", "mode", "n", "unscored", "agreement": [{"setup", "pair", …}], "one_order", "averaged",
"flips", "first", "longer", "by_dataset"}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from openbezoar.judging.scores import question_of, turn_ratings
from openbezoar.reporting.measured import Comparable, Difference, Grades, Measured, Score, score, share
from openbezoar.reporting.order_numbers import OrderNumbers
from openbezoar.reporting.results import Estimated, Number, PairedDifference, Record, Scores
from openbezoar.stats.comparisons import correct, every_pair
from openbezoar.stats.pair_accuracy import PairAccuracy
from openbezoar.stats.seeds import step_seed
from openbezoar.store.digests import digest

ANSWERS, JUDGMENTS = "answers.jsonl", "judgments.jsonl"
RATED, ENDED = "MT-Bench", "ended"  # names of its scores, as of Measured
STOP = f"{RATED}: answers that stop"
TurnValues = dict[tuple[Any, int], float]
"""Values by question and turn."""


class Rating(Record):
    """A mean rating with its 95 % interval over questions."""

    mean: Number | None = None
    low: Number | None = None
    high: Number | None = None
    n: int | None = None

    def score(self) -> Score | None:
        return score(self.mean, self.low, self.high, self.n)


class OwnRating(Record):
    """How much better a judge that is a contestant rates its own answers."""

    model: str | None = None
    mean: Number | None = None
    low: Number | None = None
    high: Number | None = None
    n: int | None = None

    def score(self) -> Score | None:
        return score(self.mean, self.low, self.high, self.n)


class AnswerNumbers(Record):
    """How a model's answers look, over all turns for which one came."""

    turns: int | None = None
    errors: int | None = None
    empty: int | None = None
    ended: Number | None = None
    degenerate: Number | None = None
    refusals: Number | None = None
    mean_tokens: Number | None = None


class ModelGrades(Record):
    """One model's ratings, and how its answers look."""

    n: int | None = None  # rated turns
    questions: int | None = None
    unscored: int | None = None
    mean: Rating | None = Field(None, alias="score")
    by_category: dict[str, Rating] = Field(default_factory=dict)
    by_turn: dict[str, Rating] = Field(default_factory=dict)
    answers: AnswerNumbers = AnswerNumbers()

    def grades(self, checkpoint: str) -> Grades:
        a = self.answers
        came = (a.turns or 0) - (a.errors or 0)
        return Grades(
            checkpoint=checkpoint,
            mean=None if self.mean is None else self.mean.score(),
            rated=self.n,
            unscored=self.unscored,
            ended=share(a.ended, came),
            degenerate=share(a.degenerate, came),
            empty=share(a.empty / came, came) if a.empty is not None and came else None,
            errors=a.errors,
            mean_tokens=a.mean_tokens,
            by_category=_scores(self.by_category),
            by_turn=_scores(self.by_turn),
        )


def _scores(ratings: Mapping[str, Rating]) -> dict[str, Score]:
    by_group = {group: rating.score() for group, rating in ratings.items()}
    return {group: score for group, score in by_group.items() if score is not None}


# -------------------------------------------------------------------------- in pairs


class WinRates(Record):
    """One model's win rates; a tie counts half."""

    win_rate: Estimated = Estimated()
    by_turn: dict[str, Estimated] = Field(default_factory=dict)
    by_category: dict[str, Estimated] = Field(default_factory=dict)


class TwoModels(Record):
    """How two models did against each other."""

    a: str = ""
    b: str = ""
    wins: int = 0
    losses: int = 0
    ties: int = 0
    inconsistent: int = 0
    unscored: int = 0
    win_rate: Estimated = Estimated()
    p: Number | None = None
    p_holm: Number | None = None


class OwnWins(Record):
    """The win rate that a judge that is a contestant gives itself."""

    model: str | None = None
    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    n: int | None = None

    def score(self) -> Score | None:
        return score(self.value, self.low, self.high, self.n)


class Pairwise(Record):
    """What came of grading in pairs."""

    models: dict[str, WinRates] = Field(default_factory=dict)
    pairs: list[TwoModels] = Field(default_factory=list)
    n: int | None = None
    unscored: int | None = None
    flips: Estimated | None = None
    first: Estimated | None = None
    longer: Estimated | None = None
    self_preference: OwnWins | None = None

    @property
    def order(self) -> OrderNumbers:
        return OrderNumbers(flips=self.flips, first=self.first, longer=self.longer)


# --------------------------------------------------------------------------- mt_bench


class MtBenchScores(Scores):
    """``scores.json`` of an mt_bench step."""

    judge: str | None = None
    mode: str | None = None
    questions: int | None = None
    models: dict[str, ModelGrades] = Field(default_factory=dict)
    rating_differences: list[PairedDifference] = Field(default_factory=list, alias="differences")
    self_preference: OwnRating | None = None
    pairwise: Pairwise | None = None

    def outcome(self) -> str:
        return f"{len(self.models)} checkpoints"

    def checkpoints(self) -> list[str]:
        return self._listed(self.models)

    def foreign(self) -> list[str]:
        listed = self.step.settings.get(self.step.verb)
        return [name for name in self.models if name not in listed] if isinstance(listed, list) else []

    def grades(self) -> list[Grades]:
        return [found.grades(name) for name, found in self.models.items()]

    def scores(self) -> list[Measured]:
        measured = []
        for g in self.grades():
            if g.mean is not None:
                title = f"{RATED}: mean rating, 1 to 10"
                measured.append(Measured(g.checkpoint, "rating", RATED, title, g.mean, 2))
            if g.ended is not None:
                measured.append(Measured(g.checkpoint, "ended", ENDED, STOP, g.ended))
        return measured

    def differences(self) -> list[Difference]:
        differences = [row.told("rating", RATED, f"{RATED}: mean rating") for row in self.rating_differences]
        return [difference for difference in differences if difference is not None]

    def answer_differences(self) -> list[Difference]:
        """In the share of answers that stop by themselves, over questions.

        A question's value is the share that ended of the turns that both answered; p values are
        corrected for the pairs of checkpoints.
        """
        values = self._stopped()
        seed = step_seed(self.step.parts.get("seed") or 0, self.step.name, "ended")
        shown = {checkpoint: values[checkpoint] for checkpoint in self.checkpoints() if checkpoint in values}
        rows = every_pair(shown, seed, {"what": ENDED}, unit=question_of)
        correct(rows)
        told = [PairedDifference.model_validate(row).told("ended", ENDED, STOP) for row in rows]
        return [difference for difference in told if difference is not None]

    def _stopped(self) -> dict[str, TurnValues]:
        """{checkpoint: whether it ended its answer itself, 0 or 1}."""
        values: dict[str, TurnValues] = {}
        for row in self.step.rows(ANSWERS):
            for turn, finish in enumerate(row.get("finish") or [], 1):
                if finish not in (None, "error"):
                    values.setdefault(str(row.get("model")), {})[row.get("question_id"), turn] = float(finish == "stop")
        return values

    def comparable(self) -> Iterator[Comparable]:
        """Ratings and answers that stop, by question and turn; the same if the questions' texts are,
        and who grades them how.
        """
        step, settings = self.step, self.step.settings
        answers, judgments = list(step.rows(ANSWERS)), list(step.rows(JUDGMENTS))
        stopped = self._stopped()
        judge = str(settings.get("judge"))
        who = (step.parts.get("models") or {}).get(judge) or (step.parts.get("inputs") or {}).get(judge)
        graded = (settings.get("mode"), settings.get("judge_prompts"), step.parts.get("texts"), settings.get("prompts"))
        for m in self.scores():
            own = [row for row in answers if row.get("model") == m.checkpoint]
            questions = {str(row.get("question_id")): row.get("questions") for row in own}
            if m.kind == "ended":
                values, same = stopped.get(m.checkpoint, {}), digest([questions, settings.get("max_new_tokens")])
                yield Comparable(m, _by_name(values), same)
            elif who:
                ratings = turn_ratings([row for row in judgments if row.get("model") == m.checkpoint])
                yield Comparable(m, _by_name(ratings), digest([questions, who, *graded]))
            else:
                yield Comparable(m, None, None)


def _by_name(values: TurnValues) -> TurnValues:
    return {(str(question), turn): value for (question, turn), value in values.items()}


# -------------------------------------------------------------------------- agreement


class AgreementRow(Record):
    """How often two raters agree in a setup, as ``stats.agreement.agreement_table`` gives it."""

    setup: str | None = None
    pair: str | None = None
    n: int | None = None
    agreement: Number | None = None
    low: Number | None = None
    high: Number | None = None
    kappa: Number | None = None
    kappa_low: Number | None = None
    kappa_high: Number | None = None

    def score(self) -> Score | None:
        return score(self.agreement, self.low, self.high, self.n)

    def beyond_chance(self) -> Score | None:
        return score(self.kappa, self.kappa_low, self.kappa_high, self.n)


class AgreementScores(Scores):
    """``scores.json`` of an agreement step."""

    judge: str | None = None
    mode: str | None = None
    n: int | None = None
    unscored: int | None = None
    agreement: list[AgreementRow] = Field(default_factory=list)
    one_order: Estimated | None = None
    averaged: Estimated | None = None
    flips: Estimated | None = None
    first: Estimated | None = None
    longer: Estimated | None = None
    retest: Estimated | None = None
    by_dataset: dict[str, Estimated] = Field(default_factory=dict)
    rewards: PairAccuracy | None = None  # of a reward model

    @property
    def order(self) -> OrderNumbers:
        return OrderNumbers(flips=self.flips, first=self.first, longer=self.longer)

    def outcome(self) -> str:
        return f"{'?' if self.n is None else self.n} pairs"

    def kappa(self) -> Score | None:
        """How far the judge agrees with the majority of people beyond chance, ties counted."""
        rows = [row for row in self.agreement if (row.pair, row.setup) == ("judge-majority", "S1")]
        return rows[0].beyond_chance() if rows else None

    def with_majority(self) -> Score | None:
        """How often the judge agrees with the majority of people, ties counted."""
        rows = [row for row in self.agreement if (row.pair, row.setup) == ("judge-majority", "S1")]
        return rows[0].score() if rows else None

    def trust(self) -> list[str]:
        share = self.with_majority()
        if share is None:
            return []
        kappa = self.kappa()
        beyond = "" if kappa is None else f"; Cohen's kappa {kappa.text()}"
        what = f"The judge {self.judge} and the majority of people agree on {share.text()}"
        return [f"{what} of the compared answers (ties count){beyond}."]
