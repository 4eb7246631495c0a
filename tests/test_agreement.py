"""Agreement between judges and people, against tables worked out by hand and the published votes."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.errors import DataError
from openbezoar.judging.votes import read_votes
from openbezoar.stats.agreement import TIE, agreement_table, vote, without_majority

Rows = list[dict[str, Any]]


def row(question: int, a: str, b: str, winner: str | None, judge: str = "expert_1", turn: int = 1) -> dict[str, Any]:
    return {"question_id": question, "turn": turn, "model_a": a, "model_b": b, "winner": winner, "judge": judge}


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


JUDGE = [
    row(1, "x", "y", "model_a", "j"),  # x
    row(1, "x", "z", "tie (inconsistent)", "j"),
    row(2, "y", "x", "model_a", "j"),  # y
    row(3, "x", "y", "model_b", "j", turn=2),  # y
    row(9, "x", "y", "model_b", "j"),  # nobody voted on it
]
PEOPLE = [
    row(1, "y", "x", "model_b", "expert_1"),  # x: agrees, though shown the other way round
    row(1, "x", "y", "model_a", "expert_2"),  # x: agrees
    row(1, "x", "y", "model_b", "author_0"),  # does not count
    row(1, "x", "z", "tie", "expert_1"),  # agrees in S1, dropped in S2
    row(1, "x", "z", "model_a", "expert_2"),  # disagrees in S1, dropped in S2
    row(2, "x", "y", "model_a", "expert_1"),  # x: disagrees
    row(2, "x", "y", "tie", "expert_2"),  # disagrees in S1, dropped in S2
    row(3, "x", "y", "model_b", "expert_3", turn=2),  # y: agrees
]


@pytest.fixture
def table(tmp_path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    judge, _ = read_votes(write(tmp_path / "judge.jsonl", JUDGE))
    people, _ = read_votes(write(tmp_path / "people.jsonl", PEOPLE), "expert_*")
    return {(r["setup"], r["turn"], r["pair"]): r for r in agreement_table(judge, people)}


@pytest.mark.parametrize(
    ("setup", "turn", "pair", "n", "agreement"),
    [
        ("S1", 1, "judge-human", 6, 0.5),
        ("S2", 1, "judge-human", 3, 0.667),
        ("S1", 1, "human-human", 3, 0.333),  # 1xy agree; 1xz and 2xy do not
        ("S2", 1, "human-human", 1, 1.0),
        ("S1", 1, "judge-majority", 1, 1.0),  # 1xz and 2xy have no majority
        ("S1", 2, "judge-human", 1, 1.0),
        ("S2", 2, "human-human", 0, None),
    ],
)
def test_every_pair_of_votes_counts_once(
    table: Any, setup: str, turn: int, pair: str, n: int, agreement: float | None
) -> None:
    found = table[setup, turn, pair]
    assert (found["n"], found["agreement"]) == (n, agreement)
    assert (found["low"] is None) == (n == 0)


def test_kappa_by_hand(table: Any) -> None:
    # Judge's labels: x x tie tie y y; people's: x x tie x x tie. Chance: (2·4 + 2·0 + 2·2) / 36 =
    # 1/3; (1/2 - 1/3) / (2/3) = 1/4.
    assert table["S1", 1, "judge-human"]["kappa"] == 0.25
    # One label only on both sides: chance alone agrees always, kappa says nothing.
    assert table["S1", 2, "judge-human"]["kappa"] is None


def test_human_human_does_not_depend_on_the_order_of_votes(tmp_path: Path) -> None:
    def human(rows: Rows) -> list[dict[str, Any]]:
        people, _ = read_votes(write(tmp_path / "p.jsonl", rows))
        return [r for r in agreement_table(people, people) if r["pair"] == "human-human"]

    assert human(PEOPLE) == human(PEOPLE[::-1])


def test_keys_without_a_majority_are_counted(tmp_path: Path) -> None:
    people, _ = read_votes(write(tmp_path / "p.jsonl", PEOPLE), "expert_*")
    assert without_majority(people) == 2


@pytest.mark.parametrize(
    ("a", "b", "winner", "label"),
    [
        ("x", "y", "model_a", 0),
        ("y", "x", "model_a", 1),
        ("y", "x", "model_b", 0),
        ("x", "y", "tie", TIE),
        ("x", "y", "inconsistent", TIE),
    ],
)
def test_a_pair_of_models_has_no_order(a: str, b: str, winner: str, label: int) -> None:
    found = vote(row(1, a, b, winner), "here")
    assert found is not None
    assert (found.key, found.label) == (("1", 1, "x", "y"), label)


def test_rows_without_a_verdict_are_left_out_and_counted(tmp_path: Path) -> None:
    votes, lost = read_votes(
        write(tmp_path / "v.jsonl", [*JUDGE, row(4, "x", "y", None, "j"), row(5, "x", "y", "error", "j")])
    )
    assert (len(votes), lost) == (5, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1}], "row 1: no field 'turn'"),
        ([row(1, "x", "y", "x")], "winner is 'x'; expected model_a"),
        ([row(1, "x", "x", "tie")], "two different models"),
        ([row(1, "x", "y", "tie", turn=3)], "it has turn 3"),
        ([row(1, "x", "y", None)], "no vote of a judge named"),
        ([{**row(1, "x", "y", "tie"), "model_a": {"name": "x"}}], "model_a and model_b are names"),
        ([{**row(1, "x", "y", "tie"), "judge": {"name": "j"}}], "expected a name"),
    ],
)
def test_a_bad_vote_is_named(tmp_path: Path, rows: Rows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_votes(write(tmp_path / "v.jsonl", rows))


def test_a_judge_named_with_its_prompt_is_known_by_its_name(tmp_path: Path) -> None:
    """As FastChat writes it."""
    (found,), _ = read_votes(
        write(tmp_path / "v.jsonl", [{**row(1, "x", "y", "model_a"), "judge": ["gpt-4", "pair-v2"]}]), "gpt-4"
    )
    assert found.judge == "gpt-4"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["agreement", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def test_the_command_prints_n_and_intervals_and_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = write(tmp_path / "judge.jsonl", [*JUDGE, row(4, "x", "y", None, "k"), row(2, "y", "x", "model_a", "k")])
    people = write(tmp_path / "people.jsonl", PEOPLE)
    code, out, err = run(capsys, "--judge", str(judge), "--human", str(people))
    assert code == 0
    assert "judge-human          8  37.5 % [" in out
    assert "leaves out 2 keys" in out
    assert "2 judges are counted together: j, k" in err
    assert "1 rows without a verdict" in err
    code, out, _ = run(capsys, "--judge", str(judge), "--human", str(people), "--persons", "author_*", "--json")
    assert (code, json.loads(out)[0]["n"]) == (0, 1)


def test_a_missing_file_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--judge", str(tmp_path / "no.jsonl"), "--human", str(tmp_path / "no.jsonl"))
    assert code == 2
    assert err.count("\n") == 1


def slow_table(judge: Rows, people: Rows, setup: str, turn: int, pair: str) -> tuple[int, int]:
    """(pairs of votes, those that agree), written down as the rule says it."""

    def winner(r: dict[str, Any]) -> str:
        return "tie" if "tie" in r["winner"] else r[r["winner"]]

    def same_matter(a: dict[str, Any], b: dict[str, Any]) -> bool:
        return (a["question_id"], {a["model_a"], a["model_b"]}) == (
            b["question_id"],
            {b["model_a"], b["model_b"]},
        ) and a["turn"] == b["turn"] == turn

    people = [r for r in people if r["judge"].startswith("expert_")]
    both = (
        [(a, b) for a in judge for b in people]
        if pair == "judge-human"
        else [(a, b) for i, a in enumerate(people) for b in people[:i]]
    )
    labels = [(winner(a), winner(b)) for a, b in both if same_matter(a, b)]
    kept = [(a, b) for a, b in labels if setup == "S1" or "tie" not in (a, b)]
    return len(kept), sum(a == b for a, b in kept)


@pytest.mark.parametrize("seed", range(5))
def test_other_vote_files_give_what_the_rule_says(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)

    def votes(judges: list[str], n: int, labels: list[str]) -> Rows:
        keys = [
            (q, a, b, t) for q in range(12) for a, b in (("x", "y"), ("y", "x"), ("z", "x"), ("y", "z")) for t in (1, 2)
        ]
        return [row(q, a, b, draw.choice(labels), draw.choice(judges), t) for q, a, b, t in draw.sample(keys, n)]

    judge = votes(["j"], 40, ["model_a", "model_b", "tie", "tie (inconsistent)"])
    people = [
        r for _ in range(3) for r in votes(["expert_1", "expert_22", "author_0"], 60, ["model_a", "model_b", "tie"])
    ]
    verdicts, _ = read_votes(write(tmp_path / "judge.jsonl", judge))
    persons, _ = read_votes(write(tmp_path / "people.jsonl", people), "expert_*")
    for found in agreement_table(verdicts, persons):
        if found["pair"] != "judge-majority":
            n, agreed = slow_table(judge, people, found["setup"], found["turn"], found["pair"])
            assert n > 5
            assert (found["n"], found["agreement"]) == (n, round(agreed / n, 3))


DATA = os.environ.get("OPENBEZOAR_DATA")


@pytest.mark.skipif(
    DATA is None,
    reason="OPENBEZOAR_DATA names no folder with mt_bench/human_votes.jsonl.gz and gpt4_pair_votes.jsonl.gz",
)
def test_gpt_4_and_people_agree_as_published(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(str(DATA)) / "mt_bench"
    code, out, _ = run(
        capsys,
        "--judge",
        str(folder / "gpt4_pair_votes.jsonl.gz"),
        "--human",
        str(folder / "human_votes.jsonl.gz"),
        "--json",
    )
    assert code == 0
    found = {(r["setup"], r["turn"], r["pair"]): r for r in json.loads(out)}
    expected = {
        ("S1", 1, "judge-human"): (1053, 0.648),
        ("S2", 1, "judge-human"): (653, 0.845),
        ("S1", 2, "judge-human"): (1040, 0.658),
        ("S2", 2, "judge-human"): (666, 0.844),
        ("S1", 1, "human-human"): (562, 0.628),
        ("S2", 1, "human-human"): (371, 0.803),
        ("S1", 2, "human-human"): (557, 0.65),
        ("S2", 2, "human-human"): (361, 0.801),
    }
    assert {key: (found[key]["n"], found[key]["agreement"]) for key in expected} == expected
    for r in found.values():
        assert r["low"] < r["agreement"] < r["high"]
        assert 0 < r["kappa"] < r["agreement"]
