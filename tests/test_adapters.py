"""Adapters whose update is not what merging computes are refused by name, when they are put on a
model and when they are merged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_shards import checkpoint, save_adapter

from openbezoar.errors import ModelError
from openbezoar.models.files.adapter_file import CONFIG, WEIGHTS
from openbezoar.models.load import load_base, load_for_inference
from openbezoar.models.shards import weights_of

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny, tmp_path_factory.mktemp("adapters") / "one", 1, ("q_proj", "down_proj"))


def setting(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changed))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return edit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (setting(use_dora=True), "with use_dora cannot"),
        (setting(rank_pattern={"q_proj": 8}), "with rank_pattern cannot"),
        (setting(alpha_pattern={"q_proj": 8}), "with alpha_pattern cannot"),
        (setting(fan_in_fan_out=True), "with fan_in_fan_out cannot"),
        (setting(bias="all"), "with bias cannot"),
        (setting(lora_bias=True), "with lora_bias cannot"),
        (setting(modules_to_save=["lm_head"]), "with modules_to_save cannot"),
        (setting(trainable_token_indices=[5]), "with trainable_token_indices cannot"),
        (setting(target_parameters=["mlp.experts"]), "with target_parameters cannot"),
        (setting(layer_replication=[[0, 1]]), "with layer_replication cannot"),
        (setting(init_lora_weights="pissa"), "with init_lora_weights cannot"),
        (setting(a_setting_of_tomorrow={"x": 1}), "with a_setting_of_tomorrow cannot"),
        (setting(peft_type="IA3"), "adapter of kind IA3"),
        (setting(r="4"), "r '4' and lora_alpha"),
        (setting(r=8), "says rank 8"),
        (tensors(lambda held: held.pop(f"{Q}.lora_B.weight")), "q_proj.lora_A.weight' has no other half"),
        (tensors(lambda held: held.pop(f"{Q}.lora_A.weight")), "q_proj.lora_B.weight' has no other half"),
        (
            tensors(lambda held: held.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)})),
            "'base_model.model.lm_head.weight' is no LoRA weight",
        ),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 40), "an adapter's weights expected"),
    ],
)
def test_what_would_make_another_sum_is_refused_by_name(
    tiny: Path, adapter: Path, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    change(folder)
    for use in (
        lambda: weights_of(tiny, torch.float32, torch.device("cpu"), older=(), last=folder),
        lambda: load_for_inference(checkpoint(tiny, (folder,), "none", "float32")),
    ):
        with pytest.raises(ModelError, match=said) as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            tensors(lambda held: [held.pop(f"{Q}.lora_{part}.weight") for part in "AB"]),
            "has no update of 'model.layers.0.self_attn.q_proj'",
        ),
        (setting(target_modules=["q_proj"]), "has an update of 'model.layers.0.mlp.down_proj', which the model with"),
        (tensors(lambda held: held.update({f"{Q}.lora_B.weight": torch.zeros(32, 4)})), "belongs to another model"),
    ],
)
def test_an_adapter_has_an_update_for_each_layer_that_carries_it(
    tiny: Path, adapter: Path, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    change(folder)
    with pytest.raises(ModelError, match=said):
        load_for_inference(checkpoint(tiny, (folder,), "none", "float32"))


def test_an_older_adapter_of_another_shape_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    tensors(lambda held: held.update({f"{Q}.lora_B.weight": torch.zeros(32, 4)}))(folder)
    with pytest.raises(
        ModelError, match=r"an update of \[32, 64\] for 'model.layers.0.self_attn.q_proj.weight', which is \[64, 64\]"
    ):
        load_base(checkpoint(tiny), (folder,), "none", dtype="float32")


def test_an_adapter_as_it_was_trained_is_read_the_same_both_ways(tiny: Path, adapter: Path) -> None:
    ids = torch.tensor([[5, 9, 13, 21, 34]])
    unmerged, _ = load_for_inference(checkpoint(tiny, (adapter,), "none", "float32"))
    merged: Any = load_base(checkpoint(tiny), (adapter,), "none", dtype="float32")
    with torch.no_grad():
        assert torch.allclose(unmerged(ids).logits, merged(ids).logits, atol=1e-5)
