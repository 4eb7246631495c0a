"""What can go wrong through no fault of this program.

UserError            the user can mend it: one line, exit 2, no traceback
├── RecipeError      the recipe's text: a misspelt key, an unknown step, a cycle
├── DataError        a file of rows: missing, empty, a row without its fields
│   └── RowError     one row's text is not what its field promises; rows read in bulk are dropped and counted
├── ModelError       a model that cannot be found, read or used
└── RunError         a run folder that is locked or does not hold what was asked for

Every message says what is wrong, where, what was expected and what to do. What a user gave
is shown in it by ``shown``, which cuts before it writes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any

SHOWN = 300  # characters of a library's message that a line quotes


class UserError(Exception):
    """A mistake the user can mend; the command line prints it as one line and exits with 2."""


class RecipeError(UserError):
    """The recipe does not say something that can be run."""


class DataError(UserError):
    """Rows cannot be read, or lack what the step needs."""


class RowError(DataError):
    """One row's text is not what its field promises. ``reason`` is what such rows are counted under."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ModelError(UserError):
    """A model reference leads nowhere, or to something that cannot be used."""


class RunError(UserError):
    """A run folder is in use, or lacks what was asked for."""


class BudgetError(UserError):
    """What a step or a run may spend on models is spent. What was answered is kept."""


def brief(error: BaseException) -> str:
    """A library's exception as a few words for one line: its type and the beginning of its message."""
    text = " ".join(str(error)[: 10 * SHOWN].split())
    return f"{type(error).__name__}: {text[:SHOWN]}{'…' * (len(text) > SHOWN)}" if text else type(error).__name__


# ------------------------------------------------------------------ values in messages


class _Short(reprlib.Repr):
    """``repr`` that takes a bounded time and length, whatever a value holds and however deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxset = 2, 4, 6, 6, 6
        self.maxstring, self.maxlong, self.maxother = 120, 40, 120

    def repr_int(self, x: int, level: int) -> str:
        return "a number of thousands of digits" if abs(x).bit_length() > 10_000 else super().repr_int(x, level)  # type: ignore[attr-defined, no-any-return]


_short = _Short()


def shown(value: Any) -> str:
    """A value as it is written in Python, for a message; long ones are cut before they are written out."""
    return _short.repr(value)


def named(value: Any) -> str:
    """An id or a key for a message: its text, cut if it is long."""
    text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that a misspelt one is most like; None if it is like none of them."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``closest`` as a question for a message; "" if there is none."""
    return f"did you mean '{close}'?" if (close := closest(name, known)) else ""


def fields_of(row: Iterable[Any]) -> str:
    """The names of a row's fields, for a message."""
    return ", ".join(named(name) for name in list(row)[:8]) or "none"
