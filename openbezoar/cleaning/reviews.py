"""What a person decided about a filter's rows, laid over the filter's own decisions.

Reads and writes ``RUN/reviews/STEP.jsonl``, a log that is only ever added to: one decision a
line, or the taking back of one. A row is known by a hash of its texts as the filter read them,
so that a decision outlives other rules, another judge and other rows, and can be carried to
another run by copying the file. ``digest`` of what is in force belongs to the step's key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from openbezoar.errors import DataError, RunError, shown
from openbezoar.machine.textfiles import loads, read_text
from openbezoar.rows.fields import text_in
from openbezoar.rows.held import is_talk
from openbezoar.rows.records import Row
from openbezoar.store.digests import digest

FOLDER = "reviews"
TEXTS = ("instruction", "context", "response")
Verdict = Literal["accept", "reject", "edit"]


@dataclass(frozen=True)
class Decision:
    """A person's word on a row. ``texts``: for an edit, the fields' new texts."""

    row: str  # hash
    verdict: Verdict
    id: str = ""
    texts: dict[str, str] = field(default_factory=dict)


def row_hash(row: Mapping[str, Any]) -> str:
    """Sixteen hex digits of a row's system message, instruction, context and response, or of its messages."""
    if is_talk(row):
        return digest(row["messages"])[:16]
    return digest(
        [
            row.get("system"),
            row.get("instruction"),
            row.get("context") or row.get("input") or "",
            row.get("response", row.get("output")),
        ]
    )[:16]


class Reviews:
    """The decisions on one step's rows. Raises RunError for a log that cannot be read."""

    def __init__(self, run: Path, step: str) -> None:
        self.path = run / FOLDER / f"{step}.jsonl"
        self._decisions: list[Decision] = []  # in force and superseded, oldest first
        if self.path.is_file():
            for number, line in enumerate(read_text(self.path, RunError).split("\n"), 1):
                if line.strip():
                    self._replay(line, number)

    @property
    def in_force(self) -> dict[str, Decision]:
        """The decision on each row, by the row's hash, in the order they were made."""
        decisions: dict[str, Decision] = {}
        for decision in self._decisions:
            decisions.pop(decision.row, None)
            decisions[decision.row] = decision
        return decisions

    @property
    def digest(self) -> str | None:
        """Hash of the decisions in force, whatever led to them; None if there is none."""
        return digest({d.row: [d.verdict, d.texts] for d in self.in_force.values()}) if self._decisions else None

    def add(self, decision: Decision) -> None:
        """Make a decision; it is on disk when this returns."""
        edited = {"texts": decision.texts} if decision.texts else {}
        self._write({"row": decision.row, "verdict": decision.verdict, "id": decision.id, **edited})
        self._decisions.append(decision)

    def undo(self, row: str) -> Decision | None:
        """Take back the last decision on a row, so that the one before it holds again; None if there is none."""
        decision = next((d for d in reversed(self._decisions) if d.row == row), None)
        if decision is not None:
            self._write({"row": row, "verdict": "undo", "id": decision.id})
            self._forget(row)
        return decision

    def undo_last(self) -> Decision | None:
        """Take back the last decision that is in force."""
        return self.undo(self._decisions[-1].row) if self._decisions else None

    def _forget(self, row: str) -> None:
        place = max((i for i, d in enumerate(self._decisions) if d.row == row), default=None)
        if place is not None:
            del self._decisions[place]

    def _replay(self, line: str, number: int) -> None:
        try:
            content = loads(line)[0]
            row, verdict = content["row"], content["verdict"]
            if verdict == "undo":
                self._forget(row)
            elif verdict in get_args(Verdict):
                texts = {
                    name: text_in(content["texts"], (name,), "texts")
                    for name in TEXTS
                    if name in content.get("texts", {})
                }
                self._decisions.append(Decision(str(row), verdict, str(content.get("id", "")), texts))
            else:
                raise ValueError(f"verdict {shown(verdict)}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DataError) as error:
            raise RunError(
                f"{self.path}: line {number} is no decision ({error}); expected row and verdict (accept, reject, edit,"
                " undo); take the line out"
            ) from None

    def _write(self, content: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(json.dumps(content, ensure_ascii=False) + "\n")
            log.flush()
            os.fsync(log.fileno())
