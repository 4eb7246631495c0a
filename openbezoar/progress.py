"""What a run says while it works: live bars on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol


class Bar(Protocol):
    """One piece of long work."""

    def advance(self, n: float = 1, **numbers: float) -> None:
        """Count ``n`` more units as done; ``numbers`` are shown beside the bar."""


class Progress(Protocol):
    """Where a run and its steps report to."""

    def say(self, text: str) -> None:
        """One line of news."""

    def warn(self, text: str) -> None:
        """One line that is said even where only the ends of steps are."""

    def step(self, place: str, name: str, about: str) -> AbstractContextManager[None]:
        """A step of the run is at work while this is open. place: such as 3/18. about: its verb, and why it runs."""

    def ended(self, place: str, name: str, seconds: float, summary: str) -> None:
        """A step is done; one line."""

    def bar(self, label: str, total: float, unit: str, done: float = 0.0) -> AbstractContextManager[Bar]:
        """A bar of ``total`` units, to be used in a ``with`` statement. done: by an earlier try,
        which says nothing of the speed.
        """


def duration(seconds: float | None) -> str:
    """Seconds, minutes, hours or days; nothing for none."""
    if not seconds:
        return ""
    for unit, size, upto in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < upto:
            return f"{seconds / size:.1f} {unit}" if unit == "h" or seconds < 10 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _numbers(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


class _Pace:
    """Units done, and how fast."""

    def __init__(self, total: float, done: float) -> None:
        self.total, self.done, self.before, self.begun = total, done, done, time.monotonic()

    @property
    def rate(self) -> float:
        """Units a second since this try began."""
        return (self.done - self.before) / max(time.monotonic() - self.begun, 1e-9)

    @property
    def left(self) -> str:
        """Time to the end at this rate; nothing before it is known."""
        return duration(max(self.total - self.done, 0.0) / self.rate) if self.rate else ""


class _LineBar(_Pace):
    """Prints a line at most every ``every`` seconds, and one at the end."""

    def __init__(self, label: str, total: float, unit: str, done: float, every: float, quiet: bool) -> None:
        super().__init__(total, done)
        self.label, self.unit, self.every, self.quiet = label, unit, every, quiet
        self.said, self.said_at = self.begun, -1.0
        self.numbers: dict[str, float] = {}

    def advance(self, n: float = 1, **numbers: float) -> None:
        self.done += n
        self.numbers.update(numbers)
        if time.monotonic() - self.said >= self.every:
            self.line()

    def line(self) -> None:
        """Print where it stands."""
        self.said, self.said_at = time.monotonic(), self.done
        if self.quiet:
            return
        left = f"  {self.left} left" if self.done < self.total and self.left else ""
        words = (
            f"  {self.label}: {self.done:.0f}/{self.total:.0f} {self.unit}  {self.rate:.3g} {self.unit}/s{left} "
            f" {_numbers(self.numbers)}"
        )
        print(words.rstrip(), file=sys.stderr, flush=True)


class PlainProgress:
    """Lines for logs and pipes; with ``quiet`` only warnings, and one line at each step's end."""

    def __init__(self, quiet: bool = False, every: float = 10.0) -> None:
        self.quiet, self.every = quiet, every

    def say(self, text: str) -> None:
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, place: str, name: str, about: str) -> Iterator[None]:
        self.say(f"[{place}] {name}  ({about})")
        yield

    def ended(self, place: str, name: str, seconds: float, summary: str) -> None:
        self.warn(f"[{place}] {name}  done in {seconds:.1f} s  {summary}".rstrip())

    @contextmanager
    def bar(self, label: str, total: float, unit: str, done: float = 0.0) -> Iterator[Bar]:
        bar = _LineBar(label, total, unit, done, self.every, self.quiet)
        yield bar
        if bar.said_at != bar.done or not bar.done:
            bar.line()


class Silent(PlainProgress):
    """Says nothing: for processes that follow another one."""

    def __init__(self) -> None:
        super().__init__(quiet=True, every=float("inf"))

    def warn(self, text: str) -> None:
        return None


class RichProgress:
    """On a terminal: the step at work with its time, a live bar for each piece of it, and a line
    that stays when it is done.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self._open: tuple[Any, Any] | None = None  # the live display and its bars

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(text, markup=False, style="yellow")

    @contextmanager
    def step(self, place: str, name: str, about: str) -> Iterator[None]:
        with self._display(_Header(f"[{place}] {name}", about)):
            yield

    def ended(self, place: str, name: str, seconds: float, summary: str) -> None:
        from rich.text import Text

        mark = "✓" if (self.console.encoding or "").lower().startswith("utf") else "*"
        self.console.print(
            Text.assemble(
                (f"{mark} ", "green"),
                f"[{place}] ",
                (name, "bold"),
                f"  {duration(seconds) or '0.0 s'}  ",
                (summary, "dim"),
            )
        )

    @contextmanager
    def bar(self, label: str, total: float, unit: str, done: float = 0.0) -> Iterator[Bar]:
        with self._display(None) as bars:
            task = bars.add_task(label, total=total, completed=done, numbers="", rate="", left="")
            pace = _Pace(total, done)

            class Live:
                def advance(self, n: float = 1, **numbers: float) -> None:
                    pace.done += n
                    shown = {"numbers": _numbers(numbers)} if numbers else {}
                    left = f"{pace.left} left" if pace.left else ""
                    bars.update(task, completed=pace.done, rate=f"{unit} {pace.rate:.3g}/s", left=left, **shown)

            try:
                yield Live()
            finally:
                bars.remove_task(task)

    @contextmanager
    def _display(self, header: Any) -> Iterator[Any]:
        """The bars of the display that is open, or of one that is opened for this."""
        if self._open is not None:
            yield self._open[1]
            return
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        def text(field: str, ratio: int | None = None) -> TextColumn:
            return TextColumn(
                "{task." + field + "}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=ratio),
            )

        columns = (
            text("description"),
            BarColumn(16),
            MofNCompleteColumn(),
            text("fields[rate]"),
            text("fields[left]"),
            text("fields[numbers]"),
        )
        bars = Bars(TextColumn(" "), *columns, console=self.console)
        live = Live(Group(header, bars) if header else bars, console=self.console, transient=True, refresh_per_second=8)
        with suppress(RuntimeError):  # no thread to draw it: the work goes on without
            live.start()
        self._open = (live, bars)
        try:
            yield bars
        finally:
            self._open = None
            live.stop()


class _Header:
    """A step's line while it is at work: a spinner, its name, its time so far."""

    def __init__(self, title: str, about: str) -> None:
        from rich.spinner import Spinner

        self.title, self.about, self.begun = title, about, time.monotonic()
        self.spinner = Spinner("dots")

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        passed = int(time.monotonic() - self.begun)
        clock = (
            f"{passed // 3600}:{passed // 60 % 60:02}:{passed % 60:02}"
            if passed >= 3600
            else f"{passed // 60}:{passed % 60:02}"
        )
        words = Text.assemble(
            (self.title, "bold"), f"  {clock}  ", (self.about, "dim"), no_wrap=True, overflow="ellipsis"
        )
        self.spinner.update(text=words)
        yield self.spinner


def for_terminal(quiet: bool = False) -> Progress:
    """Bars when stderr is a terminal, lines otherwise."""
    if quiet or not sys.stderr.isatty():
        return PlainProgress(quiet)
    return RichProgress()


# Unicode categories of what has no shape of its own, or turns text around
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # parts of words in some scripts, and of emoji


def visible(text: str) -> str:
    """Foreign text for a terminal or a page: control, direction and other shapeless characters are
    written as escapes; tab and line feed stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in "\t\n" or c in _JOINERS or unicodedata.category(c) not in _HIDDEN else repr(c)[1:-1] for c in text
    )
