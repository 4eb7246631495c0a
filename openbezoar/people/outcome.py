"""What comes of votes: win rates with intervals, and preference pairs to train on. Takes votes and
ballots, writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from openbezoar.errors import DataError
from openbezoar.judging.pairwise import pair_numbers
from openbezoar.people.ballots import Ballot
from openbezoar.reporting.order_numbers import OrderNumbers
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate
from openbezoar.rows.forms import to_pair
from openbezoar.rows.records import Counts, Row
from openbezoar.stats.agreement import TIE, vote

_VERDICT = {"model_a": "A", "model_b": "B"}


def votes_on(ballots: Sequence[Ballot], rows: Iterable[Row]) -> list[tuple[Ballot, Row]]:
    """Each vote on these answers with its ballot; votes on other answers, though of the same models, are none."""
    by_id = {ballot.id: ballot for ballot in ballots}
    voted = []
    for row in rows:
        ballot = by_id.get(str(row.get("id", "")).split("-")[0])
        if ballot is not None and row.get("id") == ballot.vote_id(str(row.get("judge"))):
            voted.append((ballot, row))
    return voted


def numbers(models: Sequence[str], voted: Sequence[tuple[Ballot, Row]], seed: int) -> dict[str, Any]:
    """{models, pairs, n, first, longer, …} of votes, as ``pairwise.pair_numbers`` gives them;
    ``first``: the answer shown on the left.
    """
    rows = []
    for ballot, row in voted:
        winner = row["winner"] if row["winner"] in _VERDICT else "tie"
        text = {side.model: side.turns[-1] for side in (ballot.a, ballot.b)}
        rows.append(
            {
                **{name: row[name] for name in ("question_id", "turn", "model_a", "model_b")},
                "category": ballot.category,
                "winner": winner,
                "verdicts": [_VERDICT.get(winner, "tie")],
                "lengths": [len(text[row["model_a"]]), len(text[row["model_b"]])],
                "bad": row["winner"] == "tie (bothbad)",
            }
        )
    totals = pair_numbers(models, rows, seed)
    for pair in totals["pairs"]:
        pair["both_bad"] = sum(r["bad"] for r in rows if {r["model_a"], r["model_b"]} == {pair["a"], pair["b"]})
    return totals


def tables(totals: dict[str, Any]) -> tuple[list[Table], list[str]]:
    """The numbers as tables, and sentences about how the votes were given."""
    pairs = tuple(
        (
            f"{p['a']} against {p['b']}",
            f"{p['wins']} / {p['ties']} / {p['losses']}",
            str(p["both_bad"]),
            _share(p["win_rate"]),
            NOTHING if p["p_holm"] is None else f"{p['p_holm']:.2g}",
        )
        for p in totals["pairs"]
    )
    note = (
        "A tie is half a win. In brackets: 95 % interval over questions. p: of the paired test that neither is better"
        + (", corrected for the number of pairs." if len(pairs) > 1 else ".")
    )
    rendered = [Table(("pair", "won / tied / lost", "of the ties: both bad", "win rate", "p"), pairs, note)]
    if len(totals["models"]) > 2:
        rendered.append(
            Table(
                ("model", "win rate", "votes"),
                tuple((m, _share(f["win_rate"]), str(f["win_rate"]["n"])) for m, f in totals["models"].items()),
            )
        )
    return rendered, OrderNumbers(first=totals["first"], longer=totals["longer"]).sentences()


def _share(share: dict[str, Any]) -> str:
    return NOTHING if share["value"] is None else estimate(share["value"], share["low"], share["high"])


def preference_rows(voted: Sequence[tuple[Ballot, Row]], counts: Counts) -> list[Row]:
    """Rows that ``dpo`` trains on, one a ballot that most of its voters decided the same way.

    First turns have ``prompt``, ``chosen`` and ``rejected``. Second turns are dialogues, and
    only those whose first answers are the same: a pair shares its prompt. What is left out is counted.
    """
    by_ballot: dict[str, tuple[Ballot, Counter[int]]] = {}
    for ballot, row in voted:
        decision = vote(row, f"vote {row['id']}")
        if decision is not None:
            by_ballot.setdefault(ballot.id, (ballot, Counter()))[1][decision.label] += 1
    rows = []
    for id_, (ballot, labels) in by_ballot.items():
        (label, n), *others = labels.most_common(2)
        if label == TIE or (others and others[0][1] == n):
            counts.add("ties" if set(labels) == {TIE} else "voters split")
            continue
        # A vote's first model is the first by name.
        chosen, rejected = sorted((ballot.a, ballot.b), key=lambda side: side.model)[:: -1 if label else 1]
        preference = _preference(ballot, chosen.turns, rejected.turns)
        if preference is None:
            counts.add(
                "second turns after different first answers"
                if not _same_talk(chosen.turns, rejected.turns)
                else "texts that cannot be told apart in a dialogue"
            )
            continue
        rows.append(
            {
                "id": f"vote-{id_}",
                "subset": ballot.category,
                **preference,
                "chosen_model": chosen.model,
                "rejected_model": rejected.model,
            }
        )
    return rows


def _preference(ballot: Ballot, chosen: Sequence[str], rejected: Sequence[str]) -> Row | None:
    if ballot.turn == 1:
        row = {"prompt": ballot.questions[0], "chosen": chosen[0], "rejected": rejected[0]}
    elif _same_talk(chosen, rejected):
        row = {name: _dialogue(ballot.questions, turns) for name, turns in (("chosen", chosen), ("rejected", rejected))}
    else:
        return None
    try:
        pair = to_pair(row, ballot.id)
    except DataError:
        return None
    texts = [turn.content for turn in pair.prompt] + [pair.chosen, pair.rejected]
    expected = [
        ballot.questions[0],
        *([] if ballot.turn == 1 else [chosen[0], ballot.questions[1]]),
        chosen[-1],
        rejected[-1],
    ]
    return row if [text.strip() for text in texts] == [text.strip() for text in expected] else None


def _same_talk(chosen: Sequence[str], rejected: Sequence[str]) -> bool:
    """Whether only the last answers differ; a dialogue has no white space around a turn."""
    return [text.strip() for text in chosen[:-1]] == [text.strip() for text in rejected[:-1]]


def _dialogue(questions: Sequence[str], answers: Sequence[str]) -> str:
    return "".join(f"\n\nHuman: {q.strip()}\n\nAssistant: {a.strip()}" for q, a in zip(questions, answers, strict=True))
