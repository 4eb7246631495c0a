"""Judges' replies, as judges write them and as they should not."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbezoar.judging import parse_filter_reply, parse_rating, parse_verdict
from openbezoar.judging.parsers import parse_yes_no
from openbezoar.prompts import load, names

RATINGS = [
    ("[[8]]", 8.0),
    ("Rating: [[8]]", 8.0),
    ("**Rating: [[8]]**", 8.0),
    ("[[ 8 ]]", 8.0),
    ("[[\n8\t]]", 8.0),
    ("[[8/10]]", 8.0),
    ("[[ 8 / 10 ]]", 8.0),
    ("[[8 out of 10]]", 8.0),
    ("[[8 OUT OF 10]]", 8.0),
    ("[[8/10.0]]", 8.0),
    ("[[Rating: 8]]", 8.0),
    ("[[RATING:8]]", 8.0),
    ("[[rating 8]]", 8.0),
    ("[[Final score: 8/10]]", 8.0),
    ("[[My overall rating is 8]]", 8.0),
    ("[[Score = 8]]", 8.0),
    ("[[**8**]]", 8.0),
    ("[[7.5]]", 7.5),
    ("[[10.0]]", 10.0),
    ("[[10]]", 10.0),
    ("[[1]]", 1.0),
    ("[[8.]]", 8.0),
    ("[[08]]", 8.0),
    ("[[+8]]", 8.0),
    ("[[1e1]]", 10.0),
    ("[[８]]", 8.0),
    ("[[٨]]", 8.0),
    ("[[[8]]]", 8.0),
    ("[[[[8]]]]", 8.0),
    ("[[8]]]", 8.0),
    ("[[8]].", 8.0),
    ("I gave [[3]] at first, but on reflection [[8]]", 8.0),
    ("[[8]] is my rating, not [9]", 8.0),
    ("[[8]] and then [[rating]]", 8.0),
    ("[[8]] [[N/A]] [[]]", 8.0),
    ("[[8]] because the matrix is [[1, 2], [3, 4]]", 8.0),
    ("[[8]] [[9", 8.0),
    ("[[8]] a range such as [[1-10]]", 8.0),
    ("The list [[1, 2], [3, 4]] is right. Rating: [[6]]", 6.0),
    # out of range, or on another scale: unscored, whatever stood before
    ("[[0]]", None),
    ("[[47]]", None),
    ("[[8]] [[0]]", None),
    ("[[8]] [[47]]", None),
    ("[[8]] [[-3]]", None),
    ("[[8]] [[−3]]", None),
    ("[[0.5]]", None),
    ("[[.5]]", None),
    ("[[10.01]]", None),
    ("[[11/10]]", None),
    ("[[0/10]]", None),
    ("[[4/5]]", None),
    ("[[8]] [[4/5]]", None),
    ("[[80/100]]", None),
    ("[[1e400]]", None),
    ("[[" + "9" * 400 + "]]", None),
    # nothing that is a rating
    ("", None),
    ("None", None),
    ("null", None),
    ("8", None),
    ("8/10", None),
    ("[8]", None),
    ("Rating: [8]", None),
    ("[ [8] ]", None),
    ("[[8]/10]", None),
    ("[[8][9]]", None),
    ("[[ [8] ]]", None),
    ("[[8", None),
    ("8]]", None),
    ("[[]]", None),
    ("[[rating]]", None),
    ("[[eight]]", None),
    ("[[nan]]", None),
    ("[[inf]]", None),
    ("[[7-8]]", None),
    ("[[7, 8]]", None),
    ("[[7 8]]", None),
    ("[[7,5]]", None),
    ("[[1_0]]", None),
    ("[[0x8]]", None),
    ("[[²]]", None),
    ("[[8%]]", None),
    ("{{8}} ((8)) <<8>> 【【8】】", None),
]


@pytest.mark.parametrize(("reply", "expected"), RATINGS)
def test_a_rating_is_the_last_well_formed_one_in_double_brackets(reply: str, expected: float | None) -> None:
    assert parse_rating(reply) == expected


VERDICTS = [
    ("[[A]]", "A"),
    ("[[B]]", "B"),
    ("[[C]]", "tie"),
    ("[[a]]", "A"),
    ("[[ b ]]", "B"),
    ("[[\tc\n]]", "tie"),
    ("**[[A]]**", "A"),
    ("Not [[A]]; [[B]] is better", "B"),
    ("[[B]], or even [[A]], so [[C]]", "tie"),
    ("[[A]] [[D]]", "A"),
    ("[[A]] [[B", "A"),
    ("[[A]] [B]", "A"),
    ("[[A]] [[A or B]]", "A"),
    ("[[[A]]]", "A"),
    ("[[A]][[B]]", "B"),
    ("[A]", None),
    ("A", None),
    ("[[AB]]", None),
    ("[[A/B]]", None),
    ("[[tie]]", None),
    ("[[A] ]", None),
    ("[[А]]", None),  # Cyrillic
    ("[[1]]", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "expected"), VERDICTS)
def test_a_verdict_is_the_last_of_the_three(reply: str, expected: str | None) -> None:
    assert parse_verdict(reply) == expected


THOUGHTS = [
    ("<think>Perhaps {}, but let me look again", None),  # cut off
    ("<think>Perhaps {}.</think>\nHm.", None),
    ("Perhaps {}.</think>\nHm.", None),  # the template begins the thought
    ("<think>Nonsense</think> {}", True),
    ("<think>No, </think>not {} <think>", True),
]


@pytest.mark.parametrize(("reply", "counts"), THOUGHTS)
def test_what_a_judge_thinks_aloud_is_no_verdict(reply: str, counts: bool | None) -> None:
    assert parse_rating(reply.format("[[8]]")) == (counts and 8)
    assert parse_verdict(reply.format("[[A]]")) == (counts and "A")
    assert parse_yes_no(reply.format("[[yes]]")) is counts


def last_sentence(prompt: str) -> str:
    return prompt.rpartition(". ")[2]


JUDGES = [name for name in names() if name.startswith("judge_") and "[[" in load(name)]
OFFICIAL = [
    'by strictly following this format: "[[rating]]", for example: "Rating: [[5]]".',
    (
        'by strictly following this format: "[[A]]" if assistant A is better, "[[B]]" if assistant B is better, and'
        ' "[[C]]" for a tie.'
    ),
]


@pytest.mark.parametrize("repeated", [*(last_sentence(load(name)) for name in JUDGES), *OFFICIAL])
def test_a_judge_that_repeats_its_instructions_has_said_nothing(repeated: str) -> None:
    for text in (repeated, repeated.replace('"', ""), repeated.replace('"', "**")):
        assert (parse_rating(text), parse_verdict(text), parse_yes_no(text)) == (None, None, None)
        assert parse_rating(f"{text}\n\nRating: [[8]]") == 8
        assert parse_verdict(f"{text}\nVerdict: [[B]]") == "B"
        assert parse_yes_no(f"{text}\nVerdict: [[yes]]") is True


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        # Replies of a judge of 135M parameters.
        ("give your verdict in double square brackets: [[A]] if assistant A did better, [[B]]", None),
        (
            (
                "[[A]] if assistant A did better, [[B]] if assistant B did, [[C]] if neither did, for instance:"
                " Verdict: [[D]]"
            ),
            None,
        ),
        ("[[A]] if assistant A did better. Both are short. Verdict: [[B]]", "B"),
        ("Verdict: [[A]]. If asked again, I would say the same", "A"),
        ("Verdict: [[A]]\nif that helps", "A"),
        ("It gives no reasons, for example. [[A]]", "A"),
    ],
)
def test_a_verdict_is_told_from_a_condition(reply: str, verdict: str | None) -> None:
    assert parse_verdict(reply) == verdict


def test_no_text_at_all_is_no_rating() -> None:
    assert parse_rating(None) is None  # type: ignore[arg-type]
    assert parse_verdict(None) is None  # type: ignore[arg-type]
    assert parse_filter_reply(None) is None  # type: ignore[arg-type]


FILTER_REPLIES = [
    ("Status: accept\nRating: 8\nReason: clear and right", ("accept", 8.0, "clear and right")),
    ("status: REJECTED\nrating: 2/10\nreason: wrong\nin two ways", ("reject", 2.0, "wrong\nin two ways")),
    ("**Status:** accept\n**Rating:** [[9]]\n**Reason:** good", ("accept", 9.0, "good")),
    ("- Status: Accept\n- Rating: 8 out of 10", ("accept", 8.0, "")),
    ("Rating: 3\nStatus: reject", ("reject", 3.0, "")),
    ("Status: accept, Rating: 8, Reason: fine", ("accept", 8.0, "fine")),
    ("Status: accept | Rating: 8 | Reason: fine", ("accept", 8.0, "fine")),
    ("Sure! Here it is.\n\nStatus: accept\nRating: 7 (good)\nReason: short", ("accept", 7.0, "short")),
    ("Status: reject\nRating: 1\n\nStatus: accept\nRating: 9", ("accept", 9.0, "")),
    ("Verdict: keep\nScore: 6", ("accept", 6.0, "")),
    ('{"status": "accept", "rating": 8, "reason": "uses {braces} well"}', ("accept", 8.0, "uses {braces} well")),
    ('```json\n{"Status": "Reject", "Rating": "2/10", "Reason": "no"}\n```', ("reject", 2.0, "no")),
    ('I think {so}. {"status": "accept", "rating": 7.5}', ("accept", 7.5, "")),
    ('{"status": "accept", "rating": 8, "reason": "a "quoted" word"}', ("accept", 8.0, '"a "quoted" word"}')),
    ("{'status': 'accept', 'rating': 8}", ("accept", 8.0, "")),
    ("Status: accept. Rating: 7. Reason: fine.", ("accept", 7.0, "fine.")),
    ("1. Status: accept\n2. Rating: 8\n3. Reason: ok", ("accept", 8.0, "ok")),
    ("Status - reject\nRating - 2", ("reject", 2.0, "")),
    ("Decision: accept\nScore: 8 of 10", ("accept", 8.0, "")),
    ("Status: accept\nRating: 7 (out of 10)", ("accept", 7.0, "")),
    ("| Status | accept |\n| Rating | 8 |\n| Reason | clear |", ("accept", 8.0, "clear |")),
    ("<status>reject</status><rating>3</rating>", ("reject", 3.0, "")),
    ("Status：accept\nRating：8", ("accept", 8.0, "")),
    ("<think>Status: reject\nRating: 2</think>\nStatus: accept\nRating: 9", ("accept", 9.0, "")),
    ("<think>Perhaps status: reject, rating: 2, but let me", None),
    ("Status: reject\nRating: 2 </think>", None),
    ("| Status | Rating |\n| accept | 8 |", None),
    ("Status: accept. Rating: 7 of 20.", None),
    ("", None),
    ("8", None),
    ("Status: accept", None),
    ("Rating: 8", None),
    ("Status: accept or reject\nRating: the number\nReason: one sentence", None),
    ("Status: not acceptable, reject?\nRating: 5", None),
    ("Status: accept\nRating: 0", None),
    ("Status: accept\nRating: 47", None),
    ("Status: accept\nRating: 7-8", None),
    ("Status: accept\nRating: from 1 to 10", None),
    ("Status: accept\nRating: four", None),
    ('{"status": true, "rating": 8}', None),
    ('{"status": "accept", "rating": true}', None),
    ('{"status": "accept", "rating": NaN}', None),
    ('{"status": "accept", "rating": [8]}', None),
]


@pytest.mark.parametrize(("reply", "expected"), FILTER_REPLIES)
def test_a_filter_reply_is_read_as_json_or_lines_or_not_at_all(
    reply: str, expected: tuple[str, float, str] | None
) -> None:
    assert parse_filter_reply(reply) == expected


_PIECES = [*"[]{}/.,:\"'-+eE \n\t0123456789ABCabc", "rating", "status", "accept", "Reason", "８", "−", "[[", "]]"]
BRACKETY = st.lists(st.sampled_from(_PIECES), max_size=200).map("".join)


@given(st.text() | BRACKETY)
def test_parsers_never_raise_and_stay_in_range(text: str) -> None:
    rating = parse_rating(text)
    assert rating is None or 1 <= rating <= 10
    assert parse_verdict(text) in ("A", "B", "tie", None)
    reply = parse_filter_reply(text)
    assert reply is None or (reply[0] in ("accept", "reject") and 1 <= reply[1] <= 10)


def slowly(text: str) -> list[str]:
    """What stands in each ``[[…]]`` without brackets of its own, in order: every place is looked at."""
    found = []
    for start in range(len(text)):
        end = text.find("]]", start + 2)
        inner = text[start + 2 : end]
        if text[start : start + 2] == "[[" and end >= 0 and "[" not in inner and "]" not in inner:
            found.append(inner)
    return found


def slow_verdict(text: str) -> str | None:
    letters = [inner.strip().upper() for inner in slowly(text)]
    known = [letter for letter in letters if letter in ("A", "B", "C")]
    return {"A": "A", "B": "B", "C": "tie"}[known[-1]] if known else None


def slow_rating(text: str) -> float | None:
    """Without labels and words: those stand in the table above."""
    numbers = []
    for inner in slowly(text):
        parts = inner.strip().strip("*").strip().split("/")
        try:
            values = [float(part) for part in parts]
        except ValueError:
            continue
        if len(values) == 1 or (len(values) == 2 and values[1] == 10):
            numbers.append(values[0])
        elif len(values) == 2:
            numbers.append(float("inf"))
    return numbers[-1] if numbers and 1 <= numbers[-1] <= 10 else None


DENSE = st.lists(
    st.sampled_from(["[[", "]]", "[", "]", "A", "b", "C", " ", "\n", "*", "x", "[[A]]", "[[ c ]]"]), max_size=30
).map("".join)
NUMBERS = st.lists(st.sampled_from(["[[", "]]", "[", "]", *"0123456789./-+e* ", "10", "[[8]]"]), max_size=30).map(
    "".join
)


@given(st.text() | BRACKETY | DENSE)
def test_a_verdict_is_the_slow_and_obvious_one(text: str) -> None:
    assert parse_verdict(text) == slow_verdict(text)


@given(NUMBERS)
def test_a_rating_is_the_slow_and_obvious_one(text: str) -> None:
    assert parse_rating(text) == slow_rating(text)


def test_the_tables_hold_sixty_replies_and_more() -> None:
    assert len({reply for reply, _ in RATINGS}) + len({reply for reply, _ in VERDICTS}) >= 60


@given(st.text() | BRACKETY, st.integers(10, 100), st.text(alphabet=st.characters(exclude_characters="[]")))
def test_a_rating_planted_last_wins(before: str, tenths: int, after: str) -> None:
    assert parse_rating(f"{before} [[{tenths / 10}]]{after}") == tenths / 10


@given(st.text() | BRACKETY, st.sampled_from("ABC"), st.text(alphabet=st.characters(exclude_characters="[]")))
def test_a_verdict_planted_last_wins(before: str, letter: str, after: str) -> None:
    assert parse_verdict(f"{before} [[{letter}]]{after}") == {"A": "A", "B": "B", "C": "tie"}[letter]


@given(st.sampled_from(["accept", "reject"]), st.integers(1, 10), st.text())
def test_a_filter_reply_in_json_survives_any_reason(status: str, rating: int, reason: str) -> None:
    assert parse_filter_reply(json.dumps({"status": status, "rating": rating, "reason": reason})) == (
        status,
        float(rating),
        reason.strip(),
    )


HOSTILE = [
    "[",
    "]",
    "[[",
    "[[ ",
    "[[8",
    "[[rating ",
    "[[8/",
    "[[1e",
    " ",
    "\n",
    "{",
    '{"',
    '{"a":',
    '{"a":{',
    "{\\",
    "status",
    "status:",
    "\nstatus ",
    ",",
    ', "',
    "* ",
    "a ",
    "8",
    "<think>",
    "[[A]] if ",
    "for example ",
    "for instance: a ",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_long_hostile_reply_takes_no_long_time(unit: str) -> None:
    def seconds(n: int) -> float:
        text = unit * (n // len(unit))
        begun = time.perf_counter()
        for parse in (parse_rating, parse_verdict, parse_yes_no, parse_filter_reply):
            parse(text)
            parse("[[" + text + "]]")
            parse("[[rating" + text)
        return time.perf_counter() - begun

    # Quadratic code needs minutes for this.
    assert seconds(100_000) < 2.0
