"""Settings that leave a choice to the model: adapters on all linear layers, rank-stabilised scaling, a base
held by its size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from openbezoar.engine import execution, graph
from openbezoar.errors import ModelError, RecipeError
from openbezoar.forest import Scorer, TokenPath
from openbezoar.machine.devices import device_named
from openbezoar.models.adapters import adapter_deltas
from openbezoar.models.files.adapter_file import WEIGHTS
from openbezoar.models.load import load_for_inference, load_for_training, targets_of
from openbezoar.models.memory import LARGE, quantisation, shape_of, trained_parameters
from openbezoar.models.references import Checkpoint, checkpoint_of_step
from openbezoar.models.shards import weights_of, write
from openbezoar.plan.concerns import concerns
from openbezoar.plan.estimates import estimate
from openbezoar.progress import Silent
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import load
from openbezoar.recipe.train_steps import Lora, Sft
from openbezoar.reporting.training import settings_table
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.train.result import SftNumbers

SEVEN = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ALL: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear", "rslora": True}


def checkpoint(folder: Path, *adapters: Path) -> Checkpoint:
    return Checkpoint("base", str(folder), adapters, "none", "float32", PromptSpec())


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).requires_grad_(False)


# ------------------------------------------------------------------------- all-linear


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_all_linear_is_every_linear_layer_but_the_head_as_peft_has_it(
    family: str, tiny: Path, tiny_gemma: Path
) -> None:
    folder = {"llama": tiny, "gemma3": tiny_gemma}[family]
    assert targets_of(plain(folder), Lora(targets="all-linear"), "m") == SEVEN
    ours = load_for_training(checkpoint(folder), Lora(**ALL), "none", dtype="float32", continues=False, seed=0)
    theirs = get_peft_model(plain(folder), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert {n for n, _ in ours.named_parameters() if "lora_" in n} == {
        n for n, _ in theirs.named_parameters() if "lora_" in n
    }


def test_plan_counts_the_parameters_that_an_adapter_on_all_layers_has(tiny: Path) -> None:
    model = load_for_training(checkpoint(tiny), Lora(**ALL), "none", dtype="float32", continues=False, seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = shape_of(model.config.to_dict())
    assert trained_parameters(shape, Sft(sft="x", model="m", lora=Lora(**ALL))) == trained
    assert trained_parameters(shape, Sft(sft="x", model="m", lora=Lora(r=4, targets=SEVEN))) == trained


def test_a_last_name_that_another_module_has_too_is_given_with_its_path() -> None:
    model: Any = plain_module()
    assert targets_of(model, Lora(targets="all-linear"), "m") == ["deep.gate", "flat"]


def plain_module() -> torch.nn.Module:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = torch.nn.ModuleDict({"gate": torch.nn.Linear(2, 2)})
            self.flat, self.gate, self.head = torch.nn.Linear(2, 2), torch.nn.SiLU(), torch.nn.Linear(2, 9)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    return Odd()


def test_a_model_without_linear_layers_is_told_of_in_one_line() -> None:
    class Empty(torch.nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ModelError, match=r"^m: the model has no linear layers"):
        targets_of(Empty(), Lora(targets="all-linear"), "m")


@pytest.mark.parametrize("targets", ["all", [], 3])
def test_other_targets_are_refused_in_one_line(targets: Any, write_recipe: Callable[..., Path]) -> None:
    step = {"sft": "rows.jsonl", "model": "base", "lora": {"targets": targets}}
    with pytest.raises(RecipeError, match=r"steps.a: lora.targets: ") as error:
        load(write_recipe({"a": step}))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------ rank-stabilised


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
def test_a_merged_adapter_is_the_unmerged_one_with_either_scale(
    rslora: bool, scale: float, tiny: Path, tmp_path: Path
) -> None:
    lora = Lora(**{**ALL, "rslora": rslora})
    model = load_for_training(checkpoint(tiny), lora, "none", dtype="float32", continues=False, seed=0)
    model.save_pretrained(str(tmp_path / "a"), save_embedding_layers=False)
    held = load_file(tmp_path / "a" / WEIGHTS)
    torch.manual_seed(2)
    save_file({name: torch.randn_like(value) * 0.1 for name, value in held.items()}, tmp_path / "a" / WEIGHTS)
    assert {update.scale for update in adapter_deltas(tmp_path / "a").values()} == {scale}
    write(weights_of(tiny, torch.float32, torch.device("cpu"), last=tmp_path / "a"), tmp_path / "merged")
    plain(tiny).config.save_pretrained(tmp_path / "merged")
    trees = [(TokenPath.of(range(5, 9), range(20, 40)),)]
    unmerged, _ = load_for_inference(checkpoint(tiny, tmp_path / "a"))
    scores = [Scorer(one).logprobs(trees)[0][0] for one in (unmerged, plain(tmp_path / "merged").eval(), plain(tiny))]
    assert torch.allclose(scores[0], scores[1], atol=1e-4)
    assert not torch.allclose(scores[0], scores[2], atol=1e-2)


def test_an_adapter_s_settings_are_written_as_before_where_the_scale_is_the_usual() -> None:
    assert Lora().model_dump() == {"r": 16, "alpha": 16, "dropout": 0.05, "targets": ["q_proj", "k_proj", "v_proj"]}
    assert Lora(rslora=True).model_dump()["rslora"] is True


# ------------------------------------------------------------------------------ auto


def test_auto_holds_a_small_base_in_16_bits_and_a_large_one_in_nf4() -> None:
    assert [quantisation("auto", n) for n in (LARGE - 1, LARGE)] == ["none", "nf4"]
    assert [quantisation(asked, 1) for asked in ("nf4", "none")] == ["nf4", "none"]  # type: ignore[arg-type]


def test_plan_warns_where_what_auto_chose_does_not_fit(write_recipe: Callable[..., Path]) -> None:
    shape = {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "mlp": 5632, "vocabulary": 32000}
    steps = {"a": {"sft": "rows.jsonl", "model": "base", "quantize": "auto"}}
    path = write_recipe(steps, models={"base": {"model": "none/none", "shape": shape}})
    built, device = graph.build(load(path), path, path.parent), device_named("cuda:2GB")
    (text,) = [c.text for c in concerns(built, estimate(built, device), device) if c.kind == "memory"]
    assert text.startswith("does not fit") and "set quantize: nf4" in text


def test_a_run_keeps_what_its_settings_came_to_and_goes_on_with_them(write_recipe: Callable[..., Path]) -> None:
    common = {**FAST, "model": "base", "quantize": "auto", "lora": ALL, "max_steps": 2, "heldout_rows": 2}
    path = write_recipe(
        {
            "a": {"sft": "rows.jsonl", **common},
            "b": {"sft": "rows.jsonl", **common, "model": "a"},
            "m": {"merge": "b", "drift_rows": 2},
        }
    )
    runs = path.parent / "runs"
    execution.execute(graph.build(load(path), path, runs), Silent())
    run = RunFolder(runs / "t")
    for name in "ab":
        numbers = (run.manifest(name) or {})["numbers"]
        assert numbers["quantize"] == "none" and numbers["targets"] == SEVEN
        config = json.loads((run.step(name) / "adapter/adapter_config.json").read_text())
        assert config["use_rslora"] and sorted(config["target_modules"]) == SEVEN
        assert checkpoint_of_step(name, run.path).quantize == "none"
    assert len(checkpoint_of_step("b", run.path).adapters) == 1, "the adapter of a is gone on with"
    assert (run.manifest("m") or {})["numbers"]["kl"] < 1e-3
    cells = settings_table([SftNumbers.left_by("a", run.step("a"))]).rows[0]
    assert f"alpha=8.0 (rank-stabilised), dropout=0.0, {' '.join(SEVEN)}" in cells[5] and cells[6] == "none"
