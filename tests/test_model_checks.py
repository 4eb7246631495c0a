"""The one list of checks of a model's parts: each fault is a line before anything runs, each oddity a warning."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST
from safetensors.torch import load_file, save_file
from test_stored_weights import copied, edit, restored

from openbezoar.cli.app import main
from openbezoar.errors import ModelError, RunError
from openbezoar.models.dropout import without_base_dropout
from openbezoar.models.files import checks as model_checks
from openbezoar.models.files import gguf as gguf_models
from openbezoar.models.load import load_base, load_for_training, load_tokenizer
from openbezoar.models.references import Checkpoint, digests, fetch
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.train_steps import Lora, Merge
from openbezoar.verbs.merge.gate import gate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def add_token(folder: Path, text: str, **settings: Any) -> Path:
    """One more token than the model has embeddings."""
    stored = json.loads((folder / "tokenizer.json").read_text())
    number = len(stored["model"]["vocab"])
    stored["added_tokens"].append(
        {
            "id": number,
            "content": text,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
    )
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return edit(folder, "tokenizer_config.json", **settings)


def without(*names: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        restored(folder, {name: value for name, value in tensors.items() if name not in names})

    return change


def renamed(name: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: restored(
        folder, {name(old): value for old, value in load_file(folder / "model.safetensors").items()}
    )


def with_tensors(more: dict[str, torch.Tensor]) -> Callable[[Path], object]:
    return lambda folder: restored(folder, {**load_file(folder / "model.safetensors"), **more})


def twice(name: str, more: float = 1.0) -> Callable[[Path], object]:
    """A model in two shards, both with a tensor that the index has in the first."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        head = tensors.pop("lm_head.weight")
        save_file(tensors, folder / "a.safetensors", metadata={"format": "pt"})
        save_file(
            {name: tensors[name] + more, "lm_head.weight": head}, folder / "b.safetensors", metadata={"format": "pt"}
        )
        index = {**dict.fromkeys(tensors, "a.safetensors"), "lm_head.weight": "b.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    return change


def config(**changed: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder, **changed)


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda folder: add_token(folder, "<extra>"),
        r"tokenizer has ids up to 406 \('<extra>'\), the model 406 embeddings",
    ),
    (lambda folder: edit(folder, "tokenizer_config.json", pad_token="[PAD]"), "tokenizer has ids up to 406"),
    (config(eos_token_id=[1, 406]), r"config.json has eos_token_id: \[1, 406\], the model 406 embeddings"),
    (config(pad_token_id=32000), "config.json has pad_token_id: 32000"),
    (
        lambda folder: edit(folder, "generation_config.json", bos_token_id=500),
        "generation_config.json has bos_token_id: 500",
    ),
    (config(vocab_size=500), r"embed_tokens.weight' has the shape \[406, 64\], its config makes it \[500, 64\]"),
    (config(intermediate_size=256), r"layers.0.mlp.down_proj.weight' has the shape \[64, 128\]"),
    (config(num_hidden_layers=3), r"lack 'model.layers.2.self_attn.q_proj.weight'.*drawn at random"),
    (without("model.layers.1.mlp.up_proj.weight"), "lack 'model.layers.1.mlp.up_proj.weight'"),
    (without("model.embed_tokens.weight"), "lack the embeddings"),
    (renamed(lambda name: f"_orig_mod.{name}"), r"names begin with '_orig_mod\.'.*save the model itself"),
    (renamed(lambda name: f"base_model.model.{name}"), r"names begin with 'base_model\.model\.'"),
    (
        renamed(lambda name: name.replace("q_proj", "q_proj.base_layer")),
        r"have an adapter among them \('model.layers.0.self_attn.q_proj.base_layer.weight'\)",
    ),
    (config(num_hidden_layers=1), r"says 1 layers, its tensors have more \('model.layers.1\."),
    (
        with_tensors({"lm_head.weight": torch.zeros(64, 406)}),
        r"'lm_head.weight' has the shape \[64, 406\], its config makes it \[406, 64\]",
    ),
    (
        twice("model.norm.weight"),
        "'a.safetensors' and 'b.safetensors' both hold a tensor 'model.norm.weight', with other values",
    ),
    (config(num_key_value_heads=3), "4 attention heads on 3 key/value heads"),
    (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "rotary embedding of type 'spiral'"),
    (
        config(rope_scaling={"type": "llama3", "factor": 8.0}, rope_parameters=None),
        "type llama3 lacks 'low_freq_factor'",
    ),
    (
        config(is_encoder_decoder=True, model_type="t5", architectures=["T5ForConditionalGeneration"]),
        r"'t5' \(T5ForConditionalGeneration\) has an encoder and a decoder",
    ),
    (
        config(architectures=["LlamaForSequenceClassification"]),
        r"'llama' \(LlamaForSequenceClassification\) is no causal language model",
    ),
    (
        config(model_type="whisper", architectures=["WhisperForAudioClassification"]),
        "'whisper'.*no causal language model",
    ),
    (
        config(model_type="qwen2_audio", audio_config={"x": 1}, architectures=["Qwen2AudioForConditionalGeneration"]),
        "'qwen2_audio'.*parts beside its text model",
    ),
    (
        config(layer_types=["linear_attention", "full_attention"]),
        r"carry a state from token to token \(linear_attention\)",
    ),
    (config(block_types=["recurrent", "attention"]), r"carry a state.*\(recurrent\)"),
    (config(mamba_d_state=16), r"carry a state.*\(mamba_d_state\)"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "it holds an adapter"),
    (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object, found list"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "no safetensors header"),
]


@pytest.mark.parametrize(("change", "said"), FAULTS)
def test_parts_that_do_not_belong_together_are_one_line_in_plan_and_where_a_model_is_opened(
    tiny: Path,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    said: str,
) -> None:
    folder = copied(tiny, tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match=said) as error:
        fetch(str(folder))
    assert "\n" not in str(error.value)
    recipe = write_recipe({"a": {"sft": "rows.jsonl", "model": "base"}}, models={"base": {"model": str(folder)}})
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(recipe), "--runs", str(tmp_path / "runs")])
    assert ended.value.code == 2 and "models.base: " in capsys.readouterr().err


def test_the_checks_are_of_the_models_that_are_still_to_be_used(
    tiny: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    folder = edit(copied(tiny, tmp_path / "model"), vocab_size=500)
    models = {"base": {"model": str(tiny)}, "unused": {"model": str(folder)}}
    recipe = write_recipe({"a": {"sft": "rows.jsonl", "model": "base"}}, models=models)
    main_ends(["plan", str(recipe), "--runs", str(tmp_path / "runs")], 0)


def main_ends(arguments: list[str], code: int) -> None:
    try:
        main(arguments)
        ended: Any = 0
    except SystemExit as error:
        ended = error.code or 0
    assert ended == code


NOTICES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: edit(folder, "generation_config.json", temperature=0.6), "temperature: 0.6 without do_sample"),
    (
        lambda folder: (
            edit(folder, "tokenizer_config.json", chat_template="{{ '<|im_end|>' }}")
            and (folder / "chat_template.jinja").unlink()
        ),
        r"writes '<\|im_end\|>'",
    ),
    (
        lambda folder: add_token(folder, "<image_soft_token>", image_token="<image_soft_token>"),
        "'<image_soft_token>' for pictures or sound",
    ),
    (config(quantization_config={"quant_method": "fp8"}), "says that it is quantised .fp8., its tensors are plain"),
]


@pytest.mark.parametrize(("change", "said"), NOTICES)
def test_oddities_are_warnings_of_plan(
    tiny: Path,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    said: str,
) -> None:
    folder = copied(tiny, tmp_path / "model")
    assert model_checks.check(folder) == ()
    change(folder)
    (notice,) = model_checks.check(folder)
    assert re.search(said, notice)
    recipe = write_recipe({"a": {"sft": "rows.jsonl", "model": "base"}}, models={"base": {"model": str(folder)}})
    main_ends(["plan", str(recipe), "--runs", str(tmp_path / "runs")], 0)
    assert f"warning: models.base: {notice}" in " ".join(capsys.readouterr().out.split())


def test_a_placeholder_without_an_embedding_is_taken_out_of_the_tokenizer(tiny: Path, tmp_path: Path) -> None:
    """As Gemma 3's text models have one."""
    folder = add_token(copied(tiny, tmp_path / "model"), "<image_soft_token>", image_token="<image_soft_token>")
    with pytest.raises(ModelError, match="ids up to 406"):
        load_tokenizer(folder)
    tokenizer = load_tokenizer(fetch(str(folder)))
    assert max(tokenizer("a <image_soft_token> b").input_ids) < 406 and len(tokenizer) == 406


def test_tensors_that_are_missing_or_of_another_shape_stop_the_loading_of_any_family(
    tmp_path: Path, tiny: Path
) -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    shape = {
        "vocab_size": 406,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    folder = copied(tiny, tmp_path / "neox")
    AutoModelForCausalLM.from_config(GPTNeoXConfig(**shape, **ids)).save_pretrained(folder)

    def load() -> Any:
        return load_base(
            Checkpoint("base", str(folder), (), "none", "float32", PromptSpec()), (), "none", dtype="float32"
        )

    load()
    whole = load_file(folder / "model.safetensors")
    without("gpt_neox.layers.1.mlp.dense_4h_to_h.weight")(folder)
    with pytest.raises(ModelError, match=r"lack 1 tensor of the model, 'gpt_neox.layers.1.mlp.dense_4h_to_h.weight'"):
        load()
    restored(folder, {**whole, "gpt_neox.layers.1.mlp.dense_4h_to_h.weight": torch.zeros(32, 32)})
    with pytest.raises(ModelError, match=r"has the shape \[32, 32\], its config makes it \[32, 64\]"):
        load()


def test_tensors_that_nothing_uses_are_told(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(tiny, tmp_path / "model")
    restored(
        folder,
        {
            **load_file(folder / "model.safetensors"),
            "model.layers.2.extra.weight": torch.zeros(2),
            "model.rotary_emb.inv_freq": torch.zeros(8),
        },
    )
    load_base(Checkpoint("base", str(folder), (), "none", "float32", PromptSpec()), (), "none", dtype="float32")
    assert "1 tensor that the model does not use, 'model.layers.2.extra.weight' first" in capsys.readouterr().err


def as_vocab_and_merges(tiny: Path, out: Path) -> Path:
    """GPT-2's form of a tokenizer: vocab.json and merges.txt."""
    folder = copied(tiny, out)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    # which the class adds otherwise
    words = {text.replace("<pad>", "<|endoftext|>"): number for text, number in model["vocab"].items()}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n"
        + "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
        + "\n"
    )
    return edit(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", pad_token="<|endoftext|>")


def test_what_a_tokenizer_s_class_adds_beyond_the_embeddings_is_found_before_the_first_step(
    tiny: Path, tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """sft was done, and the merge died of the tokenizer that it had written itself."""
    folder = edit(copied(tiny, tmp_path / "model"), "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(ModelError, match=r"ids up to 406 \('<\|endoftext\|>'\), the model 406 embeddings"):
        load_tokenizer(folder)
    recipe = write_recipe(
        {"a": {"sft": "rows.jsonl", "model": "base", **FAST}, "b": {"merge": "a"}},
        models={"base": {"model": str(folder)}},
    )
    main_ends(["run", str(recipe), "--runs", str(tmp_path / "runs")], 2)
    assert "step a: " in capsys.readouterr().err


def test_a_tensor_that_is_stored_twice_alike_and_a_number_that_is_no_weight_are_no_fault(
    tiny: Path, tmp_path: Path
) -> None:
    folder = copied(tiny, tmp_path / "model")
    with_tensors({"global_step": torch.tensor(3)})(folder)
    twice("model.norm.weight", 0.0)(folder)
    assert fetch(str(folder)) == folder


@pytest.mark.parametrize("name", ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias"])
def test_a_bias_that_the_config_does_not_know_stops_the_loading(name: str, tiny: Path, tmp_path: Path) -> None:
    """It was left out with a line, and trained, merged and scored was another model."""
    folder = copied(tiny, tmp_path / "model")
    with_tensors({name: torch.ones(406 if "head" in name else 64)})(folder)
    with pytest.raises(
        ModelError, match=f"'{re.escape(name)}' is stored, and by its config the model has no such bias"
    ):
        load_base(Checkpoint("base", str(folder), (), "none", "float32", PromptSpec()), (), "none", dtype="float32")


def test_sizes_by_layer_are_sizes(tiny: Path, tmp_path: Path) -> None:
    """As Gemma 3n's text models have them."""
    folder = edit(
        copied(tiny, tmp_path / "model"),
        model_type="gemma3n_text",
        architectures=["Gemma3nForCausalLM"],
        intermediate_size=[128, 128],
    )
    model_checks.check(folder)
    with pytest.raises(ModelError, match=r"intermediate_size: \[128, 0\]; expected a whole number"):
        model_checks.check(edit(folder, intermediate_size=[128, 0]))


def test_a_target_whose_weight_is_stored_otherwise_is_refused_before_training(tiny: Path, tmp_path: Path) -> None:
    """GPT-NeoX's head is 'embed_out' in files; a merge of an adapter on it found no weight."""
    base = neox(tiny, tmp_path / "neox")
    with pytest.raises(
        ModelError, match=r"the weight of 'lm_head', which lora.targets names, is stored under another name"
    ):
        load_for_training(
            base,
            Lora(r=4, alpha=4, targets=["query_key_value", "lm_head"]),
            "none",
            dtype="float32",
            continues=False,
            seed=1,
        )
    with pytest.raises(
        ModelError,
        match=(
            r"has no module 'q_proj' for lora.targets; its linear layers are dense, dense_4h_to_h, dense_h_to_4h,"
            r" query_key_value"
        ),
    ):
        load_for_training(base, Lora(r=4, alpha=4), "none", dtype="float32", continues=False, seed=1)


def neox(tiny: Path, folder: Path) -> Checkpoint:
    """A GPT-NeoX with a head of its own."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    shape = {
        "vocab_size": 406,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "rotary_pct": 0.5,
    }
    copied(tiny, folder)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(
        GPTNeoXConfig(**shape, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)
    ).save_pretrained(folder)
    return Checkpoint("base", str(folder), (), "none", "float32", PromptSpec())


def test_a_head_that_is_stored_under_another_name_is_in_the_merged_model(
    tiny: Path, tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Merged Pythias had the embeddings for a head."""
    base = neox(tiny, tmp_path / "neox")
    lora = {"r": 4, "alpha": 4, "targets": ["query_key_value"]}
    sft = {"sft": "rows.jsonl", "model": "base", **FAST, "lora": lora, "quantize": "none", "epochs": 1}
    recipe = write_recipe(
        {"a": sft, "b": {"merge": "a", "dtype": "bfloat16"}}, models={"base": {"model": base.base, "dtype": "float32"}}
    )
    main_ends(["run", str(recipe), "--runs", str(tmp_path / "runs"), "--quiet"], 0)
    merged = load_file(tmp_path / "runs/t/b/model/model.safetensors")
    head = load_file(tmp_path / "neox/model.safetensors")["embed_out.weight"]
    assert torch.equal(merged["embed_out.weight"], head.bfloat16())
    assert json.loads((tmp_path / "runs/t/b/manifest.json").read_text())["numbers"]["kl"] < 1e-3


def test_a_kind_whose_code_does_not_know_the_layout_is_one_line(tmp_path: Path, tiny: Path) -> None:
    from transformers import AutoModelForCausalLM, BloomConfig

    from openbezoar.forest import Scorer, TokenPath

    model = AutoModelForCausalLM.from_config(
        BloomConfig(vocab_size=60, hidden_size=32, n_layer=1, n_head=2)
    ).requires_grad_(False)
    with pytest.raises(ModelError, match="BloomModel: models of this kind cannot be scored with shared prefixes"):
        Scorer(model, 200).score([(TokenPath(tuple(range(12)), (False,) * 4 + (True,) * 8),)])


def test_a_base_s_own_dropout_does_not_make_it_another_reference(tiny: Path, tmp_path: Path) -> None:
    """OPT and GPT-Neo drop values in their trunk; DPO ended before its first update."""
    from transformers import AutoModelForCausalLM, OPTConfig

    shape = {
        "vocab_size": 406,
        "hidden_size": 32,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    AutoModelForCausalLM.from_config(OPTConfig(**shape, dropout=0.5)).save_pretrained(copied(tiny, tmp_path / "opt"))
    base = Checkpoint("base", str(tmp_path / "opt"), (), "none", "float32", PromptSpec())
    model = load_for_training(
        base, Lora(r=4, alpha=4, targets=["q_proj"], dropout=0.25), "none", dtype="float32", continues=False, seed=1
    ).train()
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    without_base_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert [m.p for n, m in model.named_modules() if n.endswith("lora_dropout.default")] == [0.25]


def test_a_tokenizer_of_vocab_and_merges_stays_whole(tiny: Path, tmp_path: Path) -> None:
    folder = as_vocab_and_merges(tiny, tmp_path / "old")
    assert (
        load_tokenizer(fetch(str(folder)))("a city on the river").input_ids
        == load_tokenizer(tiny)("a city on the river").input_ids
    )
    assert {"vocab.json", "merges.txt"} <= digests(folder).keys()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "LICENSE").write_text("terms")
    made = gguf_models.convert_bin(folder, tmp_path / "new")
    assert (made / "merges.txt").is_file() and (made / "LICENSE").is_file()
    assert (
        load_tokenizer(fetch(str(made)))("a city on the river").input_ids
        == load_tokenizer(tiny)("a city on the river").input_ids
    )
    (made / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"vocab\.json without its merges\.txt"):
        fetch(str(made))


def test_the_hub_is_asked_for_every_file_that_a_model_is_read_from(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.utils import filter_repo_objects

    folder = as_vocab_and_merges(tiny, tmp_path / "repository")
    (folder / "original").mkdir()
    for name in (
        "LICENSE",
        "README.md",
        "spiece.model",
        "tokenizer.model.v3",
        "training.log",
        "original/consolidated.pth",
        "consolidated.safetensors",
    ):
        (folder / name).write_text("x")

    def download(name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        every = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        for file in filter_repo_objects(every, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            target = tmp_path / "snapshot" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, target)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(hub, "snapshot_download", download)
    found = {file.name for file in fetch("some/model").iterdir()}
    assert {"merges.txt", "vocab.json", "LICENSE", "README.md", "spiece.model", "tokenizer.model.v3"} <= found
    assert not {"training.log", "consolidated.safetensors", "original"} & found


# --------------------------------------------------------------------- what a merge writes


def merged(write_recipe: Callable[..., Path], folder: Path, runs: Path, code: int = 0, **merge: Any) -> Path:
    steps = {
        "a": {"sft": "rows.jsonl", "model": "base", "max_steps": 1, "quantize": "none", **FAST},
        "m": {"merge": "a", "drift_rows": 2, **merge},
        "r": {"release": ["m"], "gguf": []},
    }
    recipe = write_recipe(steps, models={"base": {"model": str(folder), "dtype": "float32"}})
    main_ends(["run", str(recipe), "--runs", str(runs), "--quiet"], code)
    return runs / "t"


def test_generation_settings_that_cannot_be_saved_are_mended_and_told(
    tiny: Path, tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edit(
        copied(tiny, tmp_path / "model"),
        "generation_config.json",
        temperature=0.6,
        top_p=0.9,
        early_stopping=True,
        use_cache=True,
    )
    run = merged(write_recipe, folder, tmp_path / "runs")
    err = capsys.readouterr().err
    assert "do_sample: true set, since it has temperature: 0.6" in err and "early_stopping: True left out" in err
    released = json.loads((run / "r/m/generation_config.json").read_text())
    assert (
        released["temperature"] == 0.6
        and released["top_p"] == 0.9
        and released["do_sample"] is True
        and "early_stopping" not in released
    )
    assert released["eos_token_id"] == 1


def test_a_merge_that_is_another_model_stops_the_run_each_time_until_its_limit_is_raised(
    tiny: Path, tmp_path: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        merged(write_recipe, tiny, tmp_path / "runs", 2, max_drift=1e-12)  # rounding to 16 bits is more
        err = capsys.readouterr().err
        assert "step m: the merged model is not the one that was trained: loss " in err and "allowed: 1e-12" in err
    assert "done in" not in err  # nothing was merged again
    merged(write_recipe, tiny, tmp_path / "runs", max_drift=None)


@pytest.mark.parametrize(
    ("kl", "loss", "stops"),
    [(0.9, 3.0, False), (1.1, 2.0, True), (0.1, 3.5, True), (float("nan"), 2.0, True), (14.0, 16.531, True)],
)
def test_a_drift_is_too_large_by_kl_or_by_loss(tmp_path: Path, kl: float, loss: float, stops: bool) -> None:
    (tmp_path / "manifest.json").write_text(
        json.dumps({"numbers": {"kl": kl, "loss": loss, "loss_unmerged": 2.317, "tokens": 10}})
    )
    with pytest.raises(RunError, match="raise its max_drift") if stops else nullcontext():
        list(gate("m", Merge(merge="a"), tmp_path, 0))
