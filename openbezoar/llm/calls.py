"""The call cache: every answered call on disk, and what each run has spent.

Reads and writes ``RUNS/.calls.sqlite`` (SQLite, write-ahead log), one file for all recipes
that keep their runs in that folder; several threads and processes may use it at once. An
answer is committed and synced before ``keep`` returns, so what was used was on disk.

Keys are digests (``remembered.py`` says of what); values are JSON lists of answers.
``spent`` adds up tokens by run, step and model for budgets; pruning leaves it alone.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openbezoar.errors import RunError
from openbezoar.llm import Completion

FILE = ".calls.sqlite"
BUSY = 60.0  # seconds to wait for another process's write
AT_ONCE = 500  # keys a query; SQLite's older limit is 999

_TABLES = """
CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, model TEXT NOT NULL, at REAL NOT NULL, answers TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (run TEXT, step TEXT, model TEXT, calls INTEGER, prompt_tokens INTEGER, tokens INTEGER,
    PRIMARY KEY (run, step, model)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Spent:
    """What was asked of one model: calls that were answered, tokens read and written."""

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Spender:
    """On whose account a call goes: a run, one of its steps, a model by its name in the recipe."""

    run: str
    step: str
    model: str


class CallStore:
    """The cache file of a folder of runs."""

    def __init__(self, runs: Path) -> None:
        self.path = runs / FILE
        self._lock = threading.Lock()
        runs.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=BUSY, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: the call cache cannot be used ({error}); expected a writable SQLite file: mend the cause or move it away") from None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    # ------------------------------------------------------------------------ answers

    def find(self, keys: Sequence[str]) -> dict[str, list[Completion]]:
        """What is known of these keys."""
        with self._lock, self._errors():
            return self._find(keys)

    def _find(self, keys: Sequence[str]) -> dict[str, list[Completion]]:
        found: dict[str, list[Completion]] = {}
        for first in range(0, len(keys), AT_ONCE):
            part = keys[first : first + AT_ONCE]
            query = f"SELECT key, answers FROM calls WHERE key IN ({','.join('?' * len(part))})"
            found |= {key: _answers(text) for key, text in self._db.execute(query, part)}
        return found

    def keep(self, answers: Mapping[str, Sequence[Completion]], spender: Spender) -> dict[str, list[Completion]]:
        """Put answers by key on disk, all or none, and on the spender's account; gives what is on disk now.

        If another process was first, that is its answer: then all that use the file agree.
        """
        rows = [row for part in answers.values() for row in part]
        account = (spender.run, spender.step, spender.model)
        cost = (len(rows), sum(row.prompt_tokens for row in rows), sum(row.tokens for row in rows))
        now = time.time()
        # ASCII, so that half a surrogate pair stays what it is.
        values = [(key, spender.model, now, json.dumps([asdict(row) for row in part])) for key, part in answers.items()]
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?)", values)
                self._db.execute(
                    "INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls,"
                    " prompt_tokens = prompt_tokens + excluded.prompt_tokens, tokens = tokens + excluded.tokens",
                    (*account, *cost),
                )
                kept = self._find(list(answers))
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        return kept

    # ------------------------------------------------------------------------ accounts

    def accounts(self) -> dict[tuple[str, str, str], Spent]:
        """By run, step and model, what was asked because the cache did not know it."""
        with self._lock, self._errors():
            rows = self._db.execute("SELECT run, step, model, calls, prompt_tokens, tokens FROM spent ORDER BY run, step, model").fetchall()
        return {(run, step, model): Spent(*numbers) for run, step, model, *numbers in rows}

    # ------------------------------------------------------------------------ upkeep

    def size(self) -> list[tuple[str, int, int]]:
        """(model, calls, bytes of answers), by the models' names."""
        query = "SELECT model, count(*), sum(length(answers)) FROM calls GROUP BY model ORDER BY model"
        with self._lock, self._errors():
            return [(model, n, size) for model, n, size in self._db.execute(query)]

    def prune(self, days: float = 0.0, model: str | None = None) -> int:
        """Forget answers older than ``days`` days, of one model or of all; how many. The file shrinks."""
        with self._lock, self._errors():
            gone = self._db.execute("DELETE FROM calls WHERE at <= ? AND (? IS NULL OR model = ?)", (time.time() - days * 86400, model, model)).rowcount
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone


def _answers(text: str) -> list[Completion]:
    """Answers as they were kept; fields that came later have their defaults in older ones."""
    rows: list[dict[str, Any]] = [{name: tuple(v) if isinstance(v, list) else v for name, v in row.items()} for row in json.loads(text)]
    return [Completion(**row) for row in rows]
