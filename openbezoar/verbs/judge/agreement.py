"""A judge on pairs of answers with known human verdicts, so that its agreement with people is known before it grades.

Reads rows of pairs (``judging.human_pairs``) and the judge. Writes ``comparisons.jsonl``
(one row a pair: people's labels, the judge's replies in both orders, the winner over both)
and ``scores.json`` (agreement, kappa, flips and more, each with n and interval). Whether the
judge is good enough (``min_agreement``) is asked each time the recipe runs, by ``judging.gates``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from openbezoar.context import StepContext
from openbezoar.judging import both_orders
from openbezoar.judging.grading import judge_sampling
from openbezoar.judging.pairwise import share
from openbezoar.judging.prompting import Text, official_texts, own_texts
from openbezoar.judging.rewards import is_reward_model, open_rewards
from openbezoar.llm import open_llm
from openbezoar.recipe.measure_steps import Agreement
from openbezoar.rows.records import Row, write_jsonl
from openbezoar.stats.pair_accuracy import PairAccuracy, pair_accuracy
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
    rewarded = is_reward_model(context.recipe, step.agreement)
    rows = _rewarded(step, context, pairs) if rewarded else _compare(step, context, texts, pairs)
    write_jsonl(context.out / "comparisons.jsonl", rows)
    for row in rows:
        if row["unscored"] is not None:
            context.counts.add(f"unscored_{row['unscored']}")
    about: dict[str, Any] = {"judge": step.agreement, "mode": "reward" if rewarded else step.mode}
    if rewarded:
        about["rewards"] = _accuracy(pairs, rows, context.seed)
    elif step.retest:
        about["retest"] = _same(rows, _compare(step, context, texts, pairs, again=1), context.seed)
    scores = AgreementScores.model_validate({**about, **judge_numbers(pairs, rows, context.seed)})
    scores.write(context.out)
    return {**scores.written(), "summary": _summary(scores)}


def _rewarded(step: Agreement, context: StepContext, pairs: Sequence[HumanPair]) -> list[Row]:
    """A row a pair by the rewards of its answers, which no order and no second asking changes. The
    log-probabilities of the verdicts are those of the Bradley-Terry model.
    """
    with (
        closing(open_rewards(context, step.agreement)) as rewarder,
        context.progress.bar("rewards", len(pairs), "pairs") as bar,
    ):
        scored = rewarder.scores([(pair.talk, pair.answers) for pair in pairs], bar.advance)
    rows = []
    for pair, (first, second) in zip(pairs, scored, strict=True):
        verdict = "tie" if first == second else "A" if first > second else "B"
        replies = [
            {"judgment": None, "verdict": said, "logprobs": [-_softplus(-gap), -_softplus(gap)], "unscored": None}
            for said, gap in ((verdict, first - second), (both_orders.SWAPPED[verdict], second - first))
        ]
        lengths = (len(pair.answers[0]), len(pair.answers[1]))
        what = _pairing(step, pair, context.seed).what | {"mode": "reward", "rewards": [first, second]}
        rows.append(both_orders.comparison(what, lengths, replies[0], replies[1]))
    return rows


def _softplus(x: float) -> float:
    """log(1 + exp x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _accuracy(pairs: Sequence[HumanPair], rows: Sequence[Row], seed: int) -> PairAccuracy | None:
    """Of the pairs of which most people preferred one answer, that one first; None of no such pair."""
    known = [(pair, row, pair.majority) for pair, row in zip(pairs, rows, strict=True) if pair.majority in (0, 1)]
    if not known:
        return None

    def preferred_first(values: Sequence[Any], majority: int | None) -> list[Any]:
        return list(values) if majority == 0 else list(values[::-1])

    return pair_accuracy(
        [preferred_first(row["rewards"], majority) for _, row, majority in known],
        [preferred_first(row["lengths"], majority) for _, row, majority in known],
        step_seed(seed, "rewards"),
        [pair.dataset for pair, _, _ in known],
        [row["group"] for _, row, _ in known],
    )


def _same(rows: Sequence[Row], again: Sequence[Row], seed: int) -> dict[str, Any]:
    """How often a judge that was asked twice had the same winner, where it had one both times."""
    both = [{**row, "again": other["winner"]} for row, other in zip(rows, again, strict=True)]

    def same(row: Row) -> float | None:
        return None if None in (row["winner"], row["again"]) else float(row["winner"] == row["again"])

    return share(both, same, step_seed(seed, "retest"), "group")


def _compare(
    step: Agreement, context: StepContext, texts: dict[str, Text], pairs: Sequence[HumanPair], again: int = 0
) -> list[Row]:
    """A row a pair. again: which time the judge is asked, from 0 on."""
    with closing(open_llm(step.agreement, context)) as llm:

        def make(_: int, batch: Sequence[HumanPair]) -> list[Row]:
            return both_orders.compared(
                llm,
                texts,
                [_pairing(step, pair, context.seed, again) for pair in batch],
                step.mode,
                judge_sampling(step),
            )

        return context.batched("compare", pairs, step.batch, make, unit="pairs")


def _pairing(step: Agreement, pair: HumanPair, seed: int, again: int = 0) -> both_orders.Pairing:
    what = {
        "id": pair.question.id,
        "dataset": pair.dataset,
        "group": pair.question.turns[0],
        "labels": list(pair.labels),
        "judge": step.agreement,
        "mode": step.mode,
    }
    more = (again,) if again else ()
    seeds = (step_seed(seed, "pair", pair.id, 0, *more), step_seed(seed, "pair", pair.id, 1, *more))
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
