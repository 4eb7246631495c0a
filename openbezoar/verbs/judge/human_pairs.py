"""Pairs of answers that people have compared, and how a judge did on them. Takes and gives rows, writes nothing.

A row has ``instruction``, perhaps ``input``, ``output_1``, ``output_2``, and people's
verdict: ``human_majority`` (1, 2, or 0 for a tie; null where they were split) or
``human_labels``, one such number a person. A preference pair, in any of its forms, is one of which
people preferred the chosen answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openbezoar.errors import DataError, RowError, named, shown
from openbezoar.judging.both_orders import INCONSISTENT
from openbezoar.judging.pairwise import longer_wins, order_numbers, share
from openbezoar.judging.questions import Question
from openbezoar.llm.spoken import spoken
from openbezoar.rows.fields import text_in
from openbezoar.rows.forms import to_pair
from openbezoar.rows.held import question_text
from openbezoar.rows.instructions import judged_text
from openbezoar.rows.known import INSTRUCTION, fitting
from openbezoar.rows.records import Counts, Pair, Row, Turn
from openbezoar.stats.agreement import TIE, Vote, agreement_table
from openbezoar.stats.seeds import step_seed

LABEL = {1: 0, 2: 1, 0: TIE}
_WON = {"model_a": 0, "model_b": 1, "tie": TIE, INCONSISTENT: TIE}
_SHOWN = ({"A": 0, "B": 1, "tie": TIE}, {"A": 1, "B": 0, "tie": TIE})  # by order


@dataclass(frozen=True)
class HumanPair:
    """Two answers to one instruction, and each person's label: 0 the first is better, 1 the second, 2 neither.

    talk: the turns before the answers, which the question has as one text.
    """

    id: str
    dataset: str
    question: Question
    answers: tuple[str, str]
    labels: tuple[int, ...]
    talk: tuple[Turn, ...] = ()

    def votes(self) -> list[Vote]:
        return [self.vote(label, f"person {n}") for n, label in enumerate(self.labels)]

    def vote(self, label: int, judge: str) -> Vote:
        # Several pairs may share an instruction, which is what is drawn again for an interval.
        return Vote((self.question.turns[0], 1, self.id, ""), label, judge)

    @property
    def majority(self) -> int | None:
        """The label with more votes than every other."""
        ranked = sorted((self.labels.count(label) for label in LABEL.values()), reverse=True)
        return None if ranked[0] == ranked[1] else max(LABEL.values(), key=self.labels.count)


def read_pairs(rows: Sequence[Row], counts: Counts) -> list[HumanPair]:
    """Pairs from rows; those on which people were split, with no label of each, are counted and
    left out. Raises DataError for a row without its fields.
    """
    pairs = []
    for number, row in enumerate(rows, 1):
        where = f"pairs: row {named(row.get('id', number))}"
        if "output_1" not in row and any(form.kind == "pair" for form in fitting(row)):
            try:
                pairs.append(_preferred(to_pair(row, where), number))
            except RowError as error:
                counts.add(error.reason)
            continue
        answers = [spoken(_answer(row, name, where), counts) for name in ("output_1", "output_2")]
        labels = row.get("human_labels") if row.get("human_labels") is not None else [row.get("human_majority")]
        if labels == [None]:
            counts.add("people were split")
            continue
        if (
            not isinstance(labels, list)
            or not labels
            or any(isinstance(label, bool) or label not in (0, 1, 2) for label in labels)
        ):
            raise DataError(
                f"{where}: people's labels are {shown(labels)}; expected 'human_majority', or 'human_labels', of 1, 2"
                " and 0 (a tie)"
            )
        instruction = judged_text(row, INSTRUCTION, where)
        question = Question(str(row.get("id", number)), "other", (instruction, ""), ("", ""))
        dataset = str(row.get("dataset", "all"))
        pairs.append(
            HumanPair(
                f"{number}",
                dataset,
                question,
                (answers[0], answers[1]),
                tuple(LABEL[label] for label in labels),
                (Turn("user", instruction),),
            )
        )
    if not pairs:
        raise DataError("pairs: no pair with people's verdict; expected rows with 'human_majority' or 'human_labels'")
    return pairs


def _preferred(pair: Pair, number: int) -> HumanPair:
    """A preference pair: people preferred its first answer."""
    asked = question_text([turn.as_dict() for turn in pair.prompt])
    question = Question(pair.id, "other", (asked, ""), ("", ""))
    return HumanPair(f"{number}", pair.subset or "all", question, (pair.chosen, pair.rejected), (0,), pair.prompt)


def _answer(row: Row, name: str, where: str) -> str:
    """An answer, which may be a bare number or truth value, unquoted."""
    return str(row[name]) if isinstance(row.get(name), int | float) else text_in(row, (name,), where)


def judge_numbers(pairs: Sequence[HumanPair], rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """How a judge did: its rows of ``comparisons.jsonl``, one a pair, against people's labels.

    {n, unscored, agreement, one_order, averaged, flips, first, longer, by_dataset}.
    agreement: the rows of ``agreement_table`` but for their turn. one_order: share of the
    single verdicts, each order by itself, that are people's majority. averaged (by
    probability only): the same, where people saw no tie, for the answer that is likelier
    over both orders, which no order can favour; 0.5 is chance.
    """
    votes = [p.vote(_WON[r["winner"]], "judge") for p, r in zip(pairs, rows, strict=True) if r["winner"] is not None]
    table = agreement_table(votes, [v for p in pairs for v in p.votes()], seed)
    known = [{**r, "pair": p, "truth": p.majority} for p, r in zip(pairs, rows, strict=True) if p.majority is not None]
    verdicts = [(r, order, verdict) for r in known for order, verdict in enumerate(r["verdicts"])]
    single = [
        {"group": r["group"], "right": float(_SHOWN[order][verdict] == r["truth"])}
        for r, order, verdict in verdicts
        if verdict is not None
    ]

    def right(row: Row) -> float | None:
        return None if row["winner"] is None else float(_WON[row["winner"]] == row["truth"])

    datasets = dict.fromkeys(p.dataset for p in pairs)
    return {
        "n": len(votes),
        "unscored": len(rows) - len(votes),
        "agreement": [{k: v for k, v in row.items() if k != "turn"} for row in table],
        "one_order": share(single, lambda r: r["right"], step_seed(seed, "one"), "group"),
        "averaged": share(known, _averaged, step_seed(seed, "averaged"), "group"),
        **order_numbers(rows, seed, "group"),
        "longer": share(rows, longer_wins, step_seed(seed, "longer"), "group"),
        "by_dataset": {
            d: share([r for r in known if r["pair"].dataset == d], right, step_seed(seed, "dataset", d), "group")
            for d in datasets
        },
    }


def _averaged(row: Row) -> float | None:
    if row["truth"] == TIE or None in row["logprobs"]:
        return None
    chances = [[math.exp(p - max(logprobs)) for p in logprobs] for logprobs in row["logprobs"]]
    first, second = (sum(c[i] / sum(c) for c, i in zip(chances, order, strict=True)) for order in ((0, 1), (1, 0)))
    return float((first < second) == bool(row["truth"])) if first != second else 0.5
