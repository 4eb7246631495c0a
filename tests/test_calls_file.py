"""The call cache's file: whose it is, what is damaged in it, older and newer ones."""

from __future__ import annotations

import json
import math
import random
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.errors import RunError
from openbezoar.llm import Completion
from openbezoar.llm.calls import FILE, CallStore, Spender, Spent
from openbezoar.llm.calls_tables import VERSION, parsed, seal

ME = Spender("run", "step", "m")
OLD = (
    (
        "CREATE TABLE calls (key TEXT PRIMARY KEY, model TEXT NOT NULL, at REAL NOT NULL, answers TEXT NOT NULL)"
        " WITHOUT ROWID"
    ),
    (
        "CREATE TABLE spent (run TEXT, step TEXT, model TEXT, calls INTEGER, prompt_tokens INTEGER, tokens INTEGER,"
        " PRIMARY KEY (run, step, model)) WITHOUT ROWID"
    ),
)


def answer(text: str) -> Completion:
    return Completion(text, "stop", 7, 3)


def filled(folder: Path, n: int = 3) -> dict[str, list[Completion]]:
    store = CallStore(folder)
    kept = {f"k{i}": [answer(f"answer {i}")] for i in range(n)}
    store.keep(kept, ME)
    store.close()
    return kept


def change(folder: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(folder / FILE) as db:
        db.execute(statement, values)
    db.close()


def test_the_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    store = CallStore(tmp_path)
    store.keep({"k": [answer("secret")]}, ME)
    assert {f.name: oct(f.stat().st_mode & 0o777) for f in tmp_path.glob(f"{FILE}*")} == dict.fromkeys(
        (FILE, f"{FILE}-wal", f"{FILE}-shm"), "0o600"
    )


def test_an_older_file_becomes_one_of_this_version_and_loses_what_was_never_a_count(tmp_path: Path) -> None:
    row = asdict(answer("old"))
    for field in ("thoughts", "refused", "left_out", "notes"):  # came later
        del row[field]
    for statement in OLD:
        change(tmp_path, statement)
    (tmp_path / FILE).chmod(0o644)
    for key, content in (
        ("k", json.dumps([row])),
        ("nan", json.dumps([{**row, "tokens": math.nan}])),
        ("list", json.dumps([{**row, "text": [1]}])),
        ("cut", "[{"),
    ):
        change(tmp_path, "INSERT INTO calls VALUES (?, 'm', 1.0, ?)", key, content)
    for step, *numbers in (("a", 4, 40, 12), ("b", 4, None, 12), ("c", 4, math.nan, -12), ("d", 4, 1.5, "x")):
        change(tmp_path, "INSERT INTO spent VALUES ('run', ?, 'm', ?, ?, ?)", step, *numbers)
    said: list[str] = []
    store = CallStore(tmp_path, said.append)
    assert store.find(["k", "nan", "list", "cut"]) == {"k": [answer("old")]}
    assert {step: spent for (_, step, _), spent in store.accounts().items()} == {
        "a": Spent(4, 40, 12),
        "b": Spent(4, 0, 12),
        "c": Spent(4, 0, 0),
        "d": Spent(4, 0, 0),
    }
    assert (
        len(said) == 4
        and "3 answers that cannot be read: forgotten" in said[0]
        and "run/c, m, had no count of its prompt_tokens, tokens: 0 now" in said[2]
    )
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    store.close()
    CallStore(tmp_path, lambda line: pytest.fail(f"said again: {line}")).close()


def test_a_newer_file_is_one_line_and_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path)
    change(tmp_path, f"PRAGMA user_version = {VERSION + 1}")
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["cache", "--runs", str(tmp_path)])
    err = capsys.readouterr().err
    assert (
        ended.value.code == 2
        and f"written by a newer openbezoar (version {VERSION + 1}, this one reads up to {VERSION})" in err
        and err.count("\n") == 1
    )
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("answers", json.dumps([asdict(answer("answer 1"))]).replace("answer 1", "answer 8")),
        ("answers", b"\xff\xfe"),
        ("answers", 5),
        ("answers", "[" * 100_000),
        ("answers", json.dumps([asdict(answer("answer 0"))])),  # another key's
        ("digest", "0" * 32),
        ("digest", b"\xff"),
    ],
)
def test_a_damaged_answer_is_forgotten_and_told(column: str, value: Any, tmp_path: Path) -> None:
    kept = filled(tmp_path)
    change(tmp_path, f"UPDATE calls SET {column} = ? WHERE key = 'k1'", value)
    said: list[str] = []
    store = CallStore(tmp_path, said.append)
    assert store.verify() == (3, 1)
    assert store.find(list(kept)) == {key: rows for key, rows in kept.items() if key != "k1"}
    assert len(said) == 1 and "1 answer not as kept (the digest is another): forgotten, and asked again" in said[0]
    assert store.keep({"k1": [answer("new")]}, ME) == {"k1": [answer("new")]} and store.verify() == (3, 0)


@pytest.mark.parametrize(
    "change_",
    [
        {"text": None},
        {"text": ["a"]},
        {"finish": "whatever"},
        {"tokens": None},
        {"tokens": -1},
        {"tokens": 1.5},
        {"prompt_tokens": True},
        {"logprobs": "abc"},
        {"logprobs": [None]},
        {"notes": [1]},
        {"seconds": "1"},
        {"more": 1},
    ],
)
def test_what_is_no_answer_is_none_even_if_its_digest_agrees(change_: dict[str, Any]) -> None:
    assert parsed(json.dumps([asdict(answer("a"))]).encode()) == [answer("a")]
    assert parsed(json.dumps([{**asdict(answer("a")), **change_}]).encode()) is None
    assert parsed(b"[]") is None and parsed(b"{}") is None and parsed(b"[1]") is None


@pytest.mark.parametrize("tokens", [None, math.nan, -1, 1.5, "many", 2**63])
def test_the_account_refuses_what_is_no_count(tokens: Any, tmp_path: Path) -> None:
    store = CallStore(tmp_path)
    store.keep({"k": [answer("a")]}, ME)
    with pytest.raises((RunError, TypeError, OverflowError)):
        store.keep({"l": [replace(answer("b"), tokens=tokens)]}, ME)
    for table in ("spent", "claims"):
        with pytest.raises((sqlite3.Error, OverflowError)):
            store._db.execute(f"INSERT INTO {table} (run, step, model, tokens) VALUES ('r', 's', 'm', ?)", (tokens,))
    assert store.find(["l"]) == {} and list(store.accounts().values()) == [Spent(1, 7, 3)]


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    store = CallStore(tmp_path)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(RunError, match=r"disk is full; make room and give the same command again") as caught:
        for n in range(100):
            store.keep({f"k{n}": [answer("long " * 1000)]}, ME)
    assert "rollback" not in str(caught.value)
    store._db.execute(f"PRAGMA max_page_count = {pages + 10_000}")
    assert store.keep({"later": [answer("a")]}, ME) == {"later": [answer("a")]}


@pytest.mark.parametrize(
    "tables",
    [("CREATE TABLE calls (a TEXT)",), ("CREATE TABLE spent (a TEXT)",), ("CREATE VIEW calls AS SELECT 1 AS key",)],
)
def test_somebody_else_s_data_base_is_one_line_and_is_left_alone(tables: tuple[str, ...], tmp_path: Path) -> None:
    for statement in tables:
        change(tmp_path, statement)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(RunError, match="the call cache cannot be used"):
        CallStore(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_file_damaged_anywhere_gives_the_kept_answers_or_none_or_one_line(tmp_path: Path) -> None:
    kept = filled(tmp_path, 40)
    whole, rng = (tmp_path / FILE).read_bytes(), random.Random(5)
    seen = set()
    for n in range(60):
        place, length = rng.randrange(len(whole)), rng.choice((1, 1, 16, 4096))
        damaged = whole[:place] + rng.randbytes(length) + whole[place + length :] if n % 6 else whole[:place]
        (tmp_path / FILE).write_bytes(damaged)
        for beside in ("-wal", "-shm"):
            (tmp_path / f"{FILE}{beside}").unlink(missing_ok=True)
        try:
            store = CallStore(tmp_path, lambda line: None)
            found = store.find(list(kept))
            assert all(rows == kept[key] for key, rows in found.items())
            store.accounts(), store.size(), store.verify()
            seen.add("whole" if found == kept else "less")
            store.close()
        except RunError as error:
            assert "\n" not in str(error)
            seen.add("line")
    assert seen == {"whole", "less", "line"} or seen == {"less", "line"}


def test_a_seal_is_of_key_and_answers() -> None:
    assert len({seal("a", b"b"), seal("a", b"c"), seal("b", b"b"), seal("a\n", b"b")}) == 4
