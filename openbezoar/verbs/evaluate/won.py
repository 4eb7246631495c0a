"""What ``wins`` of an evaluate step leaves for others to read, a part of its ``scores.json``, and how it is shown.

In a checkpoint's part {set: {"n", "errors", "tokens", "stopped", "degenerate", "empty", "reward", "items",
"against": {opponent: {"wins", "ties", "losses", "unscored", "win_rate", "length_controlled", "items"}}}}; of the
step {set: {"by", "prompts", "temperature", "max_new_tokens", "trust"}}. Reads the step's ``answers.jsonl``;
writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, NamedTuple

from pydantic import Field

from openbezoar.reporting.document import Block, Fold, Grid, Paragraph, Part, Texts
from openbezoar.reporting.measured import Items, Measured
from openbezoar.reporting.results import Estimated, Number, Record, StepFacts
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, shorten
from openbezoar.rows.held import question_text
from openbezoar.rows.records import Row
from openbezoar.stats.seeds import step_seed
from openbezoar.store.digests import digest

ANSWERS, COMPARISONS = "answers.jsonl", "comparisons.jsonl"
WIN_RATE, STOPPED, DEGENERATE = "win_rate", "stopped", "degenerate"
"""What two checkpoints' answers to a set of prompts are compared in."""
SHOWN = 10  # pairs of answers in the report
LIMIT = 6000  # characters of an answer shown
Values = list[Number | None]
"""A value for each prompt, None for one without."""


def against(name: str, other: str) -> str:
    """What a set's win rate is called."""
    return f"{name}: win rate against {other}"


def titles(name: str) -> dict[str, str]:
    """What is said of a set's answers, by what they are compared in."""
    return {STOPPED: f"{name}: answers that stop", DEGENERATE: f"{name}: degenerate answers"}


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

    def main_values(self, name: str) -> dict[str, Number | None]:
        """Win rates, and how many answers stop, by what they are called; name: of the set."""
        rates = {other: of.win_rate for other, of in self.against.items() if of.win_rate is not None}
        values = {against(name, other): rate.value for other, rate in rates.items()}
        return values if self.stopped is None else values | {titles(name)[STOPPED]: self.stopped.value}

    def measured(self, checkpoint: str, name: str) -> Iterator[Measured]:
        """What the table tells of the checkpoint's answers to the set of that name."""
        for other, rate in self.against.items():
            plain, equal = against(name, other), f"{name}: length-controlled win rate against {other}"
            for title, of in ((plain, rate.win_rate), (equal, rate.length_controlled)):
                if of is not None and (found := of.score()) is not None:
                    yield Measured(checkpoint, "wins", title, title, found)
        for what, of in ((STOPPED, self.stopped), (DEGENERATE, self.degenerate)):
            if of is not None and (found := of.score()) is not None:
                title, lower = titles(name)[what], what == DEGENERATE
                yield Measured(checkpoint, "ended", title, title + ", lower is better" * lower, found, lower=lower)


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


def won_items(step: StepFacts, m: Measured, wins: Mapping[str, AnswersOnSet]) -> tuple[Items | None, str | None]:
    """A score's values by prompt, and what says that two lists of prompts are the same, answered in the same
    way; of a win rate also that who compares is the same, and the opponent.
    """
    for name, answers in wins.items():
        settings = (step.settings.get("wins") or {}).get(name) or {}
        asked = [settings.get(key) for key in ("limit", "max_new_tokens", "temperature", "top_p")]
        data = step.data(settings.get("prompts"))
        for what, title in titles(name).items():
            if m.name == title:
                return _by_prompt(answers.items.get(what)), digest([data, *asked]) if data else None
        for other, rate in answers.against.items():
            if m.name == against(name, other):
                who = [_identity(step, some) for some in (settings.get("by"), other)]
                known = data is not None and None not in who
                same = digest([data, *asked, *who, settings.get("mode")]) if known else None
                return _by_prompt(rate.items), same
    return None, None


def _identity(step: StepFacts, name: Any) -> Any:
    """What makes a model, or a step's, the same one."""
    return (step.parts.get("models") or {}).get(name) or (step.parts.get("inputs") or {}).get(name)


def _by_prompt(values: Values | None) -> Items | None:
    return None if values is None else {place: float(v) for place, v in enumerate(values) if v is not None}


# --------------------------------------------------------------------------------- shown


def answer_pairs(step: StepFacts, name: str, before: str, after: str, n: int = SHOWN) -> list[AnswerPair]:
    """So many prompts of a set with two checkpoints' answers, drawn by the run's seed and nobody's taste, in the
    prompts' order. Prompts that one of the two has no answer to are none.
    """
    by_model: dict[str, dict[str, Row]] = {before: {}, after: {}}
    for row in step.rows(ANSWERS):
        if row.get("set") == name and row.get("model") in by_model and row.get("finish") != "error":
            by_model[str(row["model"])][str(row.get("id"))] = row
    first, second = by_model[before], by_model[after]
    shared = [key for key in first if key in second]
    seed = step_seed(step.parts.get("seed") or 0, step.name, "shown", name)
    drawn = set(Random(seed).sample(shared, min(n, len(shared))))
    return [
        AnswerPair(_dialogue(first[key].get("prompt")), str(first[key].get("answer")), str(second[key].get("answer")))
        for key in shared
        if key in drawn
    ]


def _dialogue(prompt: Any) -> str:
    """A prompt's turns as text, as judges read them."""
    turns = [turn for turn in prompt if isinstance(turn, Mapping)] if isinstance(prompt, list) else []
    return question_text([{key: str(turn.get(key)) for key in ("role", "content")} for turn in turns])


def win_blocks(step: StepFacts, name: str, by: ComparedBy, found: Mapping[str, AnswersOnSet]) -> Part:
    """A set's win rates and answers as tables, and some answers side by side."""
    rates = tuple(
        (c, other, _text(rate.win_rate), _text(rate.length_controlled), *_counts(rate))
        for c, of in found.items()
        for other, rate in of.against.items()
    )
    note = (
        f"{by.words()} Win rate: wins and half the ties, 0.5 is even. At equal length: by AlpacaEval 2's regression"
        " (arXiv 2404.04475), without its terms for other models."
    )
    answers = tuple(
        (c, _text(of.tokens, 1), *map(_text, (of.stopped, of.degenerate, of.empty, of.reward)))
        for c, of in found.items()
    )
    headers = ("checkpoint", "against", "win rate", "at equal length", "wins", "ties", "losses", "unscored")
    state = ("checkpoint", "mean tokens", "stopped by itself", "degenerate", "empty", "mean reward")
    tables: tuple[Block, ...] = (
        Grid(Table(headers, rates, note), "Win rates", stack=True),
        Grid(Table(state, answers), "The answers", stack=True),
    )
    return Part(f"{name} ({step.name})", (*tables, *_side_by_side(step, name, found)))


def _side_by_side(step: StepFacts, name: str, found: Mapping[str, AnswersOnSet]) -> Iterator[Block]:
    """Answers of the last checkpoint that was compared, and of the opponent that it was compared with first."""
    compared = [(other, c) for c, of in found.items() for other in [*of.against][:1]]
    if compared and (pairs := answer_pairs(step, name, *compared[-1])):
        before, after = compared[-1]
        texts = (
            Texts(tuple((who, shorten(text, LIMIT)) for who, text in zip(("Prompt", before, after), pair, strict=True)))
            for pair in pairs
        )
        about = Paragraph(f"{len(pairs)} prompts, drawn by the run's seed.")
        yield Fold(f"Answers of {before} and {after} side by side", (about, *texts))


def _counts(rate: WinRate) -> list[str]:
    return [NOTHING if n is None else str(n) for n in (rate.wins, rate.ties, rate.losses, rate.unscored)]


def _text(of: Estimated | None, digits: int = 3) -> str:
    found = None if of is None else of.score()
    return NOTHING if found is None else found.text(digits)
