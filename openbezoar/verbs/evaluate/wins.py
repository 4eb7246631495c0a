"""Answers of checkpoints to the same prompts, compared in pairs: ``wins`` of an evaluate step.

Reads rows of prompts, the checkpoints, and the reward model or judge that compares. Writes
``answers.jsonl`` (a row a set, checkpoint and prompt: what was asked and answered, how it ended, the
reward) and, where a judge compares, ``comparisons.jsonl`` (votes, as in mt_bench).

A reward model prefers the answer with the higher reward; the same answer twice is a tie. A judge sees both
orders, and where they disagree it is a tie (``judging.both_orders``). A win rate is (wins + ties / 2) / n, and
every test here is of prompts, paired. Answers and a judge's replies are in the call cache, rewards in
``.resume.wins-SET.json`` until the step is whole, so that a killed run asks nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from openbezoar.context import StepContext
from openbezoar.judging import both_orders, rewards
from openbezoar.judging.failures import loops
from openbezoar.judging.pairwise import score_of
from openbezoar.judging.prompting import own_texts
from openbezoar.judging.questions import Question
from openbezoar.llm import Sampling, open_llm, recorded
from openbezoar.models.driving import abreast
from openbezoar.recipe.measure_steps import Evaluate, Wins
from openbezoar.recipe.verbs import verb_of
from openbezoar.reporting.results import StepFacts
from openbezoar.rows.forms import to_prompt
from openbezoar.rows.held import question_text
from openbezoar.rows.records import Row, Turn, write_jsonl
from openbezoar.stats.comparisons import every_pair
from openbezoar.stats.intervals import mean_interval, share_of, widened
from openbezoar.stats.length_control import length_controlled
from openbezoar.stats.seeds import step_seed
from openbezoar.store.files import write_json
from openbezoar.store.manifests import read_sealed, sealed
from openbezoar.verbs.evaluate.won import ANSWERS, COMPARISONS, DEGENERATE, STOPPED, WIN_RATE

Preferences = list[float | None]
"""For each prompt 1 where a checkpoint won, 0.5 for a tie, 0 where it lost, None without a verdict."""
WANTED = {"judge_pair": both_orders.TEXTS["judge_pair"]}


@dataclass(frozen=True)
class Prompted:
    """A prompt of a set; ids of rows need not differ, with the row's place in front they do."""

    id: str
    turns: tuple[Turn, ...]


class Opposed(NamedTuple):
    """A checkpoint and the one that it is compared with."""

    name: str
    against: str


@dataclass(frozen=True)
class Competition:
    """A set of prompts with every checkpoint's answers, rows of ``answers.jsonl`` in the prompts' order."""

    set: str
    wins: Wins
    prompts: Sequence[Prompted]
    answers: Mapping[str, list[Row]]

    def pairs(self) -> list[Opposed]:
        """Every checkpoint with each opponent; two opponents with each other once."""
        opponents = self.wins.opponents
        return [
            Opposed(name, other)
            for place, other in enumerate(opponents)
            for name in self.answers
            if name != other and name not in opponents[:place]
        ]

    def came(self, name: str, place: int) -> bool:
        """Whether a checkpoint has an answer to a prompt."""
        return bool(self.answers[name][place]["finish"] != "error")


class WinsFound(NamedTuple):
    """What was found: sets is about who compared, checkpoints has {checkpoint: {set: numbers}}, differences
    are rows of ``every_pair``, not yet corrected.
    """

    sets: dict[str, Row]
    checkpoints: dict[str, dict[str, Row]]
    differences: list[Row]


def compare_answers(step: Evaluate, context: StepContext) -> WinsFound:
    """Answer, compare and count every set of the step's ``wins``."""
    found = WinsFound({}, {name: {} for name in dict.fromkeys(step.evaluate)}, [])
    answers: list[Row] = []
    comparisons: list[Row] = []
    for name, wins in step.wins.items():
        # read first, so that a mistake in any row shows before a model is loaded
        prompts = _prompts(wins, context)
        own = {model: _answered(name, wins, model, prompts, context) for model in found.checkpoints}
        competition = Competition(name, wins, prompts, own)
        if rewards.is_reward_model(context.recipe, wins.by):
            preferred = _by_rewards(competition, context)
        else:
            preferred, rows = _by_judge(competition, context)
            comparisons += rows
        answers += [row for of in own.values() for row in of]
        _count(competition, preferred, context)
        found.sets[name] = _about(wins, len(prompts), context)
        for model, numbers in _numbers(competition, preferred, step_seed(context.seed, "wins", name)).items():
            found.checkpoints[model][name] = numbers
        found.differences.extend(_differences(competition, preferred, step_seed(context.seed, "wins")))
    write_jsonl(context.out / ANSWERS, answers)
    if comparisons:
        write_jsonl(context.out / COMPARISONS, comparisons)
    return found


# ------------------------------------------------------------------------------- answers


def _prompts(wins: Wins, context: StepContext) -> list[Prompted]:
    def prompt(row: Row, where: str) -> Prompted:
        return Prompted(str(row.get("id", where)), to_prompt(row, where))

    rows = context.converted(wins.prompts, prompt, wins.limit)
    return [Prompted(f"{place}:{row.id}", row.turns) for place, row in enumerate(rows, 1)]


def _answered(name: str, wins: Wins, model: str, prompts: Sequence[Prompted], context: StepContext) -> list[Row]:
    """A checkpoint's answers, in its own prompt format."""
    sampling = Sampling(wins.max_new_tokens, wins.temperature, wins.top_p)
    with closing(open_llm(model, context)) as llm:

        def make(first: int, batch: Sequence[Prompted]) -> list[Row]:
            # of the set's place alone, so that checkpoints differ in nothing but themselves
            seeds = [step_seed(context.seed, "wins", name, first + n) for n in range(len(batch))]
            return [
                {
                    "set": name,
                    "id": asked.id,
                    "model": model,
                    "prompt": [turn.as_dict() for turn in asked.turns],
                    "answer": got.text,
                    "finish": got.finish,
                    "tokens": got.tokens,
                    "stopped": got.finish == "stop",
                    "score": None,
                    **recorded(got),
                }
                for asked, got in zip(batch, llm.chat([a.turns for a in batch], sampling, seeds), strict=True)
            ]

        return context.batched(f"{name}-{model}", prompts, abreast(wins.batch), make, unit="answers")


# ----------------------------------------------------------------------------- comparing


def _by_rewards(competition: Competition, context: StepContext) -> dict[Opposed, Preferences]:
    """Rewards into the answers' rows, and what they prefer."""
    # a checkpoint's own file is .resume-NAME.json, and may be of one called 'wins-' and a set
    kept = context.out / f".resume.wins-{quote(competition.set, safe='')}.json"
    if not kept.is_file():
        write_json(kept, sealed({"rewards": _rewarded(competition, context)}))
    rewarded = read_sealed(kept, "rewards", "delete it and run again")["rewards"]
    for name, rows in competition.answers.items():
        for row, reward in zip(rows, rewarded[name], strict=True):
            row["score"] = reward
    return {
        pair: [
            None if a is None or b is None else 1.0 if a > b else 0.5 if a == b else 0.0
            for a, b in zip(rewarded[pair.name], rewarded[pair.against], strict=True)
        ]
        for pair in competition.pairs()
    }


def _rewarded(competition: Competition, context: StepContext) -> dict[str, Preferences]:
    """{checkpoint: the reward of each of its answers}. An answer that two checkpoints gave is scored once."""
    asked, by_place = [], []
    for place, prompt in enumerate(competition.prompts):
        texts = {n: rows[place]["answer"] for n, rows in competition.answers.items() if competition.came(n, place)}
        different = list(dict.fromkeys(texts.values()))
        by_place.append((texts, different))
        if different:
            asked.append((prompt.turns, different))
    label = f"{competition.set}-{competition.wins.by}"
    with (
        closing(rewards.open_rewards(context, competition.wins.by)) as model,
        context.progress.bar(label, len(asked), "prompts") as bar,
    ):
        scored = iter(model.scores(asked, bar.advance))
    rewarded: dict[str, Preferences] = {name: [] for name in competition.answers}
    for texts, different in by_place:
        known = dict(zip(different, next(scored), strict=True)) if different else {}
        for name, of in rewarded.items():
            reward = known[texts[name]] if name in texts else math.nan
            of.append(reward if math.isfinite(reward) else None)
    return rewarded


def _by_judge(competition: Competition, context: StepContext) -> tuple[dict[Opposed, Preferences], list[Row]]:
    """What a judge prefers, with rows of ``comparisons.jsonl``."""
    wins, texts = competition.wins, own_texts(WANTED, {}, tuple(WANTED))
    preferred: dict[Opposed, Preferences] = {}
    comparisons: list[Row] = []
    with closing(open_llm(wins.by, context)) as judge:

        def make(_: int, batch: Sequence[both_orders.Pairing]) -> list[Row]:
            return both_orders.compared(judge, texts, batch, wins.mode, Sampling(wins.judge_max_new_tokens))

        for pair in competition.pairs():
            label = f"{competition.set}-{pair.name}-{pair.against}"
            pairings = [_pairing(competition, pair, place, context.seed) for place in range(len(competition.prompts))]
            rows = context.batched(label, pairings, wins.batch, make, unit="comparisons")
            preferred[pair] = [score_of(pair.name, row) for row in rows]
            comparisons += rows
    return preferred, comparisons


def _pairing(competition: Competition, pair: Opposed, place: int, seed: int) -> both_orders.Pairing:
    prompt, wins = competition.prompts[place], competition.wins
    text = question_text([turn.as_dict() for turn in prompt.turns])
    question = Question(prompt.id, competition.set, (text, ""), ("", ""))
    a, b = (competition.answers[name][place]["answer"] for name in pair)
    orders = (pair, pair[::-1])
    return both_orders.Pairing(
        what={
            "set": competition.set,
            "question_id": prompt.id,
            "turn": 1,
            "model_a": pair.name,
            "model_b": pair.against,
            "judge": wins.by,
            "mode": wins.mode,
        },
        question=question,
        turn=1,
        answers=((a,), (b,)),
        seeds=tuple(step_seed(seed, "wins", competition.set, *order, prompt.id) for order in orders),
        came=all(competition.came(name, place) for name in pair),
    )


# ------------------------------------------------------------------------------ counting


def _numbers(competition: Competition, preferred: Mapping[Opposed, Preferences], seed: int) -> dict[str, Row]:
    """What the answers of each checkpoint are like, and its win rates."""
    numbers = {}
    for name, rows in competition.answers.items():
        against = {
            pair.against: _rate(competition, pair, values, seed)
            for pair, values in preferred.items()
            if pair.name == name
        }
        numbers[name] = {**_state(rows, step_seed(seed, name)), "against": against}
    return numbers


def _state(rows: Sequence[Row], seed: int) -> Row:
    """Length, ends and loops of a checkpoint's answers, with intervals over prompts."""
    came = [row for row in rows if row["finish"] != "error"]
    scored = [row["score"] for row in came if row["score"] is not None]
    items = {STOPPED: _items(rows, STOPPED), DEGENERATE: _items(rows, DEGENERATE)}
    return {
        "n": len(came),
        "errors": len(rows) - len(came),
        "tokens": _mean([row["tokens"] for row in came], step_seed(seed, "tokens")),
        **{what: share_of([int(v) for v in values if v is not None])._asdict() for what, values in items.items()},
        "empty": share_of([not row["answer"].strip() for row in came])._asdict(),
        "reward": _mean(scored, step_seed(seed, "reward")),
        "items": items,
    }


def _items(rows: Sequence[Row], what: str) -> Preferences:
    """Whether each answer stopped, or loops: 1, 0, or None where none came."""
    return [
        None if row["finish"] == "error" else float(row["stopped"] if what == STOPPED else loops(row["answer"]))
        for row in rows
    ]


def _mean(values: Sequence[float], seed: int) -> Row | None:
    return {**mean_interval(values, seed)._asdict(), "n": len(values)} if values else None


def _rate(competition: Competition, pair: Opposed, values: Preferences, seed: int) -> Row:
    """A win rate, plain and at equal length, with {wins, ties, losses, unscored} and the value of each prompt."""
    places = [place for place, value in enumerate(values) if value is not None]
    known = [value for value in values if value is not None]
    own = step_seed(seed, *pair)
    rate = None if not known else widened(mean_interval(known, own), len(known))._asdict() | {"n": len(known)}
    a, b = ([len(competition.answers[name][place]["answer"]) for place in places] for name in pair)
    controlled = length_controlled(known, a, b, own)
    return {
        "wins": known.count(1.0),
        "ties": known.count(0.5),
        "losses": known.count(0.0),
        "unscored": len(values) - len(known),
        "win_rate": rate,
        "length_controlled": None if controlled is None else controlled.win_rate._asdict() | {"n": len(known)},
        "items": values,
    }


def _differences(competition: Competition, preferred: Mapping[Opposed, Preferences], seed: int) -> list[Row]:
    """Checkpoints tested, the one that stands later in the recipe's list less the other: those that were compared
    in the win rate, against an even one, and every two in the shares of answers that stop and that loop.
    """
    rows = []
    for pair, values in preferred.items():
        rates = {pair.name: _by_place(values), pair.against: dict.fromkeys(range(len(values)), 0.5)}
        ordered = {name: rates[name] for name in competition.answers if name in pair}
        rows += every_pair(ordered, seed, {"set": competition.set, "what": WIN_RATE})
    for what in (STOPPED, DEGENERATE):
        values_of = {name: _by_place(_items(of, what)) for name, of in competition.answers.items()}
        rows += every_pair(values_of, seed, {"set": competition.set, "what": what})
    return rows


def _by_place(values: Preferences) -> dict[int, float]:
    return {place: value for place, value in enumerate(values) if value is not None}


def _count(competition: Competition, preferred: Mapping[Opposed, Preferences], context: StepContext) -> None:
    """What has no answer or no verdict."""
    for name, rows in competition.answers.items():
        if errors := sum(row["finish"] == "error" for row in rows):
            context.counts.add(f"{name}, wins {competition.set}: prompts without an answer", errors)
    for pair, values in preferred.items():
        both = [all(competition.came(name, place) for name in pair) for place in range(len(values))]
        if lost := sum(value is None and came for value, came in zip(values, both, strict=True)):
            context.counts.add(f"{pair.name} against {pair.against}, wins {competition.set}: no verdict", lost)


def _about(wins: Wins, prompts: int, context: StepContext) -> Row:
    """Who compared, and how far that is to be believed, as the steps say that measured it."""
    measured = [name for name in (wins.by, wins.judge_check) if name is not None and name in context.recipe.steps]
    facts = [
        StepFacts(name, verb_of(context.recipe.steps[name]), context.folder(name), context.run.manifest(name) or {})
        for name in measured
    ]
    return {
        "by": wins.by,
        "prompts": prompts,
        "temperature": wins.temperature,
        "max_new_tokens": wins.max_new_tokens,
        "trust": [sentence for step in facts for sentence in step.result.trust()],
    }
