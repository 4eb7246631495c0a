"""Looking at a filter's rows by hand: shows them with their verdicts and takes a person's word.

Reads a finished filter step's ``rows.jsonl``, ``rejected.jsonl`` and ``unscored.jsonl`` and a
command a line from standard input, terminal or not; writes ``RUN/reviews/STEP.jsonl`` through
``cleaning.reviews``. No row is touched: the next run lays the decisions over the verdicts.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from openbezoar.cleaning.reviews import TEXTS, Decision, Reviews, row_hash
from openbezoar.errors import RunError
from openbezoar.progress import visible
from openbezoar.reporting.wording import shorten
from openbezoar.rows.held import is_talk, shown_in
from openbezoar.rows.records import Row, read_jsonl
from openbezoar.store.runs import RunFolder

LIMIT = 2000  # characters of a text shown at first
Shown = Literal["all", "kept", "rejected", "unscored"]
FILES = {"kept": "rows.jsonl", "rejected": "rejected.jsonl", "unscored": "unscored.jsonl"}
COMMANDS = ("accept", "reject", "edit", "undo", "view", "next", "back", "go", "quit")
HELP = """a accept: the row is kept, whatever rules and judge said
r reject: the row is dropped
e edit: opens the texts in $EDITOR; the row is kept as saved
u undo: takes this row's last decision back
v view: the whole texts
n next (or an empty line), b back, g WHAT go to the row with this id or number
q quit; every decision is on disk already
"""


@dataclass(frozen=True)
class Entry:
    """A row with where the filter put it."""

    row: Row
    bucket: str

    @property
    def hash(self) -> str:
        return str(self.row.get("hash") or row_hash(self.row))

    @property
    def id(self) -> str:
        return str(self.row.get("id", self.hash))

    @property
    def reason(self) -> str:
        """Why it is there, in a few words."""
        row = self.row
        if "rule" in row:
            return f"rule {row['rule']}" + (f" ({row['why']})" if row.get("why") else "")
        if "unscored" in row:
            return f"{row['unscored']}; the judge's reply: {shorten(str(row.get('reply', '')), 300)}"
        rating = f", rated {row['rating']:g}" if isinstance(row.get("rating"), int | float) else ""
        reviewed = f"; in review: {row['review']}, before that {row.get('before_review')}" if "review" in row else ""
        return f"{row.get('status')}{rating}: {row.get('reason')}{reviewed}"


def entries(run: RunFolder, step: str, shown: str = "all") -> list[Entry]:
    """The rows of a finished filter step. Raises RunError for another step, or for an unknown ``shown``."""
    manifest = run.manifest(step)
    if manifest is None or manifest.get("verb") != "filter":
        filters = sorted(
            p.parent.name
            for p in run.path.glob("*/manifest.json")
            if (run.manifest(p.parent.name) or {}).get("verb") == "filter"
        )
        what = (
            "no finished step"
            if manifest is None
            else f"a {manifest.get('verb')} step, and only rows of a filter are reviewed"
        )
        raise RunError(f"{run.path}: '{step}' is {what}; filter steps: {', '.join(filters) or 'none'}")
    if shown not in get_args(Shown):
        raise RunError(f"--only {shown}: expected one of {', '.join(get_args(Shown))}")
    run.checked(step)
    rows = []
    for bucket, name in FILES.items():
        if shown in ("all", bucket) and (run.step(step) / name).is_file():
            rows += [Entry(row, bucket) for row in read_jsonl(run.step(step) / name)]
    return rows


@dataclass
class ReviewSession:
    """One pass over a step's rows. ``say`` prints a line; ``editor`` changes a text or returns it as it was."""

    entries: list[Entry]
    reviews: Reviews
    say: Callable[[str], None]
    editor: Callable[[str], str]
    place: int = 0
    decisions: list[Decision] = field(default_factory=list)

    def run(self, commands: Iterable[str]) -> None:
        """Take commands until 'q', the last row, or the end of them."""
        if not self.entries:
            return self.say("no rows to show")
        self.show()
        for line in commands:
            word, _, rest = line.strip().partition(" ")
            command = next((c for c in COMMANDS if word.lower() in (c, c[0])), word)
            if command == "quit" or not self._do(command, rest.strip()):
                return None
        return None

    def show(self, limit: int | None = LIMIT) -> None:
        """Print the row that is looked at, made harmless for a terminal."""
        entry = self.entries[self.place]
        decision = self.reviews.in_force.get(entry.hash)
        self.say("")
        self.say(f"[{self.place + 1}/{len(self.entries)}] {visible(entry.id)}  {entry.bucket}  {visible(entry.reason)}")
        if decision is not None:
            self.say(f"decided: {decision.verdict}")
        for name, text in texts_of(entry.row, decision).items():
            whole = text if limit is None else shorten(text, limit)
            self.say(f"{name}:")
            self.say("\n".join(f"    {line}" for line in visible(whole).split("\n")))

    def _do(self, command: str, rest: str) -> bool:
        """Carry out a command; False at the end of the rows."""
        entry = self.entries[self.place]
        if command in ("accept", "reject"):
            self._decide(Decision(entry.hash, "accept" if command == "accept" else "reject", entry.id))
            return self._go(self.place + 1)
        if command == "edit":
            return self._go(self.place + 1) if self._edit(entry) else True
        if command in ("next", ""):
            return self._go(self.place + 1)
        if command == "back":
            return self._go(max(0, self.place - 1))
        if command == "undo":
            undone = self.reviews.undo(entry.hash)
            self.say(f"taken back: {undone.verdict}" if undone else "nothing is decided about this row")
        elif command == "view":
            self.show(None)
        elif command == "go":
            self._find(rest)
        else:
            self.say(HELP)
        return True

    def _go(self, place: int) -> bool:
        if place >= len(self.entries):
            self.say("that was the last row")
            return False
        self.place = place
        self.show()
        return True

    def _find(self, text: str) -> None:
        place = next(
            (i for i, e in enumerate(self.entries) if text in (e.id, e.hash)),
            int(text) - 1 if text.isdecimal() else -1,
        )
        if 0 <= place < len(self.entries):
            self._go(place)
        else:
            self.say(f"no row '{visible(text)}' here")

    def _decide(self, decision: Decision) -> None:
        self.reviews.add(decision)
        self.decisions.append(decision)

    def _edit(self, entry: Entry) -> bool:
        if is_talk(entry.row):
            self.say("not edited: a conversation has many texts; accept or reject it")
            return False
        before = texts_of(entry.row, self.reviews.in_force.get(entry.hash))
        try:
            after = parse_texts(self.editor(lay_out(before)), before)
        except (RunError, ValueError) as error:
            self.say(f"not edited: {error}")
            return False
        if after == before:
            self.say("nothing was changed")
            return False
        self._decide(Decision(entry.hash, "edit", entry.id, after))
        return True


def texts_of(row: Row, decision: Decision | None = None) -> dict[str, str]:
    """A row's texts under the fields' names, as a decision leaves them."""
    shown = shown_in(row)
    answer = {"response": shown.pop("response")} if "response" in shown else {}
    texts = {**shown, "context": row.get("context"), **answer}
    return {name: str(text) for name, text in texts.items() if text} | (decision.texts if decision else {})


# ------------------------------------------------------------------------------- editing


def _heading(name: str, texts: dict[str, str]) -> str:
    """A line that stands in none of the texts."""
    bar = "====="
    while any(bar in text for text in texts.values()):
        bar += "="
    return f"{bar} {name} {bar}"


def lay_out(texts: dict[str, str]) -> str:
    """Texts in one file, each under its heading."""
    return "".join(f"{_heading(name, texts)}\n{text}\n" for name, text in texts.items())


def parse_texts(content: str, before: dict[str, str]) -> dict[str, str]:
    """What an edited file holds. Raises ValueError if a heading is gone or a text is empty."""
    after, rest = {}, content
    names = list(before)
    for name, following in zip(names, [*names[1:], None], strict=True):
        head, heading, rest = rest.partition(f"{_heading(name, before)}\n")
        if not heading or head.strip():
            raise ValueError(f"the line '{_heading(name, before)}' is not where it was")
        mark = f"{_heading(following, before)}\n" if following else None
        text = rest if mark is None else rest.partition(mark)[0]
        rest = "" if mark is None else rest[len(text) :]
        after[name] = text.removesuffix("\n")
        if name in TEXTS and not after[name].strip():
            raise ValueError(f"{name} is empty; reject the row instead")
    return after


def with_editor(text: str) -> str:
    """A text as $VISUAL or $EDITOR leaves it. Raises RunError without one, or if it fails."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not command:
        raise RunError("no editor; set EDITOR, such as EDITOR=nano")
    with tempfile.TemporaryDirectory(prefix="openbezoar-") as folder:
        file = Path(folder) / "row.txt"
        file.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        try:
            done = subprocess.run([*shlex.split(command), str(file)], check=False)
        except OSError as error:
            raise RunError(f"{command}: {error.strerror}; set EDITOR to a program that is there") from None
        if done.returncode:
            raise RunError(f"{command} ended with {done.returncode}; the row is left as it was")
        return file.read_bytes().decode("utf-8-sig", errors="replace")


# ---------------------------------------------------------------------------- the command


def undo(run: RunFolder, step: str, what: str) -> list[Decision]:
    """Take back the last decision ('last'), all of them ('all'), or that on a row by its id or
    hash. Raises RunError if there is none.
    """
    reviews = Reviews(run.path, step)
    undone = []
    if what in ("last", "all"):
        while (decision := reviews.undo_last()) is not None:
            undone.append(decision)
            if what == "last":
                break
    else:
        rows = [d.row for d in reviews.in_force.values() if what in (d.id, d.row)]
        undone = [d for row in rows if (d := reviews.undo(row)) is not None]
    if not undone:
        raise RunError(
            f"{reviews.path}: no decision to take back for '{what}'; expected last, all, or the id or hash of a"
            " reviewed row"
        )
    return undone


def review(run: RunFolder, step: str, shown: str, commands: Iterator[str], say: Callable[[str], None]) -> ReviewSession:
    """A whole session, alone in the run, so that no run starts from decisions that are still being made."""
    with run.lock():
        session = ReviewSession(entries(run, step, shown), Reviews(run.path, step), say, with_editor)
        session.run(commands)
    return session
