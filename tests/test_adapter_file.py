"""An adapter that does not fit its own description is one line, before it is trained on or merged."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from openbezoar.errors import ModelError
from openbezoar.models.files.adapter_file import CONFIG, WEIGHTS, read_adapter
from openbezoar.models.shards import adapter_deltas

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / CONFIG).write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    save_file({f"{Q}.lora_A.weight": torch.ones(4, 6), f"{Q}.lora_B.weight": torch.ones(5, 4)}, tmp_path / WEIGHTS)
    return tmp_path


def test_an_adapter_is_read(adapter: Path) -> None:
    assert (
        read_adapter(adapter)[0]["r"] == 4 and adapter_deltas(adapter)[Q.removeprefix("base_model.model.")].scale == 2
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 8, "lora_alpha": 8}, "lora_A.weight' is [4, 6], but adapter_config.json beside it says rank 8"),
        ({"r": 0, "lora_alpha": 8}, "expected a whole number from 1"),
        ({"r": True, "lora_alpha": 8}, "expected a whole number from 1"),
        ({"r": 4, "lora_alpha": float("nan")}, "expected a whole number from 1 and a number"),
        ({"r": 4, "lora_alpha": "8"}, "expected a whole number from 1 and a number"),
        ({"r": 4}, "KeyError: 'lora_alpha'"),
        ([], "an adapter's config expected"),
        ("[" * 100_000, "an adapter's config expected"),
        (b"\xff", "an adapter's config expected"),
    ],
)
def test_a_config_that_is_none_or_another_s_is_one_line(config: Any, said: str, adapter: Path) -> None:
    content = (
        config if isinstance(config, bytes) else (config if isinstance(config, str) else json.dumps(config)).encode()
    )
    (adapter / CONFIG).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        adapter_deltas(adapter)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_half_an_adapter_is_one_line(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "lora_A" in name}, adapter / WEIGHTS)
    with pytest.raises(ModelError, match="has no other half"):
        adapter_deltas(adapter)
    save_file({name: tensor.reshape(-1) for name, tensor in tensors.items()}, adapter / WEIGHTS)
    with pytest.raises(ModelError, match="says rank 4"):
        adapter_deltas(adapter)


def test_damaged_weights_are_one_line_or_read(adapter: Path) -> None:
    whole, rng = (adapter / WEIGHTS).read_bytes(), random.Random(2)
    for n in range(200):
        place = rng.randrange(len(whole))
        (adapter / WEIGHTS).write_bytes(
            whole[:place] if n % 4 == 0 else whole[:place] + rng.randbytes(1) + whole[place + 1 :]
        )
        try:
            adapter_deltas(adapter)
        except ModelError as error:
            assert "\n" not in str(error)
