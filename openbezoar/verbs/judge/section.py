"""The report's words on judges: who won in pairs, what order and length did to the verdicts, and
how far a judge agrees with people.

Reads ``scores.json`` of mt_bench and agreement steps; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openbezoar.reporting.document import Block, Fold, Grid, Paragraph, Section
from openbezoar.reporting.facts import RunFacts, StepFacts
from openbezoar.reporting.scores import ALPHA, SCORES, mapping, score_of
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate


def judge_sections(facts: RunFacts) -> list[Section]:
    """One section an agreement step."""
    return [
        Section(f"The judge against people ({step.name})", tuple(agreement_blocks(step)))
        for step in facts.of("agreement")
    ]


def pairwise_blocks(step: StepFacts) -> list[Block]:
    """What a mt_bench step that graded in pairs found; nothing if it did not."""
    numbers = mapping(step.read_json(SCORES).get("pairwise"))
    if not numbers:
        return []
    models = mapping(numbers.get("models"))
    rates = Table(
        (
            "in pairs",
            "win rate (n: comparisons)",
            *(f"turn {g}" if by == "by_turn" else g for by, g in _groups(models)),
        ),
        tuple(
            (name, _share(found.get("win_rate")), *(_share(_group(found, g)) for g in _groups(models)))
            for name, found in models.items()
        ),
        "A tie counts as half a win. A verdict that changed when the answers were swapped is a tie.",
    )
    lost = numbers.get("unscored") or 0
    said = [
        f"{lost} of {lost + (numbers.get('n') or 0)} comparisons have no verdict in one order and are left out.",
        *order_sentences(numbers),
    ]
    own = mapping(numbers.get("self_preference"))
    if own:
        said.append(
            f"The judge is itself a contestant ({own['model']}) and gives itself a win rate of {_share(own)}: set"
            " another judge beside it."
        )
    pairs = numbers.get("pairs") or []
    return [
        Grid(rates, "Win rates", stack=True),
        Paragraph(" ".join(said)),
        Paragraph(_real(pairs)),
        Fold("Every two models", (Grid(_pairs(pairs), "Every two models", stack=True),)),
    ]


def order_sentences(numbers: Mapping[str, Any]) -> list[str]:
    """What the order and the length of answers did to a judge's verdicts."""
    return [
        f"{what} {_share(numbers.get(key))}{fair}."
        for key, what, fair in (
            ("flips", "Verdicts that changed when the answers were swapped:", ""),
            ("first", "Verdicts for the answer shown first:", " (0.5 is fair)"),
            ("longer", "Decided for the longer answer:", ""),
        )
        if _share(numbers.get(key)) != NOTHING
    ]


def _groups(models: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys(
            (by, g) for found in models.values() for by in ("by_turn", "by_category") for g in mapping(found.get(by))
        )
    )


def _group(found: Mapping[str, Any], group: tuple[str, str]) -> Any:
    return mapping(found.get(group[0])).get(group[1])


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            f"{p['a']} against {p['b']}",
            f"{p['wins']} / {p['ties']} / {p['losses']}",
            str(p["inconsistent"]),
            str(p["unscored"]),
            _share(p["win_rate"]),
            NOTHING if p.get("p_holm") is None else f"{p['p_holm']:.2g}",
        )
        for p in pairs
    )
    return Table(("pair", "won / tied / lost", "of them inconsistent", "unscored", "win rate", "p, corrected"), rows)


def _real(pairs: Sequence[Mapping[str, Any]]) -> str:
    real = [p for p in pairs if p.get("p_holm") is not None and p["p_holm"] < ALPHA]
    names = "; ".join(
        f"{p['a']} {'over' if (p['win_rate'].get('value') or 0) > 0.5 else 'under'} {p['b']}" for p in real
    )
    count = (
        f"Of {len(pairs)} pairs, {len(real)} differ by more than noise (p below 0.05, corrected for the number of pairs"
        " by Holm's method)"
    )
    return f"{count}: {names}." if real else f"{count}."


def agreement_blocks(step: StepFacts) -> list[Block]:
    """How far a judge agrees with people on pairs that they have compared."""
    numbers = step.read_json(SCORES)
    rows = tuple(
        (
            str(r.get("setup")),
            str(r.get("pair")),
            str(r.get("n")),
            *(
                NOTHING if r.get(k) is None else estimate(r[k], r[low], r[high])
                for k, low, high in (("agreement", "low", "high"), ("kappa", "kappa_low", "kappa_high"))
            ),
        )
        for r in numbers.get("agreement") or []
        if r.get("n")
    )
    about = (
        f"Judge '{numbers.get('judge')}' ({numbers.get('mode')} mode) on"
        f" {(numbers.get('n') or 0) + (numbers.get('unscored') or 0)} pairs of answers that people have compared, each"
        f" in both orders; {numbers.get('unscored')} without a verdict."
    )
    said = [
        *order_sentences(numbers),
        *(f"{what} {_share(numbers.get(key))}." for key, what in ONCE if _share(numbers.get(key)) != NOTHING),
    ]
    table = Table(
        ("setup", "compared", "n", "agreement", "Cohen's kappa"),
        rows,
        "S1: ties count. S2: without ties. Intervals: bootstrap over instructions.",
    )
    return [Paragraph(about), Grid(table, "Agreement of the judge with people", stack=True), Paragraph(" ".join(said))]


ONCE = (
    ("one_order", "Right in a single order, ties counted:"),
    ("averaged", "Right by the probabilities of both orders together, where people saw no tie (0.5 is chance):"),
)


def _share(value: Any) -> str:
    found = score_of(value)
    return NOTHING if found is None else found.text()
