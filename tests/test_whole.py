"""Training of all weights: gradients against the model's own, master copies, resume, and the steps from rows
to models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST
from test_head import FAMILIES, PATHS, by_the_model, total
from test_loop import Killed, trees
from transformers import AutoConfig, AutoModelForCausalLM

import openbezoar as ob
from openbezoar.engine import execution, graph
from openbezoar.errors import RecipeError
from openbezoar.forest import Scorer
from openbezoar.models.layers import lean_layers
from openbezoar.models.load import load_for_inference, load_tokenizer, load_whole
from openbezoar.models.memory import shape_of, trained_bytes, trained_parameters
from openbezoar.models.references import Checkpoint, checkpoint_of_step
from openbezoar.progress import Silent
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import load
from openbezoar.recipe.train_steps import Sft
from openbezoar.store.runs import RunFolder
from openbezoar.training import checkpointing, loop
from openbezoar.training.fit import Bench
from openbezoar.training.loop import train
from openbezoar.training.masters import Masters
from openbezoar.training.objectives import sft_objective

ALL: dict[str, Any] = {"lora": "none", "quantize": "none"}


def given(folder: Path) -> Checkpoint:
    return Checkpoint("base", str(folder), (), "none", "float32", PromptSpec())


# --------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(("tied", "plain"), [(False, False), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_has_the_gradient_that_the_model_itself_gives_it(family: str, tied: bool, plain: bool) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], "tie_word_embeddings": tied})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if getattr(model.lm_head, "bias", None) is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    theirs = by_the_model(model)
    names, weights = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(total(theirs), weights)
    assert lean_layers(model) or family in ("granite", "phi")
    scorer = Scorer(model, head_bytes=4 * 97 * 2, plain=plain)  # two rows a product
    ours = [path for tree in scorer.score([tuple(PATHS[:2]), tuple(PATHS[2:])]) for path in tree]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for name, a, b in zip(names, torch.autograd.grad(total(ours), weights), wanted, strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()) + 1e-7, name
    assert ("lm_head.weight" in names) is not tied


# ------------------------------------------------------------------------------ master copies


@pytest.mark.usefixtures("bfloat16")
def test_small_updates_add_up_in_the_copies_where_16_bits_would_lose_each(tiny_gemma: Path) -> None:
    model = load_whole(given(tiny_gemma), dtype="bfloat16", trained=True)
    masters = Masters(model)
    weight, master = masters.held["model.norm.weight"], masters.values["model.norm.weight"]
    assert master.dtype == torch.float32 and weight.dtype == torch.bfloat16
    with torch.no_grad():
        master.fill_(1.0)
        masters.push()
        for _ in range(8):
            weight.add_(0.001)  # less than half of what bf16 tells apart at 1
            master.add_(0.001)
        assert float(weight.detach().max()) == 1.0
        masters.push()
    assert 1 < float(weight.detach().max()) == pytest.approx(1.008, abs=0.004)


@pytest.mark.usefixtures("bfloat16")
def test_gradients_of_several_passes_add_up_in_the_copies_and_are_let_go_in_the_model(tiny_gemma: Path) -> None:
    found = []
    for dtype in ("bfloat16", "float32"):
        model = load_whole(given(tiny_gemma), dtype=dtype, trained=True)
        masters, scorer = Masters(model), Scorer(model, 64)
        for part in (trees()[:4], trees()[4:]):
            sum(path.sum() for tree in scorer.score(part) for path in tree).backward()  # type: ignore[union-attr]
        if dtype == "bfloat16":
            assert all(p.grad is None for p in model.parameters())
        found.append({name: value.grad for name, value in masters.values.items()})
    for name, exact in found[1].items():  # the embeddings are the head too, and add up once
        rounded = found[0][name]
        assert rounded is not None and exact is not None and rounded.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(rounded.flatten(), exact.flatten(), 0) > 0.98, name
        assert float(rounded.norm() / exact.norm()) == pytest.approx(1, abs=0.05), name


def test_an_adapter_s_values_stand_for_themselves() -> None:
    layer = torch.nn.Linear(3, 2)
    assert Masters(layer).values == dict(layer.named_parameters())


def trained(folder: Path, out: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A tiny model trained whole in a folder: (the numbers, its weights)."""
    out.mkdir(exist_ok=True)
    usual = {"sft": "x", "model": "base", "dtype": "bfloat16", "batch": 3, "learning_rate": 1e-3, "tokens": 64}
    settings = Sft(**{**usual, "warmup": 0.0, "epochs": 1.5, **ALL, **changes})
    model = load_whole(given(folder), dtype=settings.dtype, trained=True)
    scorer = Scorer(model, settings.tokens)
    numbers = train(
        model,
        scorer,
        trees(),
        objective=sft_objective(scorer, trees(4, seed=1)),
        settings=settings,
        out=out,
        progress=Silent(),
        seed=5,
    )
    return numbers, {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [
        {"save_every": 2, "evaluate_every": 3},
        pytest.param({"save_every": 2, "optimizer": "adamw8bit"}, marks=pytest.mark.slow),
        pytest.param({"save_every": 2, "dtype": "float32"}, marks=pytest.mark.slow),
        pytest.param({"save_every": 2, "dtype": "float16"}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: changes.get("optimizer", changes.get("dtype", "best kept")),
)
def test_a_training_killed_between_two_steps_has_the_weights_of_one_that_was_not(
    changes: dict[str, Any], tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = trained(tiny_gemma, tmp_path / "whole", **changes)
    assert whole["steps"] == 6 and whole["heldout_loss_after"] != whole["heldout_loss_before"]
    step = loop._step

    def mortal(job: Any, state: Any, *rest: Any) -> Any:
        if state.step == 3:
            raise Killed
        return step(job, state, *rest)

    monkeypatch.setattr(loop, "_step", mortal)
    with pytest.raises(Killed):
        trained(tiny_gemma, tmp_path / "killed", **changes)
    monkeypatch.setattr(loop, "_step", step)
    _, found = trained(tiny_gemma, tmp_path / "killed", **changes)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    for name in ("metrics.jsonl", "heldout.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_weights_of_the_best_measurement_are_kept(tiny: Path, tmp_path: Path) -> None:
    """At so high a rate the first step is the best one, and the model ends with its weights, not the copies alone."""
    rising = {"learning_rate": 0.3, "dtype": "bfloat16", "batch": 10}
    numbers, kept = trained(tiny, tmp_path / "best", evaluate_every=1, epochs=3, **rising)
    assert numbers["kept_step"] < numbers["steps"] == 3
    _, then = trained(tiny, tmp_path / "then", epochs=3, evaluate_every=numbers["kept_step"], patience=1, **rising)
    _, last = trained(tiny, tmp_path / "last", epochs=3, **rising)
    assert all(torch.equal(kept[name], then[name]) for name in kept)
    assert any(not torch.equal(kept[name], last[name]) for name in kept)


def test_with_recomputed_activations_gradients_are_the_same_bits(tiny_gemma: Path) -> None:
    found = []
    for recomputed in (False, True):
        model = load_whole(given(tiny_gemma), dtype="bfloat16", trained=True).train()
        step = Sft(sft="x", model="m", checkpointing=recomputed, **ALL)
        masters, bench = Masters(model), Bench.of(model, step, None)  # type: ignore[arg-type]
        assert bool(checkpointing.apply(model, step)) is recomputed
        sum(path.sum() for tree in bench.scorer.score(trees()[:3]) for path in tree).backward()  # type: ignore[union-attr]
        found.append({name: value.grad for name, value in masters.values.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- steps


def run(path: Path) -> RunFolder:
    execution.execute(graph.build(load(path), path, path.parent / "runs"), Silent())
    return RunFolder(path.parent / "runs" / "t")


def test_a_step_makes_a_whole_model_that_others_take_as_they_take_a_merged_one(
    write_recipe: Callable[..., Path], tiny: Path
) -> None:
    common = {**FAST, **ALL, "dtype": "bfloat16", "max_steps": 2, "heldout_rows": 2}
    made = run(
        write_recipe(
            {
                "all": {"sft": "rows.jsonl", "model": "base", **common},
                "liked": {"dpo": "pairs.jsonl", "model": "all", "reference": "cached", **common},
            }
        )
    )
    checkpoint = checkpoint_of_step("liked", made.path)
    assert checkpoint.adapters == () and checkpoint.quantize == "none" and checkpoint.dtype == "bfloat16"
    assert checkpoint.base == str(made.step("liked").resolve() / "model")
    assert not (made.step("liked") / "adapter").exists()
    files = {file.name for file in (made.step("liked") / "model").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= files
    theirs: Any = AutoModelForCausalLM.from_pretrained(checkpoint.base)
    ours, _ = load_for_inference(checkpoint)
    base: Any = AutoModelForCausalLM.from_pretrained(str(tiny), dtype=torch.bfloat16)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert theirs.dtype == torch.bfloat16
    assert torch.allclose(theirs(ids).logits.float(), ours(ids).logits.float(), atol=0.05)
    moved = [name for name, p in theirs.named_parameters() if not torch.equal(p, base.get_parameter(name))]
    assert len(moved) > 15 and {"model.embed_tokens.weight", "lm_head.weight"} <= set(moved)
    first = json.loads((made.step("liked") / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3) and first["rewards/margins"] == 0
    numbers = (made.manifest("all") or {})["numbers"]
    assert numbers["trainable_parameters"] == sum(p.numel() for p in base.parameters())
    assert numbers["heldout_loss_after"] < numbers["heldout_loss_before"]
    assert load_tokenizer(Path(checkpoint.base)).get_vocab() == load_tokenizer(tiny).get_vocab()


@pytest.mark.slow
def test_second_copies_are_references_and_whole_models_are_evaluated_released_and_adapted(
    write_recipe: Callable[..., Path],
) -> None:
    common = {**FAST, "quantize": "none", "heldout_rows": 2}
    whole, lora = {**common, "lora": "none"}, {**common, "lora": {"r": 4, "alpha": 4}}
    made = run(
        write_recipe(
            {
                "dpo": {"dpo": "pairs.jsonl", "model": "base", **whole},
                "cached": {"dpo": "pairs.jsonl", "model": "base", "reference": "cached", **whole},
                "kto": {"kto": "pairs.jsonl", "model": "dpo", **whole},
                "sft": {"sft": "rows.jsonl", "model": "kto", **lora},
                "whole": {"sft": "rows.jsonl", "model": "sft", **whole},
                "scores": {"evaluate": ["base", "kto"], "losses": {"mine": "rows.jsonl"}, "loss_rows": 4},
                "release": {"release": ["kto"], "gguf": ["f16"]},
            }
        )
    )
    for name in ("dpo", "cached", "kto"):
        first, *_, last = map(json.loads, (made.step(name) / "metrics.jsonl").read_text().splitlines())
        assert first["loss"] == pytest.approx(0.5 if name == "kto" else 0.6931, abs=1e-3)
        assert last["loss"] < first["loss"] - 1e-3, "the reference does not move with the policy"
    assert [len(checkpoint_of_step(name, made.path).adapters) for name in ("sft", "whole")] == [1, 0]
    released = made.step("release") / "kto"
    assert (released / "gguf/kto-F16.gguf").is_file() and (released / "model.safetensors").is_file()


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"a": {"sft": "rows.jsonl", "model": "base", "lora": "none"}}, r"steps.a: lora: none .*; set quantize: none"),
        (
            {"a": {"sft": "rows.jsonl", "model": "base", "lora": "none", "quantize": "auto"}},
            r"steps.a: lora: none .* quantize: auto .*; set quantize: none",
        ),
        ({"a": {"sft": "rows.jsonl", "model": "base", "lora": "all"}}, r"steps.a: lora: .*'none'"),
        ({"a": {"sft": "rows.jsonl", "model": "base", "lora": {"ran": 3}}}, r"steps.a: lora.ran: unknown key"),
        (
            {"a": {"sft": "rows.jsonl", "model": "base", **ALL}, "m": {"merge": "a"}},
            r"steps.m.merge: 'a' is a whole model, with nothing to merge; .* name 'a'",
        ),
        (
            {"a": {"sft": "rows.jsonl", "model": "base"}, "r": {"release": ["a"]}},
            r"steps.r.release: 'a' is a sft step and has no",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_in_one_line(
    steps: dict[str, Any], said: str, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe(steps)
    with pytest.raises(RecipeError, match=said) as error:
        graph.build(load(path), path, path.parent / "runs")
    assert "\n" not in str(error.value)


def test_in_memory_all_weights_are_not_trained(tiny: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(str(tiny), dtype=torch.float32)
    with pytest.raises(RecipeError, match="sft: lora: 'none' trains all weights, which a recipe's steps do"):
        ob.sft(model, load_tokenizer(tiny), [{"instruction": "a", "response": "b"}], lora="none")


# ------------------------------------------------------------------------------------- memory


def test_memory_counts_what_all_weights_take(tiny: Path) -> None:
    model = load_whole(given(tiny), dtype="bfloat16", trained=True)
    shape = shape_of(model.config.to_dict())
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    step = Sft(sft="x", model="m", **ALL)
    n = trained_parameters(shape, step)
    assert n + norms == sum(p.numel() for p in model.parameters())
    assert trained_bytes(shape, step) == n * (4 + 4 + 8)  # copies, gradients, two moments
    assert trained_bytes(shape, step.model_copy(update={"dtype": "float32"})) == n * (4 + 8)
    assert trained_bytes(shape, step.model_copy(update={"optimizer": "adamw8bit"})) < n * 10.1
