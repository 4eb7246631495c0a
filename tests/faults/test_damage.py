"""Any file of a finished run damaged at random: the run mends it, or says so in one line; no result is silently another one."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import every_verb
import pytest
from warm import Commands, Done

from openbezoar.llm.calls import FILE

DAMAGES = int(os.environ.get("OPENBEZOAR_FAULTS", "12"))
SHARE_OF_CACHE = 0.15  # of the damages, done to the call cache rather than to a step's files
ALLOWED = (0, 2)


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    made = Commands()
    yield made
    made.close()


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
    return draw.choice([b"[]", b"{}", b"null", b"7", b'"x"', b"[" * 100_000, b'{"key": ' + b"9" * 5000 + b"}", b"\xff\xfe{}", b'{"\xed\xa0\x80": 1}'])


KINDS: list[Callable[[bytes, random.Random], bytes]] = [flip, flip, cut, grow, without_a_line, other_types, lambda content, draw: b""]


def results(run: Path) -> dict[str, Any]:
    """What must not become another: rows, adapters, weights, and scores without the times in them."""
    found: dict[str, Any] = {}
    for file in run.rglob("*"):
        if file.name in ("rows.jsonl", "adapter_model.safetensors", "model.safetensors", "train.parquet", "answers.jsonl"):
            found[str(file.relative_to(run))] = file.read_bytes()
        elif file.name == "scores.json":
            found[str(file.relative_to(run))] = json.loads(file.read_text())
    return found


def told(done: Done, what: str) -> None:
    """No traceback, an allowed exit code, one line where it is not 0."""
    assert "Traceback" not in done.err + done.out, (what, done.err[-2000:])
    assert done.code in ALLOWED, (what, done.code, done.err[-2000:])
    if done.code == 2:
        assert [line for line in done.err.splitlines() if line.startswith("openbezoar: ")], (what, done.err[-2000:])


@pytest.mark.parametrize("number", range(DAMAGES))
def test_a_damaged_file_is_mended_or_told(number: int, commands: Commands, finished: Path, tmp_path: Path) -> None:
    draw = random.Random(number)
    runs = tmp_path / "runs"
    shutil.copytree(finished / "runs", runs)  # times of change are kept, so that undamaged files are known again
    run = runs / "t"
    if draw.random() < SHARE_OF_CACHE:
        target = runs / FILE
        for step in ("made", "kept", "talks"):  # so that the answers are read again
            shutil.rmtree(run / step)
    else:
        target = draw.choice(sorted(file for file in run.rglob("*") if file.is_file()))
        step = target.relative_to(run).parts[0]
        if draw.random() < 0.5 and step in every_verb.STEPS:  # what comes after it is made again from it
            for later in list(every_verb.STEPS)[list(every_verb.STEPS).index(step) + 1 :]:
                shutil.rmtree(run / later, ignore_errors=True)
    kind = draw.choice(KINDS)
    before = target.read_bytes()
    target.write_bytes(kind(before, draw))
    what = f"{getattr(kind, '__name__', kind)} of {target.relative_to(runs)}"
    done = commands("run", str(finished / "recipe.yaml"), "--runs", str(runs), "--quiet")
    told(done, what)
    for command in (["show", str(run)], ["plan", str(finished / "recipe.yaml"), "--runs", str(runs)]):
        told(commands(*command), f"{what}, then {command[0]}")
    if done.code == 0:
        expected, found = results(finished / "runs/t"), results(run)
        assert sorted(found) == sorted(expected), what
        for name in expected:
            assert found[name] == expected[name], f"{what}: {name} is another"
