"""The protocols by which a judge grades answers, as a recipe names them: one row a protocol.

A new protocol is a module in ``verbs/judge/protocols/`` and a row of ``PROTOCOLS``
(docs/how-to/add-a-judge.md). From the rows follow what ``grading`` may be, the words about it, the
texts that a step sends, what ``plan`` counts and what the report tells. Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeProtocol:
    """module: how it asks, reads and scores (``verbs/judge/protocols``). gives: what the judge gives,
    for the recipe's reference. words: how answers are graded, for the report. compares: whether it
    sets answers beside each other, so that it needs two models.
    """

    module: str
    gives: str
    words: str
    compares: bool = False


PROTOCOLS: dict[str, JudgeProtocol] = {
    "single": JudgeProtocol(
        module="openbezoar.verbs.judge.protocols.single",
        gives="a rating for each answer",
        words="from 1 to 10",
    ),
    "pairwise": JudgeProtocol(
        module="openbezoar.verbs.judge.protocols.pairwise",
        gives="a verdict on each two (asked in both orders)",
        words="in pairs",
        compares=True,
    ),
}

GRADINGS: dict[str, tuple[str, ...]] = {**{name: (name,) for name in PROTOCOLS}, "both": ("single", "pairwise")}
"""What ``grading`` may be, with the protocols that it stands for."""


def described() -> str:
    """What ``grading`` means."""
    return "; ".join([*(f"'{name}': {row.gives}" for name, row in PROTOCOLS.items()), "'both': single and pairwise."])


def compares(grading: str) -> bool:
    """Whether answers are set beside each other."""
    return any(PROTOCOLS[name].compares for name in GRADINGS[grading])


def words(grading: str) -> str:
    """How answers are graded; of a run of another version by the protocol's name."""
    return " and ".join(PROTOCOLS[name].words for name in GRADINGS[grading]) if grading in GRADINGS else f"({grading})"
