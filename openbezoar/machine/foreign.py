"""Files that came from elsewhere: whatever a library raises about one becomes one line. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openbezoar.errors import ModelError, UserError, brief
from openbezoar.machine import limits


@contextmanager
def foreign_file(path: Path | str, expected: str, remedy: str, *, kind: type[UserError] = ModelError) -> Iterator[None]:
    """What is raised while a file from elsewhere is read, as one line about that file.

    A damaged file can make a library raise anything at all, so every Exception counts. Not
    turned are refusals of the machine (no memory, a failing disk), packages that are missing
    or broken, and lines that say it already.
    """
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        if limits.refusal(error) is not None:
            raise
        raise kind(f"{path}: {expected} expected, but it cannot be read ({brief(error)}); {remedy}") from None
