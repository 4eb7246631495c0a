"""What a run says while it works: live bars on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One piece of long work."""

    def advance(self, n: float = 1, **numbers: float) -> None:
        """Count ``n`` more units as done; ``numbers`` are shown beside the bar."""


class Progress(Protocol):
    """Where a step reports to."""

    def say(self, text: str) -> None:
        """One line of news."""

    def bar(self, label: str, total: float, unit: str) -> AbstractContextManager[Bar]:
        """A bar of ``total`` units, to be used in a ``with`` statement."""


def _numbers(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


class _LineBar:
    """Prints a line at most every ``every`` seconds, and one at the end."""

    def __init__(self, label: str, total: float, unit: str, every: float, quiet: bool) -> None:
        self.label, self.total, self.unit, self.every, self.quiet = label, total, unit, every, quiet
        self.done, self.begun, self.said = 0.0, time.monotonic(), time.monotonic()
        self.numbers: dict[str, float] = {}
        self.said_at = -1.0

    def advance(self, n: float = 1, **numbers: float) -> None:
        self.done += n
        self.numbers.update(numbers)
        if time.monotonic() - self.said >= self.every:
            self._line()

    def _line(self) -> None:
        self.said, self.said_at = time.monotonic(), self.done
        if self.quiet:
            return
        rate = self.done / max(self.said - self.begun, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        print(
            f"  {self.label}: {self.done:.0f}/{self.total:.0f} {self.unit}  {rate:.3g} {self.unit}/s  {max(left, 0):.0f} s left  {_numbers(self.numbers)}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


class PlainProgress:
    """Lines for logs and pipes; with ``quiet`` only the news that ends a step."""

    def __init__(self, quiet: bool = False, every: float = 10.0) -> None:
        self.quiet, self.every = quiet, every

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, total: float, unit: str) -> Iterator[Bar]:
        bar = _LineBar(label, total, unit, self.every, self.quiet)
        yield bar
        if bar.said_at != bar.done or not bar.done:
            bar._line()


class Silent:
    """Says nothing: for processes that follow another one."""

    def say(self, text: str) -> None:
        return None

    @contextmanager
    def bar(self, label: str, total: float, unit: str) -> Iterator[Bar]:
        yield _LineBar(label, total, unit, float("inf"), quiet=True)


class RichProgress:
    """Live bars with rates on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def bar(self, label: str, total: float, unit: str) -> Iterator[Bar]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as live:
            task = live.add_task(label, total=total, numbers="", rate="")
            begun = time.monotonic()

            class Live:
                done = 0.0

                def advance(self, n: float = 1, **numbers: float) -> None:
                    self.done += n
                    rate = self.done / max(time.monotonic() - begun, 1e-9)
                    live.update(task, advance=n, rate=f"{rate:.3g}/s", **({"numbers": _numbers(numbers)} if numbers else {}))  # type: ignore[arg-type]

            yield Live()


def for_terminal(quiet: bool = False) -> Progress:
    """Bars when stderr is a terminal, lines otherwise."""
    if quiet or not sys.stderr.isatty():
        return PlainProgress(quiet)
    return RichProgress()


def printable(text: str) -> str:
    """Foreign text made harmless for a terminal: control characters other than tab and line feed are shown, not sent."""
    return "".join(c if c in "\t\n" or (c.isprintable() and c != "\x9b") else repr(c)[1:-1] for c in text)
