"""Any file of a finished run damaged at random: ``verify`` finds it, and every command that looks
at the run says what it can, or one line.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import every_verb
import pytest
from warm import Commands, Done

from openbezoar.llm.calls import FILE

DAMAGES = int(os.environ.get("OPENBEZOAR_FAULTS", "1"))
SHARE_OF_CACHE = 0.15  # of the damages, done to the call cache rather than to a step's files
ALLOWED = (0, 2)


@pytest.fixture(scope="module")
def finished(commands: Commands, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, and in runs/t its finished run."""
    folder = tmp_path_factory.mktemp("damage")
    done = commands("run", str(every_verb.write(folder, tiny)), "--runs", str(folder / "runs"), "--quiet")
    assert done.code == 0, done.err
    return folder


def flip(content: bytes, draw: random.Random) -> bytes:
    place, changed = draw.randrange(max(1, len(content))), bytearray(content or b"\0")
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(max(1, len(content)))]


def grow(content: bytes, draw: random.Random) -> bytes:
    return content + draw.randbytes(draw.randrange(1, 40))


def without_a_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    if lines:
        del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def other_types(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(
        [
            b"[]",
            b"{}",
            b"null",
            b"7",
            b'"x"',
            b"[" * 100_000,
            b'{"key": ' + b"9" * 5000 + b"}",
            b"\xff\xfe{}",
            b'{"\xed\xa0\x80": 1}',
        ]
    )


KINDS: list[Callable[[bytes, random.Random], bytes]] = [
    flip,
    flip,
    cut,
    grow,
    without_a_line,
    other_types,
    lambda content, draw: b"",
]


def told(done: Done, what: str) -> None:
    """No traceback, an allowed exit code, one line where it is not 0."""
    assert "Traceback" not in done.err + done.out, (what, done.err[-2000:])
    assert done.code in ALLOWED, (what, done.code, done.err[-2000:])
    if done.code == 2:
        assert [line for line in done.err.splitlines() if line.startswith("openbezoar: ")], (what, done.err[-2000:])


@pytest.mark.parametrize("number", range(DAMAGES))
def test_a_damaged_file_is_found_and_every_command_that_looks_ends_in_words(
    number: int, commands: Commands, finished: Path, tmp_path: Path
) -> None:
    draw = random.Random(number)
    runs = tmp_path / "runs"
    shutil.copytree(finished / "runs", runs)
    run = runs / "t"
    in_cache = draw.random() < SHARE_OF_CACHE
    target = (
        runs / FILE
        if in_cache
        else draw.choice(sorted(file for file in run.rglob("*") if file.is_file() and not file.name.startswith(".")))
    )
    kind, before = draw.choice(KINDS), target.read_bytes()
    target.write_bytes(kind(before, draw))
    what = f"{getattr(kind, '__name__', kind)} of {target.relative_to(runs)}"
    verified = commands("verify", str(run))
    told(verified, what)
    is_result = not in_cache and target.relative_to(run).parts[0] in every_verb.STEPS
    assert not is_result or target.read_bytes() == before or verified.code == 2, f"{what} was not found: {verified.out}"
    looks = (
        ("plan", str(finished / "recipe.yaml"), "--runs", str(runs)),
        ("show", str(run)),
        ("report", str(run), "--out", str(tmp_path / "report")),
        ("cache", "--runs", str(runs)),
        ("review", str(run), "kept"),
        ("chat", str(run / draw.choice(["sft", "SFT", "dpo", "DPO"])), "--prompt", "Hi", "--max-new-tokens", "3"),
        ("run", str(finished / "recipe.yaml"), "--runs", str(runs), "--to", "kept", "--quiet"),
    )
    for look in looks:
        told(commands(*look), f"{what}, then {look[0]}")
