"""The file of votes, and one person's way through the ballots.

Reads and writes a file of votes, a JSON object a line with exactly the fields of MT-Bench's
published ones: ``id``, ``question_id``, ``turn``, ``model_a``, ``model_b``, ``winner``
("model_a", "model_b", "tie", "tie (bothbad)") and ``judge``; model_a was shown on the left.
"tie (bothbad)" is Chatbot Arena's word for two bad answers.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from openbezoar.errors import DataError, RunError
from openbezoar.machine.textfiles import check_beginning, loads
from openbezoar.people.ballots import Ballot, Side
from openbezoar.rows.records import Row
from openbezoar.stats.agreement import vote

Choice = Literal["a", "b", "tie", "bad"]
WINNER: dict[str, str] = {"a": "model_a", "b": "model_b", "tie": "tie", "bad": "tie (bothbad)"}


BEGINNING = b'{"id": "'  # of every line that is written here; other lines are not ours to mend


class VoteFile:
    """Votes on disk, added to by one process at a time: each is there before ``add`` returns.

    A line that a power cut left half written was never told to be saved, and is taken out.
    read_only: for a look at a file that a page may have open. Raises RunError if another
    process adds to the file, or it cannot be opened, DataError for rows that are no votes.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path, self.read_only = path, read_only
        self.rows: list[Row] = []
        self._begins: list[int] = []  # where each vote's line begins
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk did not take must not be tried again later.
            self._file = path.open("rb" if read_only else "a+b", buffering=0)
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}; name another file with --votes") from None
        try:
            if not read_only:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise RunError(
                f"{path}: another 'openbezoar vote' has it open; use that page, or --votes with another file"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        content, place = self._file.readall(), 0
        check_beginning(content[:4], self.path)
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            try:
                row = loads(line.decode("utf-8-sig"))[0] if line.strip() else None
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n") and (line.startswith(BEGINNING) or BEGINNING.startswith(line)):
                    return None if self.read_only else self._cut(place)
                raise DataError(
                    f"{self.path}: line {number} is not JSON ({error}); expected a vote, take the line out"
                ) from None
            if row is not None:
                if not isinstance(row, dict):
                    raise DataError(
                        f"{self.path}: line {number} is no vote; expected an object with question_id, turn, model_a,"
                        " model_b, winner and judge"
                    )
                vote(row, f"{self.path}: line {number}")
                self.rows.append(row)
                self._begins.append(place)
            place += len(line)
            if not line.endswith(b"\n") and not self.read_only:
                self._write(b"\n")
        return None

    def _write(self, content: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def _cut(self, end: int) -> None:
        self._file.truncate(end)
        os.fsync(self._file.fileno())

    def add(self, row: Row) -> None:
        """Append a vote. Raises OSError if the disk does not take it; the file is then as it was."""
        begin = self._file.seek(0, os.SEEK_END)
        self._write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        self.rows.append(row)
        self._begins.append(begin)

    def drop_last(self) -> None:
        """Take the last vote out."""
        self._cut(self._begins.pop())
        self.rows.pop()


class BallotQueue:
    """The ballots that one person has before them. A ballot that is skipped comes again after the others."""

    def __init__(self, ballots: Sequence[Ballot], votes: VoteFile, judge: str) -> None:
        self.ballots, self.votes, self.judge = list(ballots), votes, judge
        by_id = {ballot.vote_id(judge): ballot for ballot in ballots}
        self.done = [by_id[row["id"]] for row in votes.rows if row.get("id") in by_id]
        voted = {ballot.id for ballot in self.done}
        self.waiting = [ballot for ballot in ballots if ballot.id not in voted]
        self.skipped: set[str] = set()

    def cast(self, id_: str, choice: Choice) -> bool:
        """Vote on a ballot; False if it is not waiting for a vote, because another window has given it."""
        ballot = self._waiting(id_)
        if ballot is None:
            return False
        self.votes.add(
            {
                "id": ballot.vote_id(self.judge),
                "question_id": ballot.question_id,
                "turn": ballot.turn,
                "model_a": ballot.a.model,
                "model_b": ballot.b.model,
                "winner": WINNER[choice],
                "judge": self.judge,
            }
        )
        self.waiting.remove(ballot)
        self.skipped.discard(ballot.id)
        self.done.append(ballot)
        return True

    def skip(self, id_: str) -> bool:
        """Put a ballot behind the others; False if it is not waiting."""
        ballot = self._waiting(id_)
        if ballot is None:
            return False
        self.waiting.remove(ballot)
        self.waiting.append(ballot)
        self.skipped.add(ballot.id)
        return True

    def undo(self, id_: str) -> bool:
        """Take the last vote back, if it is the one on this ballot; the ballot comes next."""
        if id_ != self.undoable:
            return False
        self.votes.drop_last()
        self.waiting.insert(0, self.done.pop())
        return True

    @property
    def models(self) -> list[str]:
        """Whose answers are compared, in the order of their names."""
        return sorted({side.model for ballot in self.ballots for side in (ballot.a, ballot.b)})

    @property
    def own_votes(self) -> list[Row]:
        """This person's votes."""
        return [row for row in self.votes.rows if row.get("judge") == self.judge]

    @property
    def undoable(self) -> str | None:
        """The ballot of the last vote in the file, if this person gave it here."""
        last = self.votes.rows[-1].get("id") if self.votes.rows else None
        return self.done[-1].id if self.done and self.done[-1].vote_id(self.judge) == last else None

    def _waiting(self, id_: str) -> Ballot | None:
        return next((ballot for ballot in self.waiting if ballot.id == id_), None)

    def state(self) -> dict[str, Any]:
        """What the page shows: how far one is, and the next ballot without its models' names."""
        ballot = self.waiting[0] if self.waiting else None
        return {
            "done": len(self.done),
            "total": len(self.ballots),
            "skipped": len(self.skipped),
            "undo": self.undoable,
            "ballot": (
                None
                if ballot is None
                else {
                    "id": ballot.id,
                    "category": ballot.category,
                    "turn": ballot.turn,
                    "questions": ballot.questions,
                    "answers": [_shown(ballot.a), _shown(ballot.b)],
                }
            ),
        }


def _shown(side: Side) -> dict[str, Any]:
    return {"turns": side.turns, "cut": side.cut}
