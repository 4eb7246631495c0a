"""What a step leaves to the device's memory: which choices that makes, and that values and gradients do not depend on
the number of layers that are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openbezoar.engine import graph
from openbezoar.forest import Scorer, TokenPath, Tree
from openbezoar.machine.devices import CARDS, Device, device_named
from openbezoar.models import load
from openbezoar.models.fitting import recomputed_layers, room_of, settled, training_memory
from openbezoar.models.memory import memory_of
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec, Shape
from openbezoar.recipe.file import load as load_recipe
from openbezoar.recipe.train_steps import Dpo, Lora, Sft
from openbezoar.training import checkpointing
from openbezoar.training.objectives import sft_objective

PAPER = Shape(hidden=3200, layers=26, heads=32, mlp=8640, vocabulary=32_000)
LARGE = Shape(hidden=5120, layers=40, heads=40, mlp=13_824, vocabulary=32_000)  # of 13B
CPU = Device("cpu", "CPU", 64_000_000_000)


def sft(**settings: Any) -> Sft:
    return Sft(sft="x", model="base", **settings)


def test_tokens_of_a_pass_grow_with_the_memory_and_nothing_is_recomputed_for_them() -> None:
    found = {name: settled(sft(), PAPER, CARDS[name]) for name in ("rtx3060", "t4", "rtx4090", "h100")}
    assert {name: step.tokens for name, step in found.items()} == {
        "rtx3060": 2048,
        "t4": 4096,
        "rtx4090": 4096,
        "h100": 16_384,
    }
    for name, step in found.items():
        assert recomputed_layers(PAPER, step, CARDS[name]) == 0
        assert training_memory(PAPER, step, CARDS[name]).peak <= room_of(CARDS[name])
    assert settled(sft(checkpointing=True), PAPER, CARDS["t4"]).tokens == 16_384, "all are recomputed anyway"
    assert settled(sft(), PAPER, CPU).tokens == 1024
    assert settled(sft(tokens=300), PAPER, CARDS["h100"]).tokens == 300, "what the recipe says stays"
    assert settled(sft(batch=2, max_length=512), PAPER, CARDS["h100"]).tokens == 1024, "no more than an optimiser step"


def test_nf4_is_unpacked_where_long_passes_still_fit_beside_it() -> None:
    held = {name: settled(sft(), PAPER, CARDS[name]).nf4 for name in ("t4", "rtx4090", "h100")}
    assert held == {"t4": "packed", "rtx4090": "unpacked", "h100": "unpacked"}
    assert settled(sft(), LARGE, CARDS["rtx4090"]).nf4 == "packed"
    assert settled(sft(nf4="packed"), PAPER, CARDS["h100"]).nf4 == "packed"
    assert settled(sft(), PAPER, CPU).nf4 == "auto", "the loader asks for free memory"


@pytest.mark.parametrize("step", [sft(tokens=8192), Dpo(dpo="x", model="base", tokens=8192)], ids=["sft", "dpo"])
def test_as_few_layers_are_recomputed_as_bring_the_step_into_the_card(step: Sft | Dpo) -> None:
    card = CARDS["t4"]
    layers = recomputed_layers(PAPER, step, card)
    given = settled(step, PAPER, card)
    assert 0 < layers < PAPER.layers
    assert memory_of(PAPER, given, layers, card).peak <= room_of(card) < memory_of(PAPER, given, layers - 1, card).peak
    assert recomputed_layers(PAPER, step, CARDS["h100"]) == 0
    assert recomputed_layers(PAPER, step, device_named("cuda:4GB")) == PAPER.layers, "where nothing fits, all"
    assert recomputed_layers(PAPER, step, CPU) == PAPER.layers
    for asked, number in ((True, PAPER.layers), (False, 0)):
        assert recomputed_layers(PAPER, step.model_copy(update={"checkpointing": asked}), card) == number


def test_arithmetic_is_float16_where_a_card_has_no_bfloat16_and_nothing_was_asked_for() -> None:
    assert settled(sft(), PAPER, CARDS["t4"]).dtype == settled(sft(), None, CARDS["t4"]).dtype == "float16"
    assert settled(sft(), PAPER, CARDS["a100"]).dtype == "bfloat16"
    assert settled(sft(), None, replace(CPU, bfloat16=False)).dtype == "bfloat16", "a CPU has its own way"
    assert settled(sft(dtype="bfloat16"), PAPER, CARDS["t4"]).dtype == "bfloat16"


def test_what_the_device_chooses_is_in_no_key(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    def key(**settings: Any) -> str:
        path = write_recipe({"a": {"sft": "rows.jsonl", "model": "base", **settings}})
        return graph.build(load_recipe(path), path, tmp_path / "runs").nodes["a"].key

    assert key() == key(tokens="auto", dtype="auto") == key(tokens=1024, dtype="bfloat16")
    assert key(tokens=2048) != key() != key(dtype="float16")


def checkpoint(folder: Path, **changes: Any) -> Checkpoint:
    return replace(Checkpoint("base", str(folder), (), "none", "float32", PromptSpec()), **changes)


def rows() -> list[Tree]:
    drawn = torch.Generator().manual_seed(0)
    given = [torch.randint(3, 400, (24 + 7 * i,), generator=drawn).tolist() for i in range(4)]
    return [(TokenPath.of(ids[:9], ids[9:]), TokenPath.of(ids[:9], ids[14:])) for ids in given]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_the_same_bits_however_many_layers_are_recomputed(
    tiny: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout included, whose random numbers a layer draws again."""
    seen: dict[int, tuple[float, torch.Tensor]] = {}
    layers = 2
    for wanted in range(layers + 1):
        monkeypatch.setattr(checkpointing, "recomputed_layers", lambda shape, step, wanted=wanted: wanted)
        model = load.load_for_training(
            checkpoint(tiny), Lora(r=4, dropout=0.2), "none", dtype=dtype, continues=False, seed=0
        )
        assert checkpointing.apply(model, sft()) == wanted
        runs: list[int] = []
        for number, layer in enumerate(model.get_base_model().model.layers):
            layer.self_attn.register_forward_pre_hook(lambda *_, number=number, runs=runs: runs.append(number))
        scorer = Scorer(model.train())
        scorer.checked = True  # its own comparison runs the layers too
        torch.manual_seed(1)
        loss, _ = sft_objective(scorer, rows()).loss(rows(), 100.0)
        loss.backward()
        assert [runs.count(number) for number in range(layers)] == [2] * wanted + [1] * (layers - wanted)
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        seen[wanted] = float(loss.detach()), gradients
    assert float(seen[0][1].abs().max()) > 0
    assert all(seen[k][0] == seen[0][0] and torch.equal(seen[k][1], seen[0][1]) for k in seen)


def test_a_model_answers_from_packed_nf4_on_a_card_that_cannot_hold_it_unpacked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load.load_for_training(checkpoint(tiny), Lora(r=4), "nf4", dtype="float32", continues=False, seed=0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    model.save_pretrained(str(tmp_path / "adapter"))
    trained = checkpoint(tiny, adapters=(tmp_path / "adapter",), quantize="nf4")
    found = []
    for size, packed in ((80_000_000_000, False), (600_100_000, True)):
        card = Device("cuda", "a card", size)
        monkeypatch.setattr("openbezoar.models.memory.this_device", lambda card=card: card)
        answering, _ = load.load_for_inference(trained)
        assert any(type(layer).__name__ == "Linear4bit" for layer in answering.modules()) == packed
        found.append(torch.cat([path for tree in Scorer(answering).logprobs(rows()) for path in tree]))
    assert torch.allclose(found[0], found[1], atol=1e-4)
