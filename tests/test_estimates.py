"""Estimates before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openbezoar import graph
from openbezoar.estimates import estimate, learn, learnt_rates
from openbezoar.memory import lora_parameters, parameters, training_memory
from openbezoar.recipe import LocalModel, Sft, load

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path / "cache"))


def test_the_paper_s_model_has_its_known_number_of_parameters() -> None:
    base = load(ROOT / "recipes/openbezoar-3b.yaml").models["base"]
    assert isinstance(base, LocalModel) and base.shape is not None
    linear, outer = parameters(base.shape)
    norms = (26 * 2 + 1) * 3200
    assert linear == 3_221_504_000
    assert linear + outer + norms == 3_426_473_600
    assert lora_parameters(base.shape, Sft(sft="x", model="base")) == 7_987_200


def test_nf4_takes_less_memory_than_16_bits_and_longer_passes_take_more() -> None:
    base = load(ROOT / "recipes/openbezoar-3b.yaml").models["base"]
    assert isinstance(base, LocalModel) and base.shape is not None
    nf4, plain = (training_memory(base.shape, Sft(sft="x", model="base", quantize=q)).peak for q in ("nf4", "none"))  # type: ignore[arg-type]
    # 3.22e9 linear weights at 16 against 4.127 bits.
    assert plain - nf4 == pytest.approx(3_221_504_000 * (16 - 4.127) / 8, rel=1e-6)
    assert training_memory(base.shape, Sft(sft="x", model="base", tokens=4096)).peak > nf4


def test_the_paper_s_recipe_is_priced_without_a_download(tmp_path: Path) -> None:
    path = ROOT / "recipes/openbezoar-3b.yaml"
    made = estimate(graph.build(load(path), path, tmp_path))
    assert made["hh-sft"].rows == 100_000
    assert (made["lamini-kept"].money or 0) > 1
    assert (made["answers"].money or 0) > 1
    assert made["dpo"].memory_bytes is not None and 3e9 < made["dpo"].memory_bytes < 24e9
    assert not list(tmp_path.rglob("*.safetensors"))


def test_rates_learnt_from_a_run_replace_the_assumed_ones(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe({"a": {"sft": "rows.jsonl", "model": "base"}})
    built = graph.build(load(path), path, tmp_path / "runs")
    before = estimate(built)["a"]
    assert before.assumed and before.flops and before.seconds
    (tmp_path / "runs/t/a").mkdir(parents=True)
    (tmp_path / "runs/t/a/manifest.json").write_text(json.dumps({"key": "k", "seconds": 4.0, "verb": "sft"}))
    learn(built, [])
    assert learnt_rates() == {}
    learn(built, ["a"])
    assert learnt_rates() == {"sft": before.flops / 4.0}
    after = estimate(built)["a"]
    assert not after.assumed
    assert after.seconds == pytest.approx(4.0)
