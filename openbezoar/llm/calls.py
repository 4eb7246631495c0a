"""The call cache: every answered call on disk, who asks what just now, and what each run has spent.

Reads and writes ``RUNS/.calls.sqlite`` (SQLite, write-ahead log, readable by its owner only),
one file for all recipes that keep their runs in that folder; several threads and processes
may use it at once. An answer is committed and synced before ``keep`` returns, so what was
used was on disk.

Keys are digests (``cached.py`` says of what); values are JSON lists of answers, each with
a digest that is checked when it is read: a damaged answer is forgotten and asked again.
Before a call is sent it is claimed, so that nobody else sends it; a claim whose owner is gone
ends as spent at its worst case, since nobody knows whether the call was answered. ``spent``
adds up tokens by run, step and model for budgets; pruning leaves it alone.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openbezoar.errors import RunError
from openbezoar.llm import Completion
from openbezoar.llm.calls_tables import COUNTS, create, parsed, prepare, seal
from openbezoar.llm.owners import Process
from openbezoar.llm.side_by_side import CalledOff
from openbezoar.machine import disk

FILE = ".calls.sqlite"
BUSY = 60.0  # seconds to wait for another process's write
AT_ONCE = 500  # keys a query; SQLite's older limit is 999
BEAT = 10.0  # seconds between the signs of life of one who asks
SILENT = 90.0  # seconds without one after which nobody waits any more
LOOK = (0.02, 1.0)  # seconds between two looks at somebody else's claim, at first and at most
NOTHING: threading.Event = threading.Event()


@dataclass(frozen=True)
class Spent:
    """What was asked of one model: calls that were answered, tokens read and written.

    unanswered: calls that were sent and not answered, or not yet; the tokens hold their worst case.
    """

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    unanswered: int = 0


@dataclass(frozen=True)
class Spender:
    """On whose account a call goes: a run, one of its steps, a model by its name in the recipe."""

    run: str
    step: str
    model: str


def to_stderr(line: str) -> None:
    """Where notices about the file go if nobody else takes them."""
    print(line, file=sys.stderr)


class CallStore:
    """The cache file of a folder of runs. ``say`` is told what had to be forgotten."""

    def __init__(self, runs: Path, say: Callable[[str], None] = to_stderr) -> None:
        self.path, self.say = runs / FILE, say
        self.owner, self._process = uuid.uuid4().hex, Process.this().text()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._beating = False
        runs.mkdir(parents=True, exist_ok=True)
        with self._errors():
            if not self.path.exists():
                create(self.path)
                disk.sync(runs)
            self._db = sqlite3.connect(self.path, timeout=BUSY, check_same_thread=False, isolation_level=None)
            prepare(self._db, self.path, say)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._settle(self._gone())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError) as error:  # a damaged name within the file is no text
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
                raise RunError(
                    f"{self.path}: {error}; make room and give the same command again: every answer is kept"
                ) from None
            raise RunError(
                f"{self.path}: the call cache cannot be used ({error}); expected a writable SQLite file: mend the"
                " cause, put a copy of it back, or move it away, and its answers are asked again"
            ) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction, all or nothing."""
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite itself rolls back what a full disk ended
                    with suppress(sqlite3.Error):  # the first error is the one to tell
                        self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Let go of the file. Calls still under way are counted as sent and not answered."""
        self._closed.set()
        with self._lock:
            if self._beating:
                with suppress(RunError):
                    self._settle([self.owner])
            self._db.close()

    # ------------------------------------------------------------------------ answers

    def find(self, keys: Sequence[str]) -> dict[str, list[Completion]]:
        """What is known of these keys."""
        with self._lock, self._errors():
            return self._find(keys)

    def _find(self, keys: Sequence[str]) -> dict[str, list[Completion]]:
        by_key: dict[str, list[Completion]] = {}
        damaged: list[str] = []
        for first in range(0, len(keys), AT_ONCE):
            part = keys[first : first + AT_ONCE]
            query = (
                "SELECT key, CAST(answers AS BLOB), CAST(digest AS BLOB) FROM calls WHERE key IN"
                f" ({','.join('?' * len(part))})"
            )
            for key, answers, digest in self._db.execute(query, part).fetchall():
                rows = parsed(answers) if seal(key, answers).encode() == digest else None
                if rows is None:
                    damaged.append(key)
                else:
                    by_key[key] = rows
        if damaged:
            self._db.executemany("DELETE FROM calls WHERE key = ?", [(key,) for key in damaged])
            self.say(
                f"{self.path}: {len(damaged)} answer{'s' * (len(damaged) > 1)} not as kept (the digest is another):"
                " forgotten, and asked again"
            )
        return by_key

    def keep(self, answers: Mapping[str, Sequence[Completion]], spender: Spender) -> dict[str, list[Completion]]:
        """Put answers by key on disk, all or none, and on the spender's account; gives what is on disk now.

        If another process was first, that is its answer: then all that use the file agree.
        """
        rows = [row for part in answers.values() for row in part]
        cost = Spent(len(rows), sum(row.prompt_tokens for row in rows), sum(row.tokens for row in rows))
        now = time.time()
        values = []
        for key, part in answers.items():
            text = json.dumps([asdict(row) for row in part])  # ASCII, so that half a surrogate pair stays what it is
            values.append((key, spender.model, now, text, seal(key, text.encode())))
        with self._writing():
            self._db.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?)", values)
            self._add(spender, cost)
            self._db.executemany(
                "DELETE FROM claims WHERE key = ? AND owner = ?", [(key, self.owner) for key in answers]
            )
            return self._find(list(answers))

    def _add(self, spender: Spender, cost: Spent, names: Sequence[str] = COUNTS[:3]) -> None:
        more = ", ".join(f"{name} = {name} + excluded.{name}" for name in names)
        self._db.execute(
            f"INSERT INTO spent (run, step, model, {', '.join(names)}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
            f" SET {more}",
            (spender.run, spender.step, spender.model, cost.calls, cost.prompt_tokens, cost.tokens),
        )

    # ------------------------------------------------------------------------ claims

    def claim(self, keys: Sequence[str], spender: Spender, cost: Spent) -> bool:
        """Say that these keys are asked now, at ``cost`` at most; False, and nothing said, if one
        is answered or asked already.
        """
        with self._writing():
            if self._find(keys) or self._others(keys):
                return False
            self._db.execute("INSERT OR IGNORE INTO owners (owner, process) VALUES (?, ?)", (self.owner, self._process))
            account = (self.owner, spender.run, spender.step, spender.model)
            costs = [(cost.calls, cost.prompt_tokens, cost.tokens), *[(0, 0, 0)] * (len(keys) - 1)]
            self._db.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(key, *account, *c) for key, c in zip(keys, costs, strict=True)],
            )
        with self._lock:
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return True

    def release(self, keys: Sequence[str], sent: bool) -> None:
        """Take a claim back. sent: perhaps the call reached the model, and costs what it may."""
        self._settle([self.owner], keys, sent)

    def wait(self, keys: Sequence[str], off: threading.Event = NOTHING) -> None:
        """Until nobody else asks one of these keys: it is answered, given up, or its owner is gone
        or silent. Raises CalledOff.
        """
        pause, last = LOOK
        beats: dict[str, tuple[int, float]] = {}
        while True:
            with self._lock, self._errors():
                owners = self._others(keys)
                seen = dict(self._db.execute("SELECT owner, beat FROM owners").fetchall())
            now = time.monotonic()
            for owner in owners:
                if beats.get(owner, (None, 0.0))[0] != seen.get(owner):
                    beats[owner] = (seen.get(owner, 0), now)
            over = [owner for owner in owners if owner not in seen or now - beats[owner][1] > SILENT]
            self._settle([*over, *self._gone(owners)])
            if not owners:
                return
            if off.wait(pause):
                raise CalledOff
            pause = min(2 * pause, last)

    def _others(self, keys: Sequence[str]) -> list[str]:
        """Who else asks one of these keys."""
        owners: dict[str, None] = {}
        for first in range(0, len(keys), AT_ONCE):
            part = keys[first : first + AT_ONCE]
            query = f"SELECT owner FROM claims WHERE owner <> ? AND key IN ({','.join('?' * len(part))})"
            owners |= dict.fromkeys(owner for (owner,) in self._db.execute(query, (self.owner, *part)))
        return list(owners)

    def _gone(self, among: Sequence[str] | None = None) -> list[str]:
        """Owners whose process has ended."""
        with self._lock, self._errors():
            rows = self._db.execute("SELECT owner, process FROM owners").fetchall()
        processes = {
            owner: Process.of(text) for owner, text in rows if owner != self.owner and (among is None or owner in among)
        }
        return [owner for owner, process in processes.items() if process is None or process.state() == "gone"]

    def _settle(self, owners: Sequence[str], keys: Sequence[str] | None = None, sent: bool = True) -> None:
        """End claims of owners, all or those on ``keys``. What was sent and not answered counts as
        spent at its worst case.
        """
        if not owners:
            return
        with self._writing():
            for owner in owners:
                claims = self._db.execute(
                    "SELECT key, run, step, model, calls, prompt_tokens, tokens FROM claims WHERE owner = ?", (owner,)
                ).fetchall()
                ended = [claim for claim in claims if keys is None or claim[0] in keys]
                for _, run, step, model, *numbers in ended if sent else ():
                    if numbers[0]:
                        self._add(Spender(run, step, model), Spent(*numbers), COUNTS[3:])
                self._db.executemany(
                    "DELETE FROM claims WHERE key = ? AND owner = ?", [(claim[0], owner) for claim in ended]
                )
                if keys is None:
                    self._db.execute("DELETE FROM owners WHERE owner = ?", (owner,))

    def _beat(self) -> None:
        """Signs of life, for those who wait and cannot see this process."""
        while not self._closed.wait(BEAT):
            with suppress(sqlite3.Error), self._lock:
                if not self._closed.is_set():
                    self._db.execute("UPDATE owners SET beat = beat + 1 WHERE owner = ?", (self.owner,))

    def unanswered(self, spender: Spender, cost: Spent) -> None:
        """Put a call on the account that was sent and lost, and will be sent again."""
        with self._writing():
            self._add(spender, cost, COUNTS[3:])

    # ------------------------------------------------------------------------ accounts

    def accounts(self) -> dict[tuple[str, str, str], Spent]:
        """By run, step and model, what was asked because the cache did not know it; with what others ask just now."""
        under_way = (
            "SELECT run, step, model, 0, prompt_tokens, tokens, calls FROM claims WHERE calls > 0 AND owner <> ?"
        )
        settled = (
            f"SELECT run, step, model, calls, {COUNTS[1]} + {COUNTS[4]}, {COUNTS[2]} + {COUNTS[5]}, {COUNTS[3]} FROM"
            " spent"
        )
        with self._lock, self._errors():
            rows = self._db.execute(f"{settled} UNION ALL {under_way} ORDER BY 1, 2, 3", (self.owner,)).fetchall()
        accounts: dict[tuple[str, str, str], Spent] = {}
        for run, step, model, *numbers in rows:
            if any(type(n) is not int for n in numbers):  # a damaged page
                raise RunError(
                    f"{self.path}: the account of {run}/{step} holds no counts; put a copy of the file back, or move it"
                    " away"
                )
            had = asdict(accounts.get((run, step, model), Spent()))
            accounts[run, step, model] = Spent(*(n + more for n, more in zip(had.values(), numbers, strict=True)))
        return accounts

    # ------------------------------------------------------------------------ upkeep

    def size(self) -> list[tuple[str, int, int]]:
        """(model, calls, bytes of answers), by the models' names."""
        query = "SELECT model, count(*), sum(length(answers)) FROM calls GROUP BY model ORDER BY model"
        with self._lock, self._errors():
            return [(model, n, size) for model, n, size in self._db.execute(query)]

    def answers(self, models: Sequence[str]) -> Iterator[list[Any]]:
        """What is kept of models by their names, as rows that ``take`` takes elsewhere."""
        for model in models:
            query = "SELECT key, model, at, answers, digest FROM calls WHERE model = ? ORDER BY key"
            with self._lock, self._errors():
                rows = self._db.execute(query, (model,)).fetchall()
            yield from (list(row) for row in rows if seal(row[0], str(row[3]).encode()) == row[4])

    def account(self, run: str) -> list[list[Any]]:
        """What a run has spent: step, model, counts."""
        query = f"SELECT step, model, {', '.join(COUNTS)} FROM spent WHERE run = ? ORDER BY 1, 2"
        with self._lock, self._errors():
            return [list(row) for row in self._db.execute(query, (run,))]

    def take(self, answers: Iterable[Any], run: str, account: Any) -> None:
        """Take in what ``answers`` and ``account`` gave elsewhere; what is known here already stays. All or nothing.

        Raises ValueError for an answer that is not as it was kept, and for an account of no counts.
        """
        kinds: tuple[Any, ...] = (str, str, (int, float), str, str)
        more = ", ".join(f"{name} = max({name}, excluded.{name})" for name in COUNTS)
        with self._writing():
            for row in answers:
                if (
                    not isinstance(row, list)
                    or len(row) != 5
                    or not all(isinstance(v, kind) for v, kind in zip(row, kinds, strict=True))
                    or seal(row[0], row[3].encode()) != row[4]
                    or parsed(row[3].encode()) is None
                ):
                    raise ValueError("an answer is not as it was kept")
                self._db.execute("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?)", row)
            for row in account if isinstance(account, list) else [account]:
                if (
                    not isinstance(row, list)
                    or len(row) != 2 + len(COUNTS)
                    or not all(isinstance(name, str) for name in row[:2])
                    or any(type(n) is not int or not 0 <= n < 1 << 62 for n in row[2:])
                ):
                    raise ValueError("an account of the run holds no counts")
                self._db.execute(
                    f"INSERT INTO spent VALUES ({', '.join('?' * (3 + len(COUNTS)))}) ON CONFLICT DO UPDATE SET {more}",
                    [run, *row],
                )

    def verify(self) -> tuple[int, int]:
        """(answers, damaged ones), all read again. Raises RunError for a file whose pages do not fit together."""
        n = damaged = 0
        with self._lock, self._errors():
            findings = [text for (text,) in self._db.execute("PRAGMA integrity_check(1)")]
            if findings != ["ok"]:
                raise sqlite3.DatabaseError(" ".join(str(findings[0]).split()))
            for key, answers, digest in self._db.execute(
                "SELECT key, CAST(answers AS BLOB), CAST(digest AS BLOB) FROM calls"
            ):
                n, damaged = n + 1, damaged + (seal(key, answers).encode() != digest or parsed(answers) is None)
        return n, damaged

    def prune(self, days: float = 0.0, model: str | None = None) -> int:
        """Forget answers older than ``days`` days, of one model or of all; how many. The file shrinks."""
        with self._lock, self._errors():
            gone = self._db.execute(
                "DELETE FROM calls WHERE at <= ? AND (? IS NULL OR model = ?)",
                (time.time() - days * 86400, model, model),
            ).rowcount
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone
