"""How often a judge agrees with people, and people with one another, on which of two answers is better.

Takes votes: rows with ``question_id``, ``turn``, ``model_a``, ``model_b``,
``winner`` ("model_a", "model_b", "tie", "tie (inconsistent)"; null or "error" if no verdict
could be read) and ``judge``. Reads and writes no file.

Protocol of MT-Bench (arXiv 2306.05685, FastChat's ``compute_agreement``): a pair of models
has no order; each pair of a judge's verdict and a person's vote on the same question, turn
and models counts once, and so does each pair of two persons' votes. Setup S1 counts ties,
and verdicts that changed when the answers were swapped are ties. S2 drops a pair of votes
if either is a tie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from openbezoar.errors import DataError, named, shown
from openbezoar.stats.intervals import Interval, agreement_of, grouped_intervals, kappa_of, widened

PERSONS = "expert_*"
"""Who counts as a person: MT-Bench's authors (``author_*``) voted too, but the published figures leave them out."""

LABELS = ("first", "second", "tie")
TIE = LABELS.index("tie")
SETUPS = ("S1", "S2")

Key = tuple[str, int, str, str]


@dataclass(frozen=True)
class Vote:
    """Who won on a question and turn. ``key``: (question, turn, first model, second model), models
    in the order of their names.
    """

    key: Key
    label: int  # an index of LABELS
    judge: str

    @property
    def question(self) -> str:
        return self.key[0]

    @property
    def turn(self) -> int:
        return self.key[1]


def judge_of(row: Mapping[str, Any], where: str) -> str:
    """Who voted: a name, or FastChat's list of a name and a prompt's. Raises DataError for anything else."""
    judge = row.get("judge", "")
    if isinstance(judge, list) and judge:
        judge = judge[0]
    if not isinstance(judge, str):
        raise DataError(f"{where}: judge is {shown(judge)}; expected a name")
    return judge


def vote(row: Mapping[str, Any], where: str) -> Vote | None:
    """The vote in a row; None if it says that there is no verdict. Raises DataError for a row that is none."""
    missing = [name for name in ("question_id", "turn", "model_a", "model_b", "winner") if name not in row]
    if missing:
        raise DataError(
            f"{where}: no field '{missing[0]}'; a vote has question_id, turn, model_a, model_b, winner and judge"
        )
    a, b, winner = row["model_a"], row["model_b"], row["winner"]
    if not isinstance(a, str) or not isinstance(b, str) or not isinstance(row["question_id"], (str, int)):
        raise DataError(
            f"{where}: model_a and model_b are names, question_id a number or name; it has {shown(a)}, {shown(b)} and"
            f" {shown(row['question_id'])}"
        )
    if row["turn"] not in (1, 2) or a == b:
        raise DataError(
            f"{where}: a vote is on turn 1 or 2 and two different models; it has turn {shown(row['turn'])}, {named(a)}"
            f" and {named(b)}"
        )
    if winner is None or winner == "error":
        return None
    if winner == "inconsistent" or str(winner).startswith("tie"):
        label = TIE
    elif winner in ("model_a", "model_b"):
        label = int((winner == "model_a") != (a < b))
    else:
        raise DataError(
            f"{where}: winner is {shown(winner)}; expected model_a, model_b, tie, 'tie (inconsistent)', or null"
        )
    return Vote((str(row["question_id"]), int(row["turn"]), *sorted((a, b))), label, judge_of(row, where))  # type: ignore[arg-type]


def agreement_table(judge: Sequence[Vote], people: Sequence[Vote], seed: int = 0) -> list[dict[str, Any]]:
    """Agreement and kappa by setup, turn and who is compared, each with n and 95 % interval over questions.

    {setup, turn, pair: judge-human, human-human or judge-majority, n, agreement, low, high,
    kappa, kappa_low, kappa_high}, shares to three decimals; None where n is 0, or kappa is
    undefined. The majority is the label with the most votes; keys without one are left out
    (``without_majority`` counts them). In human-human neither vote comes first: each pair
    enters kappa's table both ways round, which leaves agreement as it is.
    """
    compared = {
        "judge-human": _matched(judge, people),
        "human-human": [
            (a.question, a.turn, a.label, b.label)
            for group in _by_key(people).values()
            for a, b in combinations(group, 2)
        ],
        "judge-majority": _matched(judge, _majority(people)[0]),
    }
    rows = []
    for setup in SETUPS:
        for turn in sorted({v.turn for v in (*judge, *people)}):
            for pair, votes in compared.items():
                n, tables = _tables(
                    [(q, a, b) for q, t, a, b in votes if t == turn and (setup == "S1" or TIE not in (a, b))],
                    symmetric=pair == "human-human",
                )
                agreement, kappa = grouped_intervals(tables, (agreement_of, kappa_of), seed)
                agreement = agreement and widened(agreement, len(tables))
                rows.append(
                    {
                        "setup": setup,
                        "turn": turn,
                        "pair": pair,
                        "n": n,
                        **_numbers("agreement", "", agreement),
                        **_numbers("kappa", "kappa_", kappa),
                    }
                )
    return rows


def without_majority(people: Sequence[Vote]) -> int:
    """On how many keys no label has more votes than every other."""
    return _majority(people)[1]


def _matched(judge: Sequence[Vote], people: Sequence[Vote]) -> list[tuple[str, int, int, int]]:
    by_key = _by_key(judge)
    return [(p.question, p.turn, j.label, p.label) for p in people for j in by_key.get(p.key, ())]


def _majority(people: Sequence[Vote]) -> tuple[list[Vote], int]:
    decided, without = [], 0
    for key, votes in _by_key(people).items():
        ranked = Counter(v.label for v in votes).most_common(2)
        if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
            without += 1
        else:
            decided.append(Vote(key, ranked[0][0], "majority"))
    return decided, without


def _by_key(votes: Iterable[Vote]) -> dict[Key, list[Vote]]:
    groups: dict[Key, list[Vote]] = {}
    for v in votes:
        groups.setdefault(v.key, []).append(v)
    return groups


def _tables(pairs: Sequence[tuple[str, int, int]], symmetric: bool) -> tuple[int, Any]:
    """How many pairs of labels there are, and a table of them for each question: [questions, labels, labels]."""
    places = {question: place for place, question in enumerate(sorted({q for q, _, _ in pairs}))}
    tables = np.zeros((len(places), len(LABELS), len(LABELS)))
    for question, a, b in pairs:
        tables[places[question], a, b] += 0.5
        tables[places[question], *((b, a) if symmetric else (a, b))] += 0.5
    return len(pairs), tables


def _numbers(name: str, prefix: str, interval: Interval | None) -> dict[str, float | None]:
    value, low, high = (None, None, None) if interval is None else (round(x, 3) for x in interval)
    return {name: value, f"{prefix}low": low, f"{prefix}high": high}
