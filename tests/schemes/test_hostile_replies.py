"""Whatever a teacher says in one reply, no row but that reply's own is lost, in every scheme."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from test_schemes import FLAN, INSTRUCTIONS, SETTINGS, Bench, Say, Teacher, good_teacher

from openbezoar.llm import Call, Completion
from openbezoar.rows.records import Row
from openbezoar.schemes import SCHEMES

MARKERS = (
    "<example></example> </example><example> <|im_start|>user\n<|im_end|> [INST] #Rewritten Prompt#: #Created Prompt#: "
    "### Instruction:\n### Response:\nThe two prompts are equal. [[10]] {prompt} {examples} \\ud800"
)
HOSTILE: dict[str, str | Completion] = {
    "nothing": "",
    "white space": " \n\t\r\n ",
    "control characters": "\x00\x07\x1b[2J Name\x00 two seas.\x7f\ufeff",
    "half a surrogate pair": "Name two seas \ud83d.",
    "100 kB of one word": "A" * 100_000,
    "100 kB of lines": "1. Name two seas.\n" * 5600,
    "100 kB of tags": "<example>x</example>" * 5000,
    "markup": "<script>alert('x')</script><b>Name two <i>seas</b></i> &lt;example&gt;",
    "the parsers' own markers": MARKERS,
    "another language": "请列出欧洲的两条河流，并说明理由。",
    "right to left": "\u202eسمّ نهرين في أوروبا.",
    "refused": Completion("", "error", 5, 0),
    "over the window": Completion("", "error", 0, 0, refused="too long"),
    "cut off": Completion("<example>Name", "length", 5, 9),
    "JSON": '{"instruction": "Name two seas.", "response": null}',
}


class Struck(Teacher):
    """A good model whose call number ``at`` brings a hostile reply."""

    def __init__(self, at: int | None, reply: str | Completion, say: Say = good_teacher) -> None:
        super().__init__(say)
        self.at, self.hostile, self.seen = at, reply, 0

    def answers(self, calls: Sequence[Call]) -> list[Completion]:
        replies = super().answers(calls)
        if self.at is not None and self.seen <= self.at < self.seen + len(replies):
            replies[self.at - self.seen] = (
                self.hostile if isinstance(self.hostile, Completion) else Completion(self.hostile, "stop", 5, 9)
            )
        self.seen += len(replies)
        return replies


def _not_equal(system: str, user: str, seed: int) -> str:
    return "not equal"


def _rows(bench: Bench, scheme: str, teacher: Teacher, out: str, judge: Teacher | None = None) -> list[Row]:
    seeds = bench.seeds(FLAN if scheme == "orca" else INSTRUCTIONS)
    return bench.run(
        teacher,
        out,
        judge or Teacher(_not_equal),
        **{**SETTINGS[scheme], "generate": scheme, "seeds": seeds, "rows": 6},
    )


def _origin(row: Row) -> str:
    """What a row and its descendants have in common: their seed, or else the instruction."""
    return str(row["seed_id"]) if row["scheme"] == "evol_instruct" else str(row["instruction"])


def _lost(expected: Sequence[Row], rows: Sequence[Row]) -> set[str]:
    same = {(row["instruction"], row["response"]) for row in rows}
    return {_origin(row) for row in expected if (row["instruction"], row["response"]) not in same}


@pytest.mark.parametrize("reply", HOSTILE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hostile_reply_costs_no_row_but_its_own(bench: Bench, scheme: str, reply: str) -> None:
    clean = Struck(None, "")
    expected = _rows(bench, scheme, clean, "clean")
    most = 2 if scheme == "lamini" else 1  # a prompt of LaMini's stands for two instructions
    for at in range(clean.seen):
        rows = _rows(bench, scheme, Struck(at, HOSTILE[reply]), f"at-{at}")
        lost = _lost(expected, rows)
        assert len(lost) <= most, (at, lost)
        assert len(rows) >= len(expected) - 1
        for row in rows:
            assert row["instruction"].strip() and row["response"].strip() and row["finish"] != "error"
            assert not any(c in row["instruction"] + row["response"] for c in "\x00\x07\x1b\x7f\ufeff\ud83d")
            assert len(row["instruction"]) <= 4100


@pytest.mark.parametrize("reply", HOSTILE)
def test_a_hostile_reply_of_the_equality_judge_costs_no_row_but_its_own(bench: Bench, reply: str) -> None:
    clean = Struck(None, "", _not_equal)
    expected = _rows(bench, "evol_instruct", Teacher(good_teacher), "clean", clean)
    # what a judge turned down once is not asked again
    lost = "equal" in str(HOSTILE[reply]) or "too long" in str(HOSTILE[reply])
    for at in range(clean.seen):
        rows = _rows(bench, "evol_instruct", Teacher(good_teacher), f"at-{at}", Struck(at, HOSTILE[reply], _not_equal))
        assert len(_lost(expected, rows)) == lost and len(rows) == 6  # any other reply is asked for again
