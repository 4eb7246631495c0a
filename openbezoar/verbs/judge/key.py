"""The texts that steps with a judge send."""

from __future__ import annotations

from openbezoar.recipe.measure_steps import Agreement, MtBench
from openbezoar.verbs.judge.protocols import names_of_texts


def mt_bench_texts(step: MtBench) -> tuple[str, ...]:
    """All that its judge may be sent."""
    return names_of_texts(step.grading)


def agreement_texts(step: Agreement) -> tuple[str, ...]:
    """What its judge is sent."""
    return ("judge_pair",)
