"""What is wrong with answers, without a judge: loops, emptiness, answers that do not stop,
refusals. Takes rows, writes nothing.

A row has ``answer``, ``finish`` and ``tokens``, as a model gave them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openbezoar.cleaning.rules import ends_in_circles, repeated_share
from openbezoar.cleaning.units import words
from openbezoar.rows.records import Row
from openbezoar.stats.comparisons import correct, every_pair
from openbezoar.stats.intervals import mean_interval, share_of
from openbezoar.stats.seeds import step_seed

DEGENERATE = 0.5  # share of repeated 4-grams above which an answer counts as a loop

_REFUSAL = re.compile(
    r"\b(?:i'?m|i am|we'?re|we are) (?:very |so |really |truly )?(?:sorry|afraid)\b(?=.*\b(?:can(?:no|')t|can"
    r" not|unable|won't|not able|don't|do not)\b)"
    r"|\bi (?:can(?:no|')t|can not|won't|will not|am (?:unable|not able)|'?m (?:unable|not able)|must"
    r" decline|refuse)\b[^.!?]{0,40}"
    r"\b(?:help|assist|answer|provide|do (?:that|this)|give|fulfil|comply|support|discuss|engage|continue|to)\b"
    r"|\bas an? (?:ai|artificial intelligence|language model)\b[^.!?]{0,60}\b(?:can(?:no|')t|can not|unable|not able|do"
    r" not|don't)\b",
    re.IGNORECASE | re.DOTALL,
)
_BEGINNING = 300  # a refusal comes at once; later the same words are part of an answer


def loops(text: str) -> bool:
    """Whether an answer goes in circles: over half of its 4-grams occurred in it before, or its end
    repeats one stretch again and again.
    """
    return repeated_share(text) > DEGENERATE or ends_in_circles(text)


def refuses(text: str) -> bool:
    """Whether an answer begins by declining to answer."""
    return _REFUSAL.search(text[:_BEGINNING].replace("\u2019", "'")) is not None


MEASURES: dict[str, Callable[[Row], bool]] = {
    "degenerate": lambda row: loops(row["answer"]),
    "cut off": lambda row: bool(row["finish"] == "length"),
    "empty": lambda row: not row["answer"].strip(),
    "refusals": lambda row: refuses(row["answer"]),
}
"""Each is a share of answers, and lower is not always better: some prompts ought to be refused."""


def failure_numbers(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """{n, errors, each of MEASURES, words} of answers: shares with Wilson's interval, mean length
    in words with its own.
    """
    came = [row for row in rows if row["finish"] != "error"]
    lengths = [float(words(row["answer"])) for row in came]
    mean = (
        dict(zip(("value", "low", "high"), mean_interval(lengths, step_seed(seed, "words")), strict=True))
        if came
        else None
    )
    shares = {name: share_of([measure(row) for row in came])._asdict() for name, measure in MEASURES.items()}
    return {
        "n": len(came),
        "errors": len(rows) - len(came),
        **shares,
        "words": {**mean, "n": len(came)} if mean else None,
    }


def failure_differences(by_checkpoint: Mapping[str, Mapping[str, Mapping[Any, float]]], seed: int) -> list[Row]:
    """Every two checkpoints compared in every measure, given as {checkpoint: {measure: {item: 0 or
    1}}}; as ``comparisons.every_pair``, corrected.
    """
    measures = dict.fromkeys(m for found in by_checkpoint.values() for m in found)
    rows = [
        row
        for m in measures
        for row in every_pair({c: found.get(m, {}) for c, found in by_checkpoint.items()}, seed, {"what": m})
    ]
    correct(rows)
    return rows
