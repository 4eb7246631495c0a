"""Image-text wrappers: the text model inside is what is trained, merged and released."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST
from safetensors.torch import load_file, save_file
from test_model_checks import main_ends
from test_stored_weights import base, copied, edit

from openbezoar.engine import graph
from openbezoar.errors import ModelError
from openbezoar.models.files import checks as model_checks
from openbezoar.models.files.towers import TEXT, WRAPPERS
from openbezoar.models.load import load_base
from openbezoar.models.references import fetch
from openbezoar.models.shapes import shape_of_model
from openbezoar.recipe.file import load

TEXT_OF = {"gemma3": "gemma3_text", "llava": "llama", "mistral3": "mistral"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path / "cache"))


def wrapper(kind: str, tiny: Path, out: Path) -> tuple[Path, Any]:
    """A tiny random wrapper with a vision tower of its own, saved beside a tokenizer."""
    from transformers import AutoModelForImageTextToText, Gemma3Config, LlavaConfig, Mistral3Config

    size = json.loads((tiny / "config.json").read_text())
    text: dict[str, Any] = {
        key: size[key]
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        )
    }
    text |= {
        "model_type": TEXT_OF[kind],
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    made: Any = {
        "gemma3": lambda: Gemma3Config(
            text_config={**text, "sliding_window": 16},
            vision_config={**vision, "model_type": "siglip_vision_model"},
            mm_tokens_per_image=4,
            **ids,
        ),
        "llava": lambda: LlavaConfig(
            text_config=text, vision_config={**vision, "model_type": "clip_vision_model"}, **ids
        ),
        "mistral3": lambda: Mistral3Config(
            text_config=text, vision_config={**vision, "model_type": "pixtral", "head_dim": 8}, **ids
        ),
    }[kind]()
    torch.manual_seed(4)
    model = AutoModelForImageTextToText.from_config(made).eval()
    folder = copied(tiny, out)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("names", ["old", "new"])
def test_for_text_the_inner_model_says_what_the_wrapper_says(kind: str, names: str, tiny: Path, tmp_path: Path) -> None:
    folder, theirs = wrapper(kind, tiny, tmp_path / "model")
    if names == "new":  # as transformers calls them in memory; files have either
        save_file(
            {
                name: value.contiguous()
                for name, value in theirs.state_dict().items()
                if name != "lm_head.weight" or kind == "llava"
            },
            folder / "model.safetensors",
        )
    ours: Any = load_base(base(folder), (), "none", dtype="float32")
    assert type(ours).__name__ == TEXT[TEXT_OF[kind]] and not [name for name in ours.state_dict() if "vision" in name]
    ids = torch.randint(3, 400, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, theirs(input_ids=ids).logits, atol=1e-5)
    (notice,) = model_checks.check(folder)
    assert "the text model alone is used and released" in notice


def test_a_wrapper_is_trained_merged_and_released_as_its_text_model(
    tiny: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM

    folder, _ = wrapper("gemma3", tiny, tmp_path / "model")
    steps = {
        "a": {
            "sft": "rows.jsonl",
            "model": "base",
            "max_steps": 2,
            "quantize": "none",
            **{**FAST, "lora": {"r": 4, "targets": ["q_proj", "up_proj"]}},
        },
        "m": {"merge": "a", "drift_rows": 2},
        "r": {"release": ["m"], "gguf": []},
    }
    recipe = write_recipe(steps, models={"base": {"model": str(folder), "dtype": "float32"}})
    planned = graph.build(load(recipe), recipe, tmp_path / "runs")
    shape = shape_of_model(planned.recipe, planned.recipe_path.parent, "a")
    assert shape is not None and shape.hidden == 64  # what plan counts memory by
    main_ends(["run", str(recipe), "--runs", str(tmp_path / "runs"), "--quiet"], 0)
    run = tmp_path / "runs/t"
    adapted = load_file(run / "a/adapter/adapter_model.safetensors")
    assert len(adapted) == 2 * 2 * 2 and all(name.startswith("base_model.model.model.layers.") for name in adapted)
    assert json.loads((run / "m/manifest.json").read_text())["numbers"]["kl"] < 1e-3
    released = json.loads((run / "r/m/config.json").read_text())
    assert (
        released["model_type"] == "gemma3_text"
        and released["architectures"] == ["Gemma3ForCausalLM"]
        and "vision_config" not in released
    )
    model, info = AutoModelForCausalLM.from_pretrained(run / "r/m", output_loading_info=True)
    assert type(model).__name__ == "Gemma3ForCausalLM" and not info["missing_keys"] and not info["unexpected_keys"]


def test_a_wrapper_that_is_not_known_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    folder, _ = wrapper("llava", tiny, tmp_path / "model")
    edit(folder, model_type="qwen2_5_vl", architectures=["Qwen2_5_VLForConditionalGeneration"])
    with pytest.raises(
        ModelError, match=r"'qwen2_5_vl' \(Qwen2_5_VLForConditionalGeneration\) has parts beside its text model"
    ):
        fetch(str(folder))
