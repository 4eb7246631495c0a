"""A judge on pairs of answers with known human verdicts, so that its agreement with people is known before it grades.

Reads rows of pairs (``judging.human_pairs``) and the judge. Writes ``comparisons.jsonl``
(one row a pair: people's labels, the judge's replies in both orders, the winner over both)
and ``scores.json`` (agreement, kappa, flips and more, each with n and interval). Whether the
judge is good enough (``min_agreement``) is asked each time the recipe runs, by ``judging.gates``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from openbezoar.context import StepContext
from openbezoar.judging import both_orders
from openbezoar.judging.grading import judge_sampling
from openbezoar.judging.prompting import Text, official_texts, own_texts
from openbezoar.llm import open_llm
from openbezoar.recipe.measure_steps import Agreement
from openbezoar.rows.records import Row, write_jsonl
from openbezoar.stats.seeds import step_seed
from openbezoar.verbs.judge.human_pairs import HumanPair, judge_numbers, read_pairs
from openbezoar.verbs.judge.result import AgreementScores

WANTED = {"judge_pair": both_orders.TEXTS["judge_pair"]}


def run(step: Agreement, context: StepContext) -> dict[str, Any]:
    """Ask the judge about every pair in both orders; returns the numbers for the manifest."""
    pairs = read_pairs(context.rows(step.pairs), context.counts)
    if step.judge_prompts is not None:
        texts = official_texts(context.rows(step.judge_prompts), WANTED, both_orders.OFFICIAL)
    else:
        texts = own_texts(WANTED, {name: context.path(text) for name, text in step.prompts.items()}, tuple(WANTED))
    rows = _compare(step, context, texts, pairs)
    write_jsonl(context.out / "comparisons.jsonl", rows)
    for row in rows:
        if row["unscored"] is not None:
            context.counts.add(f"unscored_{row['unscored']}")
    scores = AgreementScores.model_validate(
        {"judge": step.agreement, "mode": step.mode, **judge_numbers(pairs, rows, context.seed)}
    )
    scores.write(context.out)
    return {**scores.written(), "summary": _summary(scores)}


def _compare(step: Agreement, context: StepContext, texts: dict[str, Text], pairs: Sequence[HumanPair]) -> list[Row]:
    with closing(open_llm(step.agreement, context)) as llm:

        def make(_: int, batch: Sequence[HumanPair]) -> list[Row]:
            return both_orders.compared(
                llm, texts, [_pairing(step, pair, context.seed) for pair in batch], step.mode, judge_sampling(step)
            )

        return context.batched("compare", pairs, step.batch, make, unit="pairs")


def _pairing(step: Agreement, pair: HumanPair, seed: int) -> both_orders.Pairing:
    what = {
        "id": pair.question.id,
        "dataset": pair.dataset,
        "group": pair.question.turns[0],
        "labels": list(pair.labels),
        "judge": step.agreement,
        "mode": step.mode,
    }
    seeds = (step_seed(seed, "pair", pair.id, 0), step_seed(seed, "pair", pair.id, 1))
    first, second = pair.answers
    return both_orders.Pairing(what, pair.question, turn=1, answers=((first,), (second,)), seeds=seeds)


def _summary(scores: AgreementScores) -> str:
    share, flips = scores.with_majority(), scores.flips
    lost, n = scores.unscored or 0, scores.n or 0
    if share is None or share.low is None or share.high is None or flips is None or flips.value is None:
        return f"no verdict could be read; {lost} pairs unscored"
    agrees = (
        f"agrees with people on {100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f},"
        f" n={share.n})"
    )
    return (
        f"{agrees}; {100 * flips.value:.0f} % of verdicts change on swapped order; {lost} of {n + lost} pairs unscored"
    )
