"""The texts that steps with a judge send."""

from __future__ import annotations

from openbezoar.judging.prompting import PAIR, SINGLE
from openbezoar.recipe.measure_steps import Agreement, MtBench


def mt_bench_texts(step: MtBench) -> tuple[str, ...]:
    """All that its judge may be sent."""
    return (*SINGLE, *PAIR)


def agreement_texts(step: Agreement) -> tuple[str, ...]:
    """What its judge is sent."""
    return ("judge_pair",)
