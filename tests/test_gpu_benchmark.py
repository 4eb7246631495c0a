"""The first minutes on a GPU, rehearsed: what is told of parts that fail or hang, and every part at work on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.common import MARK
from benchmarks.gpu import PARTS, Part, run_all, run_part, summary
from benchmarks.gpu_counts import kept_bytes
from benchmarks.gpu_models import Found, Place, off
from benchmarks.gpu_parts import WORK
from benchmarks.gpu_right import dense
from openbezoar.forest import TokenPath
from openbezoar.forest.layout import lay_out

POPEN = subprocess.Popen
TELLS = "import sys, time; from benchmarks.common import answer; {}"


def replaced(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Workers that run some code in place of a part."""

    def started(command: list[str], **settings: Any) -> Any:
        return POPEN([sys.executable, "-c", TELLS.format(code), command[-1]], **settings)

    monkeypatch.setattr(subprocess, "Popen", started)


def test_every_part_has_its_work_and_limits_above_its_estimate() -> None:
    assert {part.name for part in PARTS} == set(WORK)
    assert all(0 < part.seconds < part.limit for part in PARTS)
    assert sum(part.seconds for part in PARTS) <= 9 * 60


def test_a_part_that_dies_or_hangs_is_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("device", 1, 2, "")
    replaced(monkeypatch, "sys.exit('no memory left')")
    died = run_part(part, "cuda", True, 60)
    assert (died["ok"], died["why"]) == (False, "ended with code 1: no memory left")
    replaced(monkeypatch, "time.sleep(60)")
    hung = run_part(part, "cuda", True, 0.5)
    assert (hung["ok"], hung["why"]) == (False, "not done in 0 s")
    replaced(monkeypatch, "answer({'ok': True, 'why': ''}); time.sleep(60)")
    late = run_part(part, "cuda", True, 3)
    assert (late["ok"], late["why"]) == (False, "not done in 3 s"), "what answered and does not end hangs too"


def test_lines_come_at_once_and_what_there_is_no_time_for_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "gpu.json"
    seen: list[int] = []

    def worked(part: Part, device: str, tiny: bool, limit: float) -> dict[str, Any]:
        seen.append(len(json.loads(out.read_text())["parts"]) if out.is_file() else 0)
        return {"name": part.name, "ok": True, "limit": limit}

    monkeypatch.setattr(gpu, "run_part", worked)
    parts = [Part("device", 1, 60, ""), Part("sft", 400, 500, ""), Part("dpo", 2, 60, "")]
    result = run_all(parts, "cpu", False, 1, out)
    assert seen == [0, 1], "the file is written after each part"
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["device", "dpo"]
    assert result["skipped"] == ["sft"]
    assert result["verdict"] == {"correct": None, "fast": None}, "not known while a part was skipped"
    assert json.loads(out.read_text()) == result


def test_the_verdict_is_wrong_if_one_part_is_and_unknown_if_nothing_ran() -> None:
    good, bad, unable = {"name": "a", "ok": True}, {"name": "b", "ok": False}, {"name": "c", "ok": None}
    missed = {"name": "d", "ok": True, "targets": {"x": {"met": True}, "y": {"met": False}}}
    assert summary([good, unable], [], None)["verdict"] == {"correct": True, "fast": None}
    assert summary([good, bad], ["z"], None)["verdict"]["correct"] is False
    assert summary([unable], [], None)["verdict"]["correct"] is None
    assert summary([good, missed], [], None)["verdict"] == {"correct": True, "fast": False}


def test_a_part_without_a_check_or_with_one_that_is_no_number_is_not_right() -> None:
    found = Found()
    assert not found.line()["ok"]
    found.at_most("a", 1.0, 1.0)
    assert found.line()["ok"]
    found.at_most("b", float("nan"), 1.0)
    assert (found.line()["ok"], found.line()["why"]) == (False, "wrong: b")


def test_without_a_gpu_the_parts_say_that_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = gpu_parts.work("sft", "cuda", False)
    assert line["ok"] is None
    assert "no GPU" in line["why"]


def test_the_dense_mask_of_a_tree_is_each_path_s_own_causal_mask() -> None:
    paths = [TokenPath.of((5, 6, 7), (8, 9)), TokenPath.of((5, 6), (3, 4, 5))]
    layout = lay_out([tuple(paths)], torch.device("cpu"))
    seen = dense(layout, None)
    for place in layout.places:
        assert seen[place][:, place].equal(torch.ones(len(place), len(place)).tril().bool())
    assert int(seen.sum()) == 1 + 2 + 2 * (3 + 4), "two tokens in common, two of each path's own"
    near = dense(layout, 2)
    assert int(near.sum()) == 1 + 2 + 2 * (2 + 2)


def test_kept_bytes_are_those_of_what_autograd_saves() -> None:
    layer = torch.nn.Linear(8, 4, bias=False)
    x = torch.randn(16, 8)
    with kept_bytes(layer) as kept:
        (layer(x) * 2).exp().sum()
    assert kept == [4 * (16 * 8 + 16 * 4)], "the layer's input and exp's result, not the weight"


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_off_is_relative_to_the_greatest_value(value: float) -> None:
    assert off(torch.tensor([value, 4.0]), torch.tensor([value, 5.0])) == pytest.approx(0.2)


def test_a_wrong_kernel_makes_its_part_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from openbezoar.forest import attention

    right = attention._segments

    def shifted(*given: Any) -> torch.Tensor:
        return 1.01 * right(*given)

    monkeypatch.setattr(attention, "_segments", shifted)
    found = WORK["attention"](Place(torch.device("cpu"), True)).line()
    assert found["ok"] is False
    assert "segments torch.float32" in found["why"]


@pytest.mark.slow
def test_a_part_in_an_interpreter_of_its_own_tells_its_line() -> None:
    ended = gpu._started(json.dumps({"part": "attention", "device": "cpu", "tiny": True}), 600)
    assert (ended.code, ended.out.count(MARK)) == (0, 1), ended.err
    assert json.loads(ended.out.partition(MARK)[2])["ok"] is True


@pytest.mark.slow
def test_all_parts_run_on_a_cpu_and_are_right(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--json", str(out)],
        cwd=gpu.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(out.read_text())
    wrong = [(part["name"], part["why"]) for part in result["parts"] if not part["ok"]]
    assert (told.returncode, wrong) == (0, [])
    assert [json.loads(line)["name"] for line in told.stdout.splitlines()] == [part.name for part in PARTS]
    assert result["verdict"]["correct"] is True
    parts = {part["name"]: part for part in result["parts"]}
    assert parts["counters"]["numbers"]["crossings_a_pass"] > 0
    assert {row["setting"]["side"] for row in parts["sft"]["rows"]} == {"ours", "plain loop"}
    assert all(part["checks"] for part in parts.values())
