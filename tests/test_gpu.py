"""Training and scoring on a GPU against the CPU or the plain computation; each test that can do
without one runs on the CPU too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_forest import FAMILIES, agree, tree_of

from openbezoar.forest import Scorer, TokenPath, Tree, flex
from openbezoar.forest.attention import _segments
from openbezoar.llm import Sampling
from openbezoar.llm.local import LocalLLM
from openbezoar.models import load
from openbezoar.models.references import Checkpoint
from openbezoar.progress import Silent
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.train_steps import Lora, Sft
from openbezoar.training.loop import train
from openbezoar.training.objectives import sft_objective

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
HAS_KERNELS = torch.cuda.is_available() and torch.cuda.get_device_capability() >= flex.CAPABILITY
FLEX = pytest.mark.skipif(not HAS_KERNELS, reason="needs a GPU of compute capability 8.0")
DEEP = [14, [9, [11, [7], [3]], [5]], [20], [2, [2, [30], [1]], [40]]]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where models are loaded."""
    given = torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")
    monkeypatch.setattr(load, "device", lambda: given)
    return given


def checkpoint(folder: Path, dtype: str = "float32") -> Checkpoint:
    return Checkpoint("base", str(folder), (), "none", dtype, PromptSpec())  # type: ignore[arg-type]


def rows(n: int = 6) -> list[Tree]:
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randint(3, 400, (30 + 17 * i,), generator=generator).tolist() for i in range(n))
    return [(TokenPath.of(ids[:9], ids[9:]), TokenPath.of(ids[:9], ids[20:])) for ids in drawn]


def trained(folder: Path, out: Path, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Optimiser steps of all rows each: (the model, the lines of its metrics)."""
    given = {
        "sft": "x",
        "model": "base",
        "quantize": "none",
        "batch": 6,
        "max_steps": 4,
        "epochs": 4,
        "learning_rate": 1e-3,
        "warmup": 0.0,
        **changes,
    }
    step = Sft(**given)
    model = load.load_for_training(
        checkpoint(folder),
        Lora(r=4, dropout=0.0),
        step.quantize,
        dtype=step.dtype,
        continues=False,
        seed=0,
        nf4=step.nf4,
    )
    scorer = Scorer(model)
    out.mkdir()
    train(
        model,
        scorer,
        rows(),
        objective=sft_objective(scorer, rows(2)),
        settings=step,
        out=out,
        progress=Silent(),
        seed=3,
    )
    return model, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@FLEX
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("window", "cap", "heads", "kv_heads", "d"),
    [(None, None, 9, 3, 64), (100, None, 8, 8, 128), (None, 30.0, 8, 4, 100), (64, 50.0, 4, 1, 256)],
)
def test_compiled_flex_attention_agrees_with_segments(
    dtype: torch.dtype, window: int | None, cap: float | None, heads: int, kv_heads: int, d: int
) -> None:
    if dtype == torch.float32 and d > 128:
        pytest.skip("its fp32 tiles are larger than some GPUs' shared memory; such layers use segments")
    query, key = (torch.empty(1, h, 1, d, dtype=dtype, device="cuda") for h in (heads, kv_heads))
    assert flex._fault(query, key, window, cap, _segments) == ""


@GPU
@pytest.mark.parametrize("family", FAMILIES)
def test_forests_of_every_family_agree_with_plain_passes_on_a_gpu(family: str) -> None:
    flex._usable.clear()
    agree(
        family,
        [tuple(tree_of(DEEP, torch.Generator().manual_seed(4), ())), (TokenPath.of(range(3, 40), range(40, 60)),)],
        "cuda",
    )
    assert all(flex._usable.values())
    assert bool(flex._usable) == HAS_KERNELS


@FLEX
def test_activation_checkpointing_over_flex_attention_leaves_the_gradients_as_they_are(tiny: Path) -> None:
    found = []
    for again in (False, True):
        model = load.load_for_training(
            checkpoint(tiny), Lora(r=4, dropout=0.1), "none", dtype="bfloat16", continues=False, seed=0
        )
        if again:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        scorer = Scorer(model.train())
        torch.manual_seed(1)
        loss, _ = sft_objective(scorer, rows()).loss(rows(), 100.0)
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).abs().max()) <= 1e-2 * float(found[0].abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_forests_in_16_bits_stay_within_their_rounding_of_float32(
    device: torch.device, tiny_gemma: Path, dtype: str
) -> None:
    exact, _ = load.load_for_inference(checkpoint(tiny_gemma))
    rough, _ = load.load_for_inference(checkpoint(tiny_gemma, dtype))
    assert (
        next(rough.parameters()).dtype == load.arithmetic(DTYPES[dtype]) and next(rough.parameters()).device == device
    )
    wanted, got = (
        torch.cat([path for tree in Scorer(model).logprobs(rows()) for path in tree]) for model in (exact, rough)
    )
    assert got.device.type == "cpu" and got.dtype == torch.float32
    assert float((wanted - got).abs().mean()) < (0.02 if dtype == "bfloat16" else 0.004)


@pytest.mark.slow
def test_a_float16_step_with_loss_scaling_has_the_gradient_of_a_float32_step(
    device: torch.device, tiny: Path, tmp_path: Path
) -> None:
    _, exact = trained(tiny, tmp_path / "fp32", dtype="float32")
    model, rough = trained(tiny, tmp_path / "fp16", dtype="float16")
    assert next(model.parameters()).device == device
    # a scale that overflows is halved, and the adapter left alone
    first = next(line for line in rough if "skipped" not in line)
    assert first["loss_scale"] >= 2.0**10
    assert first["gradient_norm"] == pytest.approx(exact[0]["gradient_norm"], rel=0.02)
    assert first["loss"] == pytest.approx(exact[0]["loss"], abs=0.01)
    assert rough[-1]["loss"] < first["loss"]
    assert all(p.dtype == torch.float32 and p.device == device for p in model.parameters() if p.requires_grad)


def test_nf4_trains_on_packed_weights_and_evaluation_leaves_its_gradients_alone(
    device: torch.device, tiny: Path, tmp_path: Path
) -> None:
    model, lines = trained(
        tiny, tmp_path / "nf4", dtype="bfloat16", quantize="nf4", nf4="packed", evaluate_every=1, learning_rate=1e-2
    )
    assert any(type(layer).__name__ == "Linear4bit" for layer in model.modules())
    assert all(math.isfinite(line["gradient_norm"]) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    scorer = Scorer(model.train())

    def gradient() -> torch.Tensor:
        loss, _ = sft_objective(scorer, rows()).loss(rows(), 100.0)
        loss.backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        model.zero_grad()
        return found

    first, again = gradient(), gradient()
    scorer.logprobs(rows())
    after = gradient()
    # The GPU's attention adds up in an order that changes; on a CPU there is no such noise.
    noise = 2 * float((again - first).abs().max())
    assert device.type == "cuda" or noise == 0
    assert float((after - first).abs().max()) <= noise
    assert float(first.abs().max()) > 0


@pytest.mark.parametrize("folder", ["tiny", "tiny_gemma"])
def test_forest_lm_gives_the_log_probabilities_of_the_plain_model(
    device: torch.device, folder: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from openbezoar.harness.forest_lm import ForestLM

    model, tokenizer = load.load_for_inference(checkpoint(request.getfixturevalue(folder)))
    lm = ForestLM(model, tokenizer)
    # a trailing space would go to the continuation
    stem = "What is the capital of France? The capital of France is Paris, a city on the river Seine." * 6
    pairs = [(stem, " The sea."), (stem, " The wind and the sea."), (stem + "Why?", " Yes"), ("Numbers: 0 1 2", " 3")]
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        n = len(lm.tok_encode(context))
        whole = torch.tensor([lm.tok_encode(context + continuation)], device=device)
        logs = model(whole).logits[0, n - 1 : -1].float().log_softmax(-1)
        wanted = logs.gather(-1, whole[0, n:, None])[:, 0]
        assert value == pytest.approx(float(wanted.sum()), abs=1e-3)
        assert greedy == bool((logs.argmax(-1) == whole[0, n:]).all())


@pytest.mark.parametrize("folder", ["tiny", "tiny_gemma"])
def test_answers_on_a_device_are_its_model_s_own(
    device: torch.device, folder: str, request: pytest.FixtureRequest
) -> None:
    local = LocalLLM(checkpoint(request.getfixturevalue(folder)))
    prompts = ["What is the capital", "Write a short poem about the sea and the wind, and say why you like it. " * 8]
    drawn = local.complete(prompts, [Sampling(12), Sampling(12, temperature=1.0, top_p=0.9)], [1, 2])
    assert drawn[1] == local.complete(prompts[1:], Sampling(12, temperature=1.0, top_p=0.9), [2])[0]
    ids = torch.tensor([local.tokenizer(prompts[0]).input_ids], device=device)
    theirs = local.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )[0, ids.shape[1] :]
    assert drawn[0].text == local.tokenizer.decode(theirs, skip_special_tokens=True).strip()
