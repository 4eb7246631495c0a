"""What a step at work says of itself for those who look on from another process: ``.live.json`` in its work folder.

Written at most twice a second, never waited for, gone when the step is done; no result depends on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from openbezoar.progress import Bar, Progress

LIVE = ".live.json"
EVERY = 0.5  # seconds between two writings
WARNINGS = 3  # that are kept


class Recorded:
    """A progress that is written down too. about: of the step and who works on it. memory: bytes in use, by kind."""

    def __init__(
        self, inner: Progress, folder: Path, about: Mapping[str, Any], memory: Callable[[], dict[str, int]]
    ) -> None:
        self.inner, self.folder, self.memory = inner, folder, memory
        self.content: dict[str, Any] = {**about, "begun": time.time(), "bar": None, "warnings": []}
        self.written = 0.0
        self.write(now=True)

    def say(self, text: str) -> None:
        self.inner.say(text)

    def warn(self, text: str) -> None:
        self.inner.warn(text)
        self.content["warnings"] = [*self.content["warnings"], text][-WARNINGS:]
        self.write(now=True)

    def step(self, place: str, name: str, about: str) -> AbstractContextManager[None]:
        return self.inner.step(place, name, about)

    def ended(self, place: str, name: str, seconds: float, summary: str) -> None:
        self.inner.ended(place, name, seconds, summary)

    @contextmanager
    def bar(self, label: str, total: float, unit: str, done: float = 0.0) -> Iterator[Bar]:
        with self.inner.bar(label, total, unit, done) as inner:
            yield _RecordedBar(self, inner, {"label": label, "total": total, "unit": unit, "done": done})

    def write(self, now: bool = False) -> None:
        """Write where the step stands, unless it was just written. A disk that takes nothing is not told of."""
        if not now and time.monotonic() - self.written < EVERY:
            return
        self.written = time.monotonic()
        temporary = self.folder / f".{LIVE}.tmp"
        with suppress(OSError):
            temporary.write_text(json.dumps({**self.content, "at": time.time(), "memory": self.memory()}))
            temporary.replace(self.folder / LIVE)


class _RecordedBar:
    def __init__(self, recorded: Recorded, inner: Bar, content: dict[str, Any]) -> None:
        self.recorded, self.inner = recorded, inner
        self.content = recorded.content["bar"] = {**content, "before": content["done"], "seconds": 0.0, "numbers": {}}
        self.begun = time.monotonic()
        recorded.write(now=True)

    def advance(self, n: float = 1, **numbers: float) -> None:
        self.inner.advance(n, **numbers)
        self.content["done"] += n
        self.content["seconds"] = time.monotonic() - self.begun
        self.content["numbers"].update(numbers)
        self.recorded.content["bar"] = self.content
        self.recorded.write()


def read_live(folder: Path) -> dict[str, Any]:
    """What a step at work last said of itself; {} where nothing can be read."""
    try:
        content = json.loads((folder / LIVE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that have a step; none without the file. A process may be writing it."""
    lines = []
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
    return lines
