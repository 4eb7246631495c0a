"""A filter judge against labels: precision, recall and AUC by hand, and what is counted as kept."""

from __future__ import annotations

import math
import random

import pytest

from openbezoar.cleaning.likelihood import Scored
from openbezoar.rows.records import Counts, Row
from openbezoar.stats.intervals import auc
from openbezoar.verbs.filter.check import Labelled, check_numbers, label_of, read_labelled

ITEMS = [
    Labelled(str(n), f"Say {n}.", "word " * words, good)
    for n, (words, good) in enumerate([(1, True), (9, True), (8, False), (2, False), (3, True)])
]
VERDICTS: list[Row] = [
    {"status": "accept", "rating": 9.0, "reason": ""},
    {"status": "accept", "rating": 5.0, "reason": ""},
    {"status": "accept", "rating": 4.0, "reason": ""},  # below the least rating
    {"status": "reject", "rating": 7.0, "reason": ""},  # rejected though rated
    {"unscored": "unparsable", "reply": "hm"},
]


def test_a_judge_and_the_filters_beside_it_by_hand() -> None:
    found = check_numbers(ITEMS, VERDICTS, 5.0, 1)
    assert {name: found[name] for name in ("n", "good", "unscored", "instructions")} == {
        "n": 5,
        "good": 3,
        "unscored": 1,
        "instructions": 5,
    }
    judge, everything, longest = (found["filters"][name] for name in ("judge", "keep all", "length only"))
    assert judge["kept"] == 2
    assert judge["precision"]["value"] == 1.0 and judge["precision"]["low"] < 1  # two rows make nobody certain
    assert judge["recall"]["value"] == pytest.approx(2 / 3)  # what could not be read is not kept
    assert judge["auc"]["value"] == pytest.approx(3 / 4)  # 9 beats 4 and 7, 5 beats 4
    assert everything["kept"] == 5
    assert (
        everything["precision"]["value"] == pytest.approx(3 / 5)
        and everything["recall"]["value"] == 1.0
        and everything["auc"]["value"] == 0.5
    )
    assert longest["kept"] == 2  # as many as the judge: 9 and 8 words
    assert longest["precision"]["value"] == 0.5 and longest["recall"]["value"] == pytest.approx(1 / 3)
    assert longest["auc"]["value"] == pytest.approx(3 / 6)
    for shown in (judge, longest):
        assert all(
            shown[name]["low"] <= shown[name]["value"] <= shown[name]["high"] for name in ("precision", "recall", "auc")
        )


def test_the_longest_are_kept_beside_the_judge_not_the_shortest() -> None:
    items = [Labelled("0", "Say.", "word", False), Labelled("1", "Say so.", "word word", True)]
    found = check_numbers(items, [VERDICTS[0], VERDICTS[4]], 5.0, 1)["filters"]["length only"]
    assert (found["kept"], found["precision"]["value"], found["recall"]["value"]) == (1, 1.0, 1.0)


def test_the_rules_of_a_likelihood_by_hand() -> None:
    ratios = [0.5, 0.9, 1.2, 0.7, None]
    scores = [Scored(2.0, None if r is None else 2.0 - math.log(r), 9) for r in ratios]
    found = check_numbers(ITEMS, None, 5.0, 1, scores)
    assert list(found["filters"]) == ["IFD", "perplexity", "keep all", "length only"]
    ifd, perplexity = found["filters"]["IFD"], found["filters"]["perplexity"]
    assert ifd["kept"] == 3 and ifd["precision"]["value"] == pytest.approx(2 / 3)  # below 1: good, good, bad
    assert ifd["auc"]["value"] == pytest.approx(3 / 4)  # 0.5 and 0.9 beat 1.2, 0.9 beats 0.7; without the last row
    assert perplexity["kept"] == 5 and perplexity["auc"]["value"] == 0.5  # all alike
    assert found["filters"]["length only"]["kept"] == 3


def test_a_judge_that_keeps_nothing_has_no_precision_and_one_without_a_rating_no_auc() -> None:
    found = check_numbers(ITEMS, [{"unscored": "unparsable", "reply": ""}] * 5, 5.0, 1)["filters"]["judge"]
    assert (found["kept"], found["precision"], found["auc"]) == (0, None, None)
    assert found["recall"]["value"] == 0.0


def test_auc_is_the_share_of_pairs_in_which_the_good_one_scores_higher() -> None:
    draw = random.Random(3)
    scores, good = [float(draw.randrange(6)) for _ in range(80)], [draw.random() < 0.4 for _ in range(80)]
    pairs = [
        (a > b) + (a == b) / 2
        for a, g in zip(scores, good, strict=True)
        for b, h in zip(scores, good, strict=True)
        if g and not h
    ]
    found = auc(scores, good, list(range(80)), seed=1)
    assert found is not None and found[0] == pytest.approx(sum(pairs) / len(pairs))
    assert found[1] < found[0] < found[2] and 0.15 < found[2] - found[1] < 0.35  # Hanley and McNeil: 0.25
    assert auc(scores, good, list(range(80)), seed=1) == found
    together = auc(scores, good, [n // 8 for n in range(80)], seed=1)
    assert together is not None and together[0] == found[0] and together[1:] != found[1:]
    assert auc([1.0, 2.0], [True, True], [0, 1], seed=1) is None and auc([], [], [], seed=1) is None


def test_rows_of_several_forms_are_read_and_split_votes_are_left_out() -> None:
    rows: list[Row] = [
        {"id": "p", "prompt": "Say.", "completion": "So.", "acceptable": 0.75},
        {"instruction": "Sum up.", "input": "A text.", "output": "Text.", "acceptable": False},
        {"instruction": "Sum up.", "context": "A text.", "response": "Text.", "acceptable": 1},
        {"prompt": "Say.", "completion": "So.", "acceptable": 0.5},
    ]
    counts = Counts()
    assert read_labelled(rows, label_of(rows[0]), counts) == [
        Labelled("p", "Say.", "So.", True),
        Labelled("2", "Sum up.\n\nA text.", "Text.", False),
        Labelled("3", "Sum up.\n\nA text.", "Text.", True),
    ]
    assert counts.by_reason == {"people were split": 1}
    assert label_of({"prompt": "Say.", "completion": "So.", "kept": True}) == "kept"
