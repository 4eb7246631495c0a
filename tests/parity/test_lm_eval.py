"""Benchmark questions against lm-eval's own model in fp32: official prompts, official draws of
examples, each question's likeliest choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from real import ITEMS, model, questions

from benchmarks import common, score

pytestmark = pytest.mark.parity
TASKS = ["piqa 0", "openbookqa 0", "boolq 0", "hellaswag 0", "winogrande 5", "mmlu 5"]
BATCH = 8  # HFLM's
TIE = 1e-5  # nats; what fp32 leaves of a sum's order


def is_tie(difference: dict[str, Any]) -> bool:
    """Whether a difference is only the order of two choices that are as likely on both sides."""
    if "ours" not in difference:
        return False
    ours, peer = difference["ours"], difference["peer"]
    near = all(abs(a - b) <= common.TOLERANCE for a, b in zip(ours, peer, strict=True))
    return near and all(_lead(values) <= TIE for values in (ours, peer))


def _lead(values: Sequence[float]) -> float:
    best, second = sorted(values, reverse=True)[:2]
    return best - second


@pytest.mark.parametrize("task", TASKS)
def test_every_question_s_likeliest_choice_is_lm_eval_s(task: str) -> None:
    job = score.Job("time", "ours", model(), questions(), ITEMS, "float32", [task], {task: BATCH})
    found = score.agreement(score.ours(job), score.hflm(job))
    print(
        f"\n{task}: {found['questions']} questions, log-probabilities differ by {found['largest_difference']:.1e} at"
        " most"
    )
    for difference in found["differences"]:
        print(f"  {'tie' if is_tie(difference) else 'DIFFERENCE'}: {difference}")
    assert found["questions"] >= ITEMS
    assert [difference for difference in found["differences"] if not is_tie(difference)] == []


def test_a_tie_is_one_on_both_sides_only() -> None:
    assert is_tie({"ours": [-1.0, -1.000001, -3.0], "peer": [-1.000001, -1.0, -3.0]})
    assert not is_tie({"ours": [-1.0, -1.000001], "peer": [-1.0001, -1.0]})
    assert not is_tie({"ours": [-1.0, -1.000001], "peer": [-1.1, -1.1]})
    assert not is_tie({"task": "x", "question": "the two sides answered other questions"})
