"""Merging and quantising tensor by tensor: the same bits as whole, and never more than one large tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from openbezoar.errors import ModelError
from openbezoar.forest import Scorer, TokenPath
from openbezoar.models import load, shards
from openbezoar.models.load import load_base, load_for_inference, load_for_training
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.train_steps import Lora, Sft
from openbezoar.training import checkpointing

CPU = torch.device("cpu")


def dequantize_nf4(model: nn.Module) -> None:
    """The oracle: a whole model in memory, each quantised layer's weight replaced by what NF4 makes of it."""
    for name in shards.quantised_layers(model):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight.data = shards.nf4_values(layer.weight.data, layer.weight.dtype)


def checkpoint(
    folder: Path, adapters: tuple[Path, ...] = (), quantize: str = "nf4", dtype: str = "bfloat16"
) -> Checkpoint:
    return Checkpoint("base", str(folder), adapters, quantize, dtype, PromptSpec())  # type: ignore[arg-type]


def save_adapter(
    base: Path, out: Path, seed: int, targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj")
) -> Path:
    """A PEFT adapter with random A and B."""
    model = load_for_training(
        checkpoint(base), Lora(r=4, alpha=6, targets=list(targets)), "none", dtype="float32", continues=False, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 0.2, generator=generator)
    model.save_pretrained(str(out), save_embedding_layers=False)
    return out


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return save_adapter(tiny, folder / "first", 1), save_adapter(tiny, folder / "second", 2)


def whole(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype).requires_grad_(False)


def merge_whole(model: Any, adapter: Path) -> None:
    """The arithmetic on a whole model: W + scale B A in float32, then the weight's own dtype."""
    modules = dict(model.named_modules())
    for name, update in shards.adapter_deltas(adapter).items():
        weight = modules[name].weight
        weight.copy_((weight.float() + update.scale * (update.b @ update.a)).to(weight.dtype))


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name


@pytest.mark.parametrize("nf4", [False, True], ids=["onto the original", "onto the dequantized"])
def test_a_merge_by_shards_gives_the_bits_of_a_merge_of_the_whole(
    tiny: Path, adapters: tuple[Path, Path], tmp_path: Path, nf4: bool
) -> None:
    first, second = adapters
    weights = shards.weights_of(tiny, torch.bfloat16, CPU, older=(first,), last=second, dtype=torch.bfloat16, nf4=nf4)
    shards.write(weights, tmp_path, most=100_000)
    index = json.loads((tmp_path / shards.INDEX).read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(file.stat().st_size < 110_000 for file in files)
    written = {name: value for file in files for name, value in load_file(file).items()}
    assert {name: name in load_file(tmp_path / file) for name, file in index["weight_map"].items()} == dict.fromkeys(
        written, True
    )
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in written.values())

    model = whole(tiny, torch.bfloat16)
    merge_whole(model, first)
    if nf4:
        dequantize_nf4(model)
    model = model.float()
    merge_whole(model, second)
    same(written, model.to(torch.bfloat16).state_dict())
    assert not torch.equal(
        written["model.layers.0.mlp.down_proj.weight"],
        load_file(tiny / shards.WHOLE)["model.layers.0.mlp.down_proj.weight"].bfloat16(),
    )


def packed(model: Any) -> dict[str, torch.Tensor]:
    """Bytes and both levels of scales of each 4-bit weight, and every other tensor as it is."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        found[name] = parameter.data
        if (state := getattr(parameter, "quant_state", None)) is not None:
            found |= {
                f"{name}.scales": state.absmax,
                f"{name}.scales of scales": state.state2.absmax,
                f"{name}.offset": state.offset,
            }
    return found


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_quantising_by_shards_packs_the_bytes_of_bitsandbytes_own_loading(
    tiny: Path, adapters: tuple[Path, Path], tmp_path: Path, count: int
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    ours = load_base(checkpoint(tiny), adapters[:count], "nf4", dtype="bfloat16")
    model = whole(tiny, torch.bfloat16)
    for adapter in adapters[:count]:
        merge_whole(model, adapter)
    model.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), dtype=torch.bfloat16, quantization_config=settings, device_map={"": "cpu"}
    )
    same(packed(ours), packed(theirs))
    four_bit = [name for name in packed(ours) if name.endswith(".scales")]
    assert len(four_bit) == 2 * 7
    assert {name.removesuffix(".weight.scales") for name in four_bit} == set(
        shards.quantised_layers(shards.skeleton(tiny))
    )


@pytest.mark.usefixtures("bfloat16")
def test_for_inference_the_base_has_the_values_that_nf4_gave_it_in_training(
    tiny: Path, adapters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbezoar.models.load.pack", lambda model: 0)  # so that the values can be read
    first, second = adapters
    model, _ = load_for_inference(checkpoint(tiny, (first, second)))
    base = whole(tiny, torch.bfloat16)
    merge_whole(base, first)
    dequantize_nf4(base)
    ours = model.get_base_model().state_dict()
    for name, value in base.state_dict().items():
        held = ours.get(name, ours.get(name.replace(".weight", ".base_layer.weight")))
        assert held is not None and torch.equal(held, value), name


class Largest(TorchDispatchMode):
    """Notes the bytes of the greatest tensor that any operation makes, and the most that are alive of large ones."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.greatest, self.most_alive = large, 0, 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                self.greatest = max(self.greatest, storage.nbytes())
                if storage.nbytes() >= self.large and storage.data_ptr() not in self.alive:
                    place = storage.data_ptr()
                    self.alive[place] = storage.nbytes()
                    weakref.finalize(tensor, self.alive.pop, place, None)
                    self.most_alive = max(self.most_alive, sum(self.alive.values()))
        return out


def test_no_more_than_one_weight_s_work_is_alive_while_a_model_is_made_tensor_by_tensor(
    tiny: Path, adapters: tuple[Path, Path]
) -> None:
    weights = shards.weights_of(
        tiny, torch.bfloat16, CPU, older=adapters[:1], last=adapters[1], dtype=torch.bfloat16, nf4=True
    )
    elements = max(torch.Size(weight.shape()).numel() for weight in weights.values())
    with Largest(large=8192) as seen:
        for weight in weights.values():
            weight[...]
    # One weight in float32 at most, and of those the stored one, the sum and its terms, and what quantising it takes.
    assert 0 < seen.greatest <= 4 * elements
    assert seen.most_alive <= 6 * 4 * elements
    assert sum(4 * torch.Size(weight.shape()).numel() for weight in weights.values()) > 2 * seen.most_alive


def test_old_rotary_tables_are_left_out_and_everything_is_kept_where_names_differ(tiny: Path) -> None:
    weights, model = shards.weights_of(tiny, torch.bfloat16, CPU), shards.skeleton(tiny)
    extra = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": weights["model.norm.weight"]}
    assert shards.of_model(extra, model).keys() == weights.keys()
    renamed = {f"language_model.{name}": weight for name, weight in weights.items()}
    assert shards.of_model(renamed, model).keys() == renamed.keys()


def test_an_adapter_that_is_not_on_linear_layers_alone_is_refused_rather_than_merged_in_part(
    adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapters[0], tmp_path / "more")
    file = tmp_path / "more" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 9)}, file)
    with pytest.raises(
        ModelError, match=r"'base_model.model.model.embed_tokens.lora_embedding_A' is no LoRA weight of a linear layer"
    ):
        shards.adapter_deltas(tmp_path / "more")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("embed_tokens", "'embed_tokens' of lora.targets is of kind Embedding"),
        ("norm", "'norm' of lora.targets is of kind LlamaRMSNorm"),
        ("wq", "no module 'wq'"),
    ],
)
def test_targets_that_are_no_linear_layer_are_refused_in_one_line(tiny: Path, target: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_for_training(
            checkpoint(tiny), Lora(r=4, targets=["q_proj", target]), "none", dtype="float32", continues=False, seed=0
        )


def test_a_head_that_is_the_embeddings_too_takes_no_adapter(tiny_gemma: Path) -> None:
    """Merged, it would change the embeddings."""
    with pytest.raises(
        ModelError, match=r"'lm_head' of lora.targets is the output head, whose weight is the embeddings' too"
    ):
        load_for_training(
            checkpoint(tiny_gemma),
            Lora(r=4, targets=["q_proj", "lm_head"]),
            "none",
            dtype="float32",
            continues=False,
            seed=0,
        )


def test_an_adapter_of_another_model_is_refused_by_name(tiny: Path, tiny_gemma: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny, tmp_path / "adapter", 3)
    content = load_file(adapter / "adapter_model.safetensors")
    from safetensors.torch import save_file

    save_file(
        {name.replace("layers.1.", "layers.7."): value for name, value in content.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(
        ModelError, match=r"no weight 'model\.layers\.7\.[a-z_.]+weight'; the adapter belongs to another model"
    ):
        load_base(checkpoint(tiny), (adapter,), "nf4", dtype="bfloat16")


def test_pickled_weights_and_absent_shards_are_refused(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"expected a model folder with safetensors"):
        shards.weights_of(tmp_path, torch.bfloat16, CPU)
    with pytest.raises(ModelError, match=r"it has \.bin weights only"):
        load_base(checkpoint(tmp_path), (), "nf4", dtype="bfloat16")
    (tmp_path / shards.INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=r"names 'model-00001-of-00002\.safetensors', which is not there"):
        shards.weights_of(tmp_path, torch.bfloat16, CPU)


# ------------------------------------------------------------------------ activation checkpointing


def trees() -> Iterator[tuple[TokenPath, ...]]:
    generator = torch.Generator().manual_seed(5)
    for n in (30, 12, 40):
        ids = torch.randint(3, 400, (n,), generator=generator).tolist()
        yield TokenPath.of(ids[: n // 2], ids[n // 2 :]), TokenPath.of(ids[: n // 2], ids[: n // 3])


def test_a_family_whose_sizes_have_other_names_is_not_checkpointed_by_itself() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    opt = OPTForCausalLM(
        OPTConfig(
            vocab_size=97,
            hidden_size=48,
            ffn_dim=64,
            word_embed_proj_dim=48,
            num_hidden_layers=1,
            num_attention_heads=6,
        )
    )
    assert checkpointing.apply(opt, Sft(sft="x", model="base")) == 0


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("model_fixture", ["tiny", "tiny_gemma"])
def test_checkpointing_leaves_gradients_bit_identical_dropout_included(
    model_fixture: str, quantize: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model_fixture)
    found = []
    for on in (False, True):
        dtype = "bfloat16" if quantize == "nf4" else "float32"
        model = load_for_training(
            checkpoint(folder), Lora(r=4, dropout=0.3), quantize, dtype=dtype, continues=False, seed=3
        )  # type: ignore[arg-type]
        assert bool(checkpointing.apply(model, Sft(sft="x", model="base", checkpointing=on))) is on
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, and A's gradient with it
                parameter.data.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        model.train()
        runs, layer = [], model.get_base_model().model.layers[0].self_attn
        layer.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        scorer, batch = Scorer(model), list(trees())
        scorer.checked = True
        torch.manual_seed(11)
        torch.stack([path.sum() for tree in scorer.score(batch) for path in tree]).sum().backward()
        assert len(runs) == (2 if on else 1)
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0].values())
    same(found[1], found[0])


def test_checkpointing_is_no_part_of_a_step_s_key(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    from openbezoar.engine import graph
    from openbezoar.recipe.file import load

    path = write_recipe({"a": {"sft": "rows.jsonl", "model": "base"}})
    keys = {
        graph.build(load(path, [f"steps.a.checkpointing={value}"]), path, tmp_path / "runs").nodes["a"].key
        for value in ("auto", "on", "off")
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("limit", "calls"), [(0, ["back", "read", "back"]), (1 << 40, ["back", "read", "keep"])], ids=["large", "small"]
)
@pytest.mark.parametrize("way", ["inference", "nf4 inference", "training", "nf4 training"])
def test_freed_blocks_go_back_while_a_model_is_read_and_are_kept_for_a_small_ones_passes(
    tiny: Path, adapters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, way: str, limit: int, calls: list[str]
) -> None:
    told: list[str] = []
    monkeypatch.setattr(load, "LARGE", limit)
    monkeypatch.setattr(load, "give_back_large_blocks", lambda *size: told.append("back"))
    monkeypatch.setattr(load, "keep_freed_blocks", lambda: told.append("keep"))
    monkeypatch.setattr(load, "lean_layers", lambda model: told.append("read"))
    quantize: Any = "nf4" if way.startswith("nf4") else "none"
    if way.endswith("inference"):
        load_for_inference(checkpoint(tiny, adapters[:1], quantize))
    else:
        load_for_training(checkpoint(tiny), Lora(r=4), quantize, dtype="bfloat16", continues=False, seed=0)
    assert told == calls


def test_an_nf4_base_stored_in_32_bits_is_held_as_one_in_16_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``plan`` counts parameters, so what decides here must not be the file's size."""
    sizes: list[int] = []
    monkeypatch.setattr(load, "unpacks", lambda in_16_bits, nf4, dtype: bool(sizes.append(in_16_bits)))
    for dtype in (torch.bfloat16, torch.float32):
        folder = tmp_path / str(dtype)
        shutil.copytree(tiny, folder)
        shards.write(shards.weights_of(tiny, dtype, CPU), folder, most=100_000)
        (folder / shards.WHOLE).unlink()
        load_for_training(checkpoint(folder), Lora(r=4), "nf4", dtype="bfloat16", continues=False, seed=0)
    assert sizes == [2 * sum(value.numel() for value in load_file(tiny / shards.WHOLE).values())] * 2
