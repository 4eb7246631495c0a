"""The report's words on judges: who won in pairs, what order and length did to the verdicts, and
how far a judge agrees with people.

Reads ``scores.json`` of mt_bench and agreement steps; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from openbezoar.reporting.document import Block, Fold, Grid, Paragraph, Section
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.measured import ALPHA
from openbezoar.reporting.results import Estimated
from openbezoar.reporting.reward_tables import accuracy_blocks
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate
from openbezoar.verbs.judge.result import AgreementScores, OwnWins, Pairwise, TwoModels, WinRates


def sections(facts: RunFacts) -> list[Section]:
    """One section an agreement step."""
    return [
        Section(f"The judge against people ({result.step.name})", tuple(agreement_blocks(result)))
        for result in facts.results(AgreementScores)
    ]


def pairwise_blocks(numbers: Pairwise | None) -> list[Block]:
    """What grading in pairs found; nothing where answers were not graded so."""
    if numbers is None:
        return []
    groups = _groups(numbers.models)
    rates = Table(
        ("in pairs", "win rate (n: comparisons)", *(f"turn {g}" if by == "by_turn" else g for by, g in groups)),
        tuple(
            (name, _text(found.win_rate), *(_text(getattr(found, by).get(group)) for by, group in groups))
            for name, found in numbers.models.items()
        ),
        "A tie counts as half a win. A verdict that changed when the answers were swapped is a tie.",
    )
    lost = numbers.unscored or 0
    sentences = [
        f"{lost} of {lost + (numbers.n or 0)} comparisons have no verdict in one order and are left out.",
        *numbers.order.sentences(),
    ]
    if (own := numbers.self_preference) is not None:
        sentences.append(
            f"The judge is itself a contestant ({own.model}) and gives itself a win rate of {_text(own)}: set another"
            " judge beside it."
        )
    return [
        Grid(rates, "Win rates", stack=True),
        Paragraph(" ".join(sentences)),
        Paragraph(_real(numbers.pairs)),
        Fold("Every two models", (Grid(_pairs(numbers.pairs), "Every two models", stack=True),)),
    ]


def _groups(models: Mapping[str, WinRates]) -> list[tuple[str, str]]:
    """Turns and categories that any model has a win rate in, as (field, group)."""
    groups: dict[tuple[str, str], None] = {}
    for found in models.values():
        groups |= dict.fromkeys(("by_turn", group) for group in found.by_turn)
        groups |= dict.fromkeys(("by_category", group) for group in found.by_category)
    return list(groups)


def _pairs(pairs: Sequence[TwoModels]) -> Table:
    rows = tuple(
        (
            f"{p.a} against {p.b}",
            f"{p.wins} / {p.ties} / {p.losses}",
            str(p.inconsistent),
            str(p.unscored),
            _text(p.win_rate),
            NOTHING if p.p_holm is None else f"{p.p_holm:.2g}",
        )
        for p in pairs
    )
    return Table(("pair", "won / tied / lost", "of them inconsistent", "unscored", "win rate", "p, corrected"), rows)


def _real(pairs: Sequence[TwoModels]) -> str:
    real = [p for p in pairs if p.p_holm is not None and p.p_holm < ALPHA]
    names = "; ".join(f"{p.a} {'over' if (p.win_rate.value or 0) > 0.5 else 'under'} {p.b}" for p in real)
    count = (
        f"Of {len(pairs)} pairs, {len(real)} differ by more than noise (p below 0.05, corrected for the number of pairs"
        " by Holm's method)"
    )
    return f"{count}: {names}." if real else f"{count}."


def agreement_blocks(result: AgreementScores) -> list[Block]:
    """How far a judge agrees with people on pairs that they have compared."""
    rows = []
    for row in result.agreement:
        if row.n:
            intervals = (row.kappa, row.kappa_low, row.kappa_high), (row.agreement, row.low, row.high)
            cells = (NOTHING if value is None else estimate(value, low, high) for value, low, high in intervals)
            rows.append((str(row.setup), str(row.pair), str(row.n), *cells))
    about = (
        f"Judge '{result.judge}' ({result.mode} mode) on {(result.n or 0) + (result.unscored or 0)} pairs of answers"
        f" that people have compared, each in both orders; {result.unscored} without a verdict."
    )
    once = (
        ("Right in a single order, ties counted:", result.one_order),
        (
            "Right by the probabilities of both orders together, where people saw no tie (0.5 is chance):",
            result.averaged,
        ),
    )
    sentences = [
        *result.order.sentences(),
        *([] if result.retest is None else [f"Asked twice, the same verdict: {_text(result.retest)}."]),
        *(f"{what} {_text(rate)}." for what, rate in once if _text(rate) != NOTHING),
    ]
    table = Table(
        ("setup", "compared", "n", "Cohen's kappa", "agreement"),
        tuple(rows),
        "S1: ties count. S2: without ties. Intervals: bootstrap over instructions.",
    )
    return [
        Paragraph(about),
        Grid(table, "Agreement of the judge with people", stack=True),
        Paragraph(" ".join(sentences)),
        *([] if result.rewards is None else accuracy_blocks(result.rewards)),
    ]


def _text(share: Estimated | OwnWins | None) -> str:
    score = None if share is None else share.score()
    return NOTHING if score is None else score.text()
