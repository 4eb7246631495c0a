"""GGUF files of tiny random models: transformers loads them back to the same weights, ids and
prompts; odd models are refused.
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from released import HOSTILE, KINDS, ROPES, config_of, released

from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import ModelError
from openbezoar.gguf.file import write_gguf
from openbezoar.models.files.gguf import from_gguf
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Turn

ABOUT = {"name": "tiny", "license": "apache-2.0"}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi\n\n"},
    {"role": "assistant", "content": "Yes 12"},
    {"role": "user", "content": "2+2?"},
]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Formatter]]:
    """A released model of each kind, with gguf/f16.gguf and gguf/q8_0.gguf."""
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("gguf") / kind
        formatter = released(kind, folder)
        (folder / "gguf").mkdir()
        write_gguf(folder, formatter, "f16", out=folder / "gguf/f16.gguf", about=ABOUT)
        write_gguf(folder, formatter, "q8_0", out=folder / "gguf/q8_0.gguf", about=ABOUT)
        made[kind] = folder, formatter
    return made


def load(folder: Path, form: str | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    more = {} if form is None else {"gguf_file": f"{form}.gguf"}
    return AutoModelForCausalLM.from_pretrained(folder / "gguf" if form else folder, dtype=torch.float32, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_f16_holds_the_weights_rounded_to_fp16_and_vectors_unrounded(
    models: dict[str, tuple[Path, Formatter]], kind: str
) -> None:
    folder, _ = models[kind]
    ours, read = load(folder), load(folder, "f16")
    assert set(read.state_dict()) == set(ours.state_dict())
    for name, weight in ours.state_dict().items():
        if weight.ndim > 1:
            assert torch.equal(read.state_dict()[name], weight.half().float()), name
        else:
            # Gemma's norms are stored as 1 + w, and read as that less 1.
            assert torch.allclose(read.state_dict()[name], weight, rtol=0, atol=2.0**-23), name
    ids = torch.tensor([[3, 5, 7, 11, 13] * 8])
    assert torch.allclose(read(ids).logits, ours(ids).logits, atol=2e-2), (
        "the file's constants (rope, norms, windows) give another model"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_q8_0_is_within_half_a_step_of_its_blocks(models: dict[str, tuple[Path, Formatter]], kind: str) -> None:
    folder, _ = models[kind]
    ours, read = load(folder).state_dict(), load(folder, "q8_0").state_dict()
    for name, weight in ours.items():
        if weight.ndim > 1:
            blocks = weight.reshape(-1, 32)
            step = blocks.abs().amax(1, keepdim=True) / 127
            wrong = (read[name].reshape(-1, 32) - blocks).abs()
            assert (wrong <= step * 0.5 * 1.001 + step * 127 * 2.0**-11).all(), name
            assert wrong.max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_in_the_file_gives_the_same_ids_and_prompts(
    models: dict[str, tuple[Path, Formatter]], kind: str
) -> None:
    from transformers import AutoTokenizer

    folder, _ = models[kind]
    ours, read = (
        AutoTokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder / "gguf", gguf_file="f16.gguf"),
    )
    for raw in HOSTILE:
        # a GGUF cannot say that Qwen composes text
        text = unicodedata.normalize("NFC", raw) if kind.startswith("qwen") else raw
        assert read(text).input_ids == ours(text).input_ids, text
        assert read.decode(read(text).input_ids) == ours.decode(ours(text).input_ids)
    for generation in (True, False):
        texts, ids = (
            [t.apply_chat_template(TALK, add_generation_prompt=generation, **how) for t in (ours, read)]
            for how in ({"tokenize": False}, {"return_dict": False})
        )
        assert texts[0] == texts[1] and ids[0] == ids[1]
    assert (read.bos_token, read.eos_token, read.pad_token) == (ours.bos_token, ours.eos_token, ours.pad_token)


def test_files_are_written_a_slice_at_a_time(
    models: dict[str, tuple[Path, Formatter]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, formatter = models["llama"]
    monkeypatch.setattr("openbezoar.gguf.file.SLICE", 96)
    for form in ("f16", "q8_0"):
        write_gguf(folder, formatter, form, out=tmp_path / "again.gguf", about=ABOUT)  # type: ignore[arg-type]
        assert (tmp_path / "again.gguf").read_bytes() == (folder / f"gguf/{form}.gguf").read_bytes()


def fields(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def test_a_prompt_that_opens_with_bos_leaves_it_to_the_reader_and_an_end_of_turn_is_named(tmp_path: Path) -> None:
    template = tmp_path / "turns.jinja"
    template.write_text(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<pad>\n' }}{% endfor %}{% if"
        " add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    formatter = released("gemma3", tmp_path / "with", PromptSpec(template=str(template)))
    write_gguf(tmp_path / "with", formatter, "f16", out=tmp_path / "with.gguf", about=ABOUT)
    told = fields(tmp_path / "with.gguf")
    assert told["tokenizer.ggml.add_bos_token"] is True and told["tokenizer.ggml.add_space_prefix"] is False
    template.write_text(template.read_text().replace("{{ bos_token }}", ""))
    formatter = released("llama", tmp_path / "without", PromptSpec(template=str(template)))
    write_gguf(tmp_path / "without", formatter, "f16", out=tmp_path / "without.gguf", about=ABOUT)
    told = fields(tmp_path / "without.gguf")
    pad = formatter.tokenizer.pad_token_id
    assert told["tokenizer.ggml.add_bos_token"] is False and told["tokenizer.ggml.eot_token_id"] == pad
    assert told["tokenizer.ggml.eos_token_id"] == formatter.tokenizer.eos_token_id != pad


def refused(folder: Path, formatter: Formatter) -> str:
    with pytest.raises(ModelError) as error:
        write_gguf(folder, formatter, "q8_0", out=folder / "none.gguf", about=ABOUT)
    assert list(folder.glob("none.gguf*")) == [] and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mistral"}, "architecture 'mistral'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
            "type dynamic, whose base depends on the length",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "rope_theta": 10000.0}},
            "yarn with beta_fast 16",
        ),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation gelu"),
    ],
)
def test_a_model_that_readers_would_misread_is_refused_by_name(
    models: dict[str, tuple[Path, Formatter]], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    folder, formatter = models["llama"]
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert named in refused(tmp_path, formatter)


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("pre_tokenizer", {"type": "Whitespace"}, "neither byte-level"),
        ("normalizer", {"type": "Lowercase"}, "splits text"),
        ("model", {"type": "WordPiece"}, "type WordPiece"),
    ],
)
def test_a_tokenizer_that_the_format_cannot_say_is_refused(
    models: dict[str, tuple[Path, Formatter]], tmp_path: Path, part: str, value: dict[str, Any], named: str
) -> None:
    folder, formatter = models["llama"]
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored | {part: value}))
    assert named in refused(tmp_path, formatter)


@pytest.mark.parametrize("kind", ROPES)
def test_a_scaled_rotary_embedding_is_written_as_llama_cpp_reads_it(tmp_path: Path, kind: str) -> None:
    """The frequencies that the file makes are those that transformers computes."""
    from gguf import GGUFReader

    formatter = released(kind, tmp_path / "model")
    write_gguf(tmp_path / "model", formatter, "f16", out=tmp_path / "f16.gguf", about=ABOUT)
    told, arch = fields(tmp_path / "f16.gguf"), kind.partition("-")[0]
    model: Any = load(tmp_path / "model")
    rotary = model.model.rotary_emb
    wanted = rotary.full_attention_inv_freq if arch == "gemma3" else rotary.inv_freq
    size = told[f"{arch}.rope.dimension_count"]
    plain = told[f"{arch}.rope.freq_base"] ** -(torch.arange(0, size, 2) / size)
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(tmp_path / "f16.gguf").tensors}
    if kind == "llama-llama3":
        assert (
            tensors["rope_freqs.weight"].dtype == torch.float32 and len(set(tensors["rope_freqs.weight"].tolist())) > 2
        )
        assert torch.allclose(plain / tensors["rope_freqs.weight"], wanted, rtol=1e-5)
        return
    assert "rope_freqs.weight" not in tensors
    assert (
        told[f"{arch}.rope.scaling.type"] == ROPES[kind]["rope_type"]
        and told[f"{arch}.rope.scaling.factor"] == ROPES[kind]["factor"]
    )
    if kind.endswith("linear"):
        assert torch.allclose(plain / told[f"{arch}.rope.scaling.factor"], wanted, rtol=1e-5)
    else:
        assert told[f"{arch}.rope.scaling.original_context_length"] == 64


@pytest.mark.parametrize("kind", ["llama-llama3", "qwen2-yarn", "gemma3-linear"])
def test_a_scaled_rotary_embedding_is_read_back_from_a_gguf(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the released one
    monkeypatch.setitem(
        ROPES, "llama-llama3", {**ROPES["llama-llama3"], "original_max_position_embeddings": 8192, "rope_theta": 5e5}
    )
    formatter = released(kind, tmp_path / "model")
    write_gguf(tmp_path / "model", formatter, "f16", out=tmp_path / "f16.gguf", about=ABOUT)
    made = from_gguf(tmp_path / "f16.gguf", tmp_path / "read", {})
    ours, read = (
        json.loads((folder / "config.json").read_text())["rope_parameters"] for folder in (tmp_path / "model", made)
    )
    assert (
        {key: read.get("full_attention", read)[key] for key in ROPES[kind]}
        == ROPES[kind]
        == {key: ours.get("full_attention", ours)[key] for key in ROPES[kind]}
    )
    if kind == "llama-llama3":
        release = tmp_path / "odd"
        (tmp_path / "model").rename(release)
        edited = json.loads((release / "config.json").read_text())
        edited["rope_parameters"]["high_freq_factor"] = 6.0
        (release / "config.json").write_text(json.dumps(edited))
        write_gguf(release, formatter, "f16", out=tmp_path / "odd.gguf", about=ABOUT)
        with pytest.raises(ModelError, match=r"not those of Llama 3\.1 to 3\.3"):
            from_gguf(tmp_path / "odd.gguf", tmp_path / "none", {})


def test_a_weight_beyond_fp16_is_refused_and_leaves_nothing(
    models: dict[str, tuple[Path, Formatter]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder, formatter = models["llama"]
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        write_gguf(tmp_path, formatter, "f16", out=tmp_path / "none.gguf", about=ABOUT)
    assert list(tmp_path.glob("none.gguf*")) == []


def test_windows_elsewhere_than_readers_expect_are_refused() -> None:
    from openbezoar.gguf.architectures import architecture_of

    class Tokens:
        bos_token_id, eos_token_id = 0, 1

        def __len__(self) -> int:
            return 100

    config = config_of("gemma3", Tokens())
    assert architecture_of(config).name == "gemma3"
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    with pytest.raises(ModelError, match="number 6"):
        architecture_of(config)


def test_a_prompt_is_what_the_formatter_says(models: dict[str, tuple[Path, Formatter]]) -> None:
    folder, formatter = models["gemma3"]
    template = fields(folder / "gguf/f16.gguf")["tokenizer.chat_template"]
    assert formatter.tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], chat_template=template, tokenize=False, add_generation_prompt=True
    ) == (formatter.prompt_text((Turn("user", "x"),)))
