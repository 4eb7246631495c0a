"""What is stored is not always the weight: bases in FP8 and in bitsandbytes' forms, other forms,
heads that are tied or not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, save_tiny_model
from safetensors.torch import load_file, save_file

from openbezoar.cli.app import main
from openbezoar.errors import ModelError
from openbezoar.models.load import load_base, load_for_inference
from openbezoar.models.references import Checkpoint, fetch
from openbezoar.models.shards import skeleton
from openbezoar.recipe.blocks import PromptSpec

IDS = torch.tensor([[5, 9, 13, 21, 34, 55, 89, 144]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def edit(folder: Path, file: str = "config.json", **changed: Any) -> Path:
    """Change keys of a JSON file; None takes a key away."""
    content = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    content = {key: value for key, value in {**content, **changed}.items() if value is not None}
    (folder / file).write_text(json.dumps(content))
    return folder


def copied(source: Path, out: Path) -> Path:
    return Path(shutil.copytree(source, out))


def restored(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def base(folder: Path) -> Checkpoint:
    return Checkpoint("base", str(folder), (), "none", "float32", PromptSpec())


def logits(folder: Path) -> torch.Tensor:
    model: Any = load_base(base(folder), (), "none", dtype="float32")
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def in_fp8(
    tiny: Path,
    out: Path,
    block: tuple[int, int | None] = (32, 32),
    method: str | None = "fp8",
    scale: str = "weight_scale_inv",
) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model whose layers are stored in e4m3 with block scales, and the weights that this stands for."""
    tensors, means = {}, {}
    for name, weight in load_file(tiny / "model.safetensors").items():
        if "_proj.weight" not in name:
            tensors[name] = means[name] = weight
            continue
        (rows, columns), (high, wide) = weight.shape, (block[0], block[1] or weight.shape[1])
        blocks = weight.reshape(rows // high, high, columns // wide, wide)
        scales = blocks.abs().amax((1, 3)) / 448  # the largest value of e4m3
        codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        tensors[name] = codes.reshape(rows, columns)
        tensors[name.removesuffix("weight") + scale] = scales
        means[name] = (codes.float() * scales[:, None, :, None]).reshape(rows, columns)
    folder = restored(copied(tiny, out), tensors)
    edit(
        folder,
        quantization_config=method
        and {
            "quant_method": method,
            "activation_scheme": "dynamic",
            **({"weight_block_size": block} if block[1] else {}),
        },
    )
    return folder, means


def in_bitsandbytes(tiny: Path, out: Path, **settings: Any) -> Path:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = AutoModelForCausalLM.from_pretrained(
        str(tiny), quantization_config=BitsAndBytesConfig(**settings), dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    quantised.save_pretrained(copied(tiny, out))
    return out


@pytest.mark.parametrize("method", ["fp8", None])
@pytest.mark.parametrize(
    ("block", "scale"), [((32, 32), "weight_scale_inv"), ((1, None), "weight_scale")], ids=["blocks", "rows"]
)
def test_fp8_with_scales_is_the_weights_that_it_stands_for(
    tiny: Path, tmp_path: Path, block: tuple[int, int | None], scale: str, method: str | None
) -> None:
    folder, means = in_fp8(tiny, tmp_path / "fp8", block, method, scale)
    made = fetch(str(folder))
    again = load_file(made / "model.safetensors")
    assert again.keys() == means.keys()
    assert all(torch.equal(again[name].float(), value.to(again[name].dtype).float()) for name, value in means.items())
    config = json.loads((made / "config.json").read_text())
    assert "quantization_config" not in config and fetch(str(folder)) == made


def test_our_fp8_arithmetic_is_transformers_own(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    folder, _ = in_fp8(tiny, tmp_path / "fp8")
    theirs = AutoModelForCausalLM.from_pretrained(
        str(folder),
        quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(32, 32)),
        dtype=torch.float32,
    )
    ours = load_file(fetch(str(folder)) / "model.safetensors")
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours[name].float(), value.to(ours[name].dtype).float()), name


@pytest.mark.parametrize(
    "settings",
    [
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        },
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.bfloat16},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_bitsandbytes_bases_are_de_quantised_by_bitsandbytes(
    tiny: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    folder = in_bitsandbytes(tiny, tmp_path / "bnb", **settings)
    theirs = AutoModelForCausalLM.from_pretrained(
        str(folder), device_map={"": "cpu"}, dtype=torch.bfloat16
    ).dequantize()
    ours = load_file(fetch(str(folder)) / "model.safetensors")
    wanted = theirs.state_dict()
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        assert ours[name].dtype == torch.bfloat16 and torch.allclose(
            ours[name].float(), value.float(), rtol=2.0**-7, atol=1e-6
        ), name


@pytest.mark.parametrize(("form", "quantize"), [("fp8", "none"), ("nf4", "nf4")])
def test_a_quantised_base_is_trained_merged_and_released_as_plain_weights(
    tiny: Path, tmp_path: Path, write_recipe: Callable[..., Path], form: str, quantize: str
) -> None:
    if form == "fp8":
        folder = in_fp8(tiny, tmp_path / "model")[0]
    else:
        folder = in_bitsandbytes(
            tiny,
            tmp_path / "model",
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    steps = {
        "a": {"sft": "rows.jsonl", "model": "base", "max_steps": 2, "quantize": quantize, **FAST},
        "m": {"merge": "a", "drift_rows": 4},
        "r": {"release": ["m"], "gguf": []},
    }
    recipe = write_recipe(steps, models={"base": {"model": str(folder), "dtype": "float32"}})
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--runs", str(tmp_path / "runs"), "--quiet"])
    assert not ended.value.code
    numbers = json.loads((tmp_path / "runs/t/m/manifest.json").read_text())["numbers"]
    assert abs(numbers["loss"] - numbers["loss_unmerged"]) < 0.01 and numbers["kl"] < 0.01
    released = tmp_path / "runs/t/r/m"
    assert not {"quantization_config", "compression_config"} & json.loads((released / "config.json").read_text()).keys()
    assert {value.dtype for value in load_file(released / "model.safetensors").values()} == {torch.bfloat16}


def gptq(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = dict(tensors)
    stem = "model.layers.0.self_attn.q_proj."
    del found[f"{stem}weight"]
    return found | {
        f"{stem}qweight": torch.zeros(8, 64, dtype=torch.int32),
        f"{stem}qzeros": torch.zeros(1, 8, dtype=torch.int32),
        f"{stem}scales": torch.ones(1, 64),
    }


def with_scale(
    name: str, dtype: torch.dtype = torch.float32
) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {**tensors, name: torch.ones(1).to(dtype)}


def cast(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: value.to(dtype) if "up_proj" in name else value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (gptq, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"says gptq\).*qweight' is stored as I32"),
        (gptq, {"compression_config": {"quantization_method": "compressed-tensors"}}, "says compressed-tensors"),
        (
            gptq,
            {"text_config": {"quantization_config": {"quant_method": "awq"}}, "architectures": None},
            "parts beside its text model",
        ),
        (gptq, {}, "weights are quantised: '.*qweight' is stored as I32"),
        (cast(torch.uint8), {"quantization_config": {"quant_method": "mxfp4"}}, "says mxfp4"),
        (cast(torch.int8), {}, "up_proj.weight' is stored as I8"),
        (cast(torch.float8_e4m3fn), {}, "stored as F8_E4M3 without scales"),
        (with_scale("model.layers.1.mlp.up_proj.weight_scale"), {}, "weight_scale' is stored as F32"),
        (with_scale("model.layers.1.mlp.up_proj.weight_packed", torch.int32), {}, "weight_packed' is stored as I32"),
    ],
)
def test_other_forms_are_refused_in_one_line_before_anything_runs(
    tiny: Path,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    config: dict[str, Any],
    said: str,
) -> None:
    folder = restored(edit(copied(tiny, tmp_path / "model"), **config), change(load_file(tiny / "model.safetensors")))
    with pytest.raises(ModelError, match=said) as error:
        fetch(str(folder))
    assert "\n" not in str(error.value)
    recipe = write_recipe({"a": {"sft": "rows.jsonl", "model": "base"}}, models={"base": {"model": str(folder)}})
    for command in ("plan", "run"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(recipe), "--runs", str(tmp_path / "runs")])
        assert ended.value.code == 2 and "models.base: " in capsys.readouterr().err


def test_a_config_that_says_quantised_over_plain_tensors_is_mended(tiny: Path, tmp_path: Path) -> None:
    folder = edit(
        copied(tiny, tmp_path / "model"), quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    made = fetch(str(folder))
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    assert (made / "model.safetensors").is_symlink() and torch.equal(logits(folder), logits(tiny))


# ------------------------------------------------------------------------- tied or not


@pytest.mark.parametrize("stated", [True, None])
def test_a_head_of_its_own_counts_whatever_the_config_says(tiny: Path, tmp_path: Path, stated: bool | None) -> None:
    """``None``: Gemma's config takes tied for granted."""
    if stated is None:
        folder = save_tiny_model(tmp_path / "model", kind="gemma3")
        tensors = load_file(folder / "model.safetensors")
        torch.manual_seed(1)
        restored(
            edit(folder, tie_word_embeddings=None),
            {**tensors, "lm_head.weight": torch.randn_like(tensors["model.embed_tokens.weight"])},
        )
    else:
        folder = edit(copied(tiny, tmp_path / "model"), tie_word_embeddings=True)
    made = fetch(str(folder))
    assert made != folder and json.loads((made / "config.json").read_text())["tie_word_embeddings"] is False
    model, _ = load_for_inference(base(folder))
    assert torch.equal(model.get_output_embeddings().weight, load_file(folder / "model.safetensors")["lm_head.weight"])
    if stated:
        assert torch.equal(logits(folder), logits(tiny))


def test_a_head_that_is_not_stored_is_the_embeddings(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    folder = restored(copied(tiny, tmp_path / "model"), tensors)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    model, _ = load_for_inference(base(folder))
    assert torch.equal(model.get_output_embeddings().weight, tensors["model.embed_tokens.weight"]) and not torch.equal(
        head, tensors["model.embed_tokens.weight"]
    )
    assert skeleton(fetch(str(folder))).config.tie_word_embeddings is True


def test_an_equal_copy_of_the_embeddings_is_read_as_it_is(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    folder = restored(
        edit(copied(tiny, tmp_path / "model"), tie_word_embeddings=True),
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
    )
    assert fetch(str(folder)) == folder


def test_the_released_config_and_gguf_have_the_head_of_its_own(
    tiny: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    import gguf

    folder = edit(copied(tiny, tmp_path / "model"), tie_word_embeddings=True)
    steps = {
        "a": {"sft": "rows.jsonl", "model": "base", "max_steps": 1, "quantize": "none", **FAST},
        "m": {"merge": "a", "drift_rows": 2},
        "r": {"release": ["m"], "gguf": ["f16"]},
    }
    recipe = write_recipe(steps, models={"base": {"model": str(folder), "dtype": "float32"}})
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--runs", str(tmp_path / "runs"), "--quiet"])
    assert not ended.value.code
    released = tmp_path / "runs/t/r/m"
    assert json.loads((released / "config.json").read_text())["tie_word_embeddings"] is False
    reader = gguf.GGUFReader(released / "gguf/m-F16.gguf")
    assert "output.weight" in {tensor.name for tensor in reader.tensors}
