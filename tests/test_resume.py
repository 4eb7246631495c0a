"""What a killed training goes on from is taken up as it was written, or not at all."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from openbezoar.errors import RunError
from openbezoar.store.files import write_json
from openbezoar.store.manifests import read_sealed, sealed
from openbezoar.training.loop import _truncated
from openbezoar.training.resume import State, save_sealed


def state(value: float) -> Any:
    parameter = torch.nn.Parameter(torch.full((4, 3), value))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return State({"a": parameter}, optimizer, torch.amp.GradScaler("cpu", enabled=False), step=2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n')
    (tmp_path / "heldout.jsonl").write_text('{"step": 0, "loss": 3.0}\n')
    state(1.0).save(tmp_path / ".resume.safetensors", [tmp_path / "metrics.jsonl", tmp_path / "heldout.jsonl"])
    return tmp_path / ".resume.safetensors"


def test_a_checkpoint_comes_back_as_it_was(saved: Path) -> None:
    taken, before = state(7.0), state(1.0)
    taken.step = 0
    taken.restore(saved)
    assert taken.step == 2 and torch.equal(taken.parameters["a"], before.parameters["a"])
    assert sorted(p.name for p in saved.parent.iterdir()) == [".resume.safetensors", "heldout.jsonl", "metrics.jsonl"]


def test_a_bit_of_a_checkpoint_that_flips_is_one_line(saved: Path) -> None:
    whole, rng = saved.read_bytes(), random.Random(3)
    for place in (0, 9, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(60))):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(RunError, match="delete it and run again: the training begins anew") as caught:
            state(7.0).restore(saved)
        assert "\n" not in str(caught.value)
    saved.write_bytes(whole[:-20])
    with pytest.raises(RunError, match="begins anew"):
        state(7.0).restore(saved)


@pytest.mark.parametrize("log", ["metrics.jsonl", "heldout.jsonl"])
@pytest.mark.parametrize("change", ["flipped", "cut", "gone"])
def test_logs_that_are_not_the_checkpoint_s_are_one_line(log: str, change: str, saved: Path) -> None:
    file = saved.parent / log
    text = file.read_text()
    file.write_text(text.replace("3.0", "3.1").replace("2.25", "2.26") if change == "flipped" else text[:-2])
    if change == "gone":
        file.unlink()
    with pytest.raises(RunError, match=f"{log}: not the log that belongs to .resume.safetensors"):
        state(7.0).restore(saved)


def test_lines_after_the_checkpoint_may_be_there_or_spoilt(saved: Path) -> None:
    log = saved.parent / "metrics.jsonl"
    with log.open("ab") as lines:
        lines.write(b'{"step": 3, "loss": 2.0}\n\x00\x00\n{"st\xff": 4}\n[3]\n{"step": 5')
    state(7.0).restore(saved)
    assert [line["step"] for line in _truncated(log, 2)] == [1, 2]
    assert log.read_text() == '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n'


def test_scores_that_a_killed_evaluation_kept_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    write_json(file, sealed({"scores": {"a": 0.5, "b": float("nan")}}))
    assert read_sealed(file, "scores", "run again")["scores"]["a"] == 0.5
    file.write_text(file.read_text().replace("0.5", "0.6"))
    with pytest.raises(RunError, match=r"changed since it was written .*; run again"):
        read_sealed(file, "scores", "run again")
    file.write_text(json.dumps({"scores": {}}))
    with pytest.raises(RunError):
        read_sealed(file, "scores", "run again")


def test_equal_contents_are_equal_files(tmp_path: Path) -> None:
    for n in range(8):  # as often as an order by chance would show
        save_sealed(
            tmp_path / f"{n}.safetensors",
            {"a": torch.ones(3), "b": torch.zeros(2)},
            {"key": "k", "step": "2", "more": "m"},
        )
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
