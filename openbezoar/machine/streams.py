"""Standard streams that end no work: news are best effort, and a reader that went away ends a command in peace.

What a command is for goes to stdout, what it tells meanwhile to stderr. A stderr that is
closed, full or broken is given up in silence. A stdout whose reader is gone (``show | head``)
ends the command as done; one that cannot take what is written is an error of the machine.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO


class BestEffort:
    """A text stream of which a write that fails is no error; its descriptor then leads nowhere, for
    other libraries' writes too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written; says that all was."""
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As ``write``, of each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush if that can be done."""
        with self._forgiven():
            self._stream.flush()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # a ValueError of a stream that was closed
            lead_nowhere(self._stream)


def lead_nowhere(stream: TextIO) -> None:
    """Point a stream's descriptor to the null device, so that what is still in its buffer can be flushed."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
        stream.flush()


def lead_nowhere_if_broken(stream: TextIO) -> None:
    """After an error: a stream that takes nothing any more is given up, which at the interpreter's
    end would be another error.
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        lead_nowhere(stream)


@contextmanager
def standing() -> Iterator[None]:
    """All three streams are there and stderr is best effort while this is open.

    A descriptor that was closed is taken by the null device: else the next file that is opened
    would have its number, and get what other libraries write to stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:  # a lower one was closed as well
                os.dup2(opened, number)
                os.close(opened)
    before, nowhere = (sys.stdin, sys.stdout, sys.stderr), Path(os.devnull)
    sys.stdin = before[0] or nowhere.open(encoding="utf-8")
    sys.stdout = before[1] or nowhere.open("w", encoding="utf-8")
    sys.stderr = before[2] or nowhere.open("w", encoding="utf-8")
    _forgive_encodings()
    sys.stderr = BestEffort(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _forgive_encodings() -> None:
    """Bytes that are no text, typed or piped in, and a terminal without some of our characters end no command."""
    for stream, forgiven in ((sys.stdin, True), (sys.stdout, False), (sys.stderr, False)):
        if isinstance(stream, io.TextIOWrapper) and (forgiven or stream.encoding.lower() not in ("utf-8", "utf8")):
            stream.reconfigure(errors="replace" if forgiven else "backslashreplace")


def reader_is_gone(error: BaseException) -> bool:
    """Whether an error is that nobody reads stdout any more. What is left to be written to it is dropped then."""
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    with suppress(OSError, ValueError):
        poll.register(sys.stdout.fileno(), 0)  # an end that is gone is told unasked
        if poll.poll(0):
            lead_nowhere(sys.stdout)
            return True
    return False
