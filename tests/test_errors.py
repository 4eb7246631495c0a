"""Foreign files' faults become one line; the machine's faults and lines of our own pass through."""

from __future__ import annotations

import errno

import pytest

from openbezoar.errors import DataError, ModelError, brief
from openbezoar.machine.foreign import foreign_file


def read(error: BaseException) -> None:
    with foreign_file("a/b.gguf", "a GGUF file", "fetch it again"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        ValueError("bad\n  header"),
        RuntimeError(),
        OSError("cannot load"),
        RecursionError("deep"),
        ZeroDivisionError(),
    ],
)
def test_whatever_a_library_raises_is_one_line_about_the_file(error: Exception) -> None:
    with pytest.raises(ModelError) as caught:
        read(error)
    text = str(caught.value)
    assert text.startswith("a/b.gguf: a GGUF file expected") and text.endswith("; fetch it again")
    assert "\n" not in text and type(error).__name__ in text


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), MemoryError(), DataError("said"), KeyboardInterrupt()]
)
def test_the_machines_faults_and_said_lines_pass_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        read(error)
    assert caught.value is error


def test_a_long_message_is_cut() -> None:
    assert len(brief(ValueError("x" * 100_000))) < 400
