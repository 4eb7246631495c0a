"""The tables of the call cache's file, and how an older file becomes one of this version. Reads and writes that file.

Version 0 (``PRAGMA user_version``) had neither digests nor claims, and an account that took
anything for a count.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from openbezoar.errors import RunError
from openbezoar.llm import Completion

VERSION = 1
FINISHES = get_args(get_type_hints(Completion)["finish"])

COUNTS = ("calls", "prompt_tokens", "tokens", "unanswered", "unanswered_prompt_tokens", "unanswered_tokens")
_A_COUNT = "INTEGER NOT NULL DEFAULT 0 CHECK (typeof({0}) = 'integer' AND {0} >= 0)"
_TABLES = (
    (
        "CREATE TABLE calls (key TEXT PRIMARY KEY, model TEXT NOT NULL, at REAL NOT NULL, answers TEXT NOT NULL, digest"
        " TEXT NOT NULL) WITHOUT ROWID"
    ),
    (
        "CREATE TABLE spent (run TEXT, step TEXT, model TEXT,"
        f" {', '.join(f'{n} {_A_COUNT.format(n)}' for n in COUNTS)}, PRIMARY KEY (run, step, model)) WITHOUT ROWID"
    ),
    # Who asks a key just now, and the most that it may cost.
    (
        "CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, run TEXT, step TEXT, model TEXT,"
        f" {', '.join(f'{n} {_A_COUNT.format(n)}' for n in COUNTS[:3])}) WITHOUT ROWID"
    ),
    (
        "CREATE TABLE owners (owner TEXT PRIMARY KEY, process TEXT NOT NULL, beat INTEGER NOT NULL DEFAULT 0) WITHOUT"
        " ROWID"
    ),
)


def create(path: Path) -> None:
    """An empty file that its owner alone can read, since it holds every prompt and answer; SQLite
    gives the files beside it the same mode.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def prepare(db: sqlite3.Connection, path: Path, say: Callable[[str], None]) -> None:
    """Make the tables, or those of an older version this one's. Raises RunError for a newer file,
    sqlite3.Error for one that is none.
    """
    if _version(db, path) == VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if _version(db, path) < VERSION:  # nobody else was faster
            older = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} & {
                "calls",
                "spent",
            }
            notices = _migrate(db) if older else []
            for statement in _TABLES[2 if older else 0 :]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
            if older:
                for file in (path, *path.parent.glob(f"{path.name}-*")):
                    file.chmod(0o600)
            for notice in notices:
                say(f"{path}: {notice}")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _version(db: sqlite3.Connection, path: Path) -> int:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise RunError(
            f"{path}: written by a newer openbezoar (version {version}, this one reads up to {VERSION}); update"
            " openbezoar, or name another --runs"
        )
    return version


def _migrate(db: sqlite3.Connection) -> list[str]:
    """Digests for the answers that can be read, and an account of counts; what had to be left out, in words."""
    db.create_function("seal", 2, seal, deterministic=True)
    db.create_function("readable", 1, lambda answers: parsed(answers) is not None, deterministic=True)
    unread = db.execute("DELETE FROM calls WHERE NOT readable(CAST(answers AS BLOB))").rowcount
    db.execute("ALTER TABLE calls ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
    db.execute("UPDATE calls SET digest = seal(key, CAST(answers AS BLOB))")
    notices = [f"{unread} answer{'s' * (unread > 1)} that cannot be read: forgotten"] if unread else []
    accounts = db.execute("SELECT run, step, model, calls, prompt_tokens, tokens FROM spent").fetchall()
    db.execute("DROP TABLE spent")
    db.execute(_TABLES[1])
    for run, step, model, *numbers in accounts:
        sound = [n if type(n) is int and n >= 0 else 0 for n in numbers]
        db.execute(
            "INSERT INTO spent (run, step, model, calls, prompt_tokens, tokens) VALUES (?, ?, ?, ?, ?, ?)",
            (run, step, model, *sound),
        )
        if sound != numbers:
            lost = ", ".join(name for name, n, now in zip(COUNTS, numbers, sound, strict=False) if n != now)
            notices.append(
                f"the account of {run}/{step}, {model}, had no count of its {lost}: 0 now, so a budget may be overdrawn"
                " by what was spent before"
            )
    return notices


def seal(key: str, answers: bytes) -> str:
    """A digest of what is kept under a key, and of the key."""
    return hashlib.sha256(key.encode() + b"\n" + answers).hexdigest()[:32]


def parsed(answers: bytes) -> list[Completion] | None:
    """Answers as they were kept, None for what is none; fields that came later have their defaults in older ones."""
    try:
        rows: list[dict[str, Any]] = [
            {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()} for row in json.loads(answers)
        ]
        completions = [Completion(**row) for row in rows]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return completions if completions and all(map(_sound, completions)) else None


def _sound(answer: Completion) -> bool:
    """Whether an answer's fields are of the types that they should be."""
    counts = all(type(n) is int and n >= 0 for n in (answer.prompt_tokens, answer.tokens))
    numbers = answer.logprobs is None or (
        isinstance(answer.logprobs, tuple) and all(type(x) in (int, float) for x in answer.logprobs)
    )
    texts = isinstance(answer.text, str) and isinstance(answer.thoughts, str) and isinstance(answer.refused, str)
    words = all(isinstance(w, tuple) and all(isinstance(x, str) for x in w) for w in (answer.left_out, answer.notes))
    return counts and numbers and texts and words and answer.finish in FINISHES and type(answer.seconds) in (int, float)
