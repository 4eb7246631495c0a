"""The LoRA layers' own forward pass, against PEFT's and against the equation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM

from openbezoar.forest import Scorer, TokenPath
from openbezoar.models.load import load_for_training
from openbezoar.models.lora import drop_mask, fast_lora
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.train_steps import Lora

IDS = torch.arange(3, 60).reshape(3, 19)


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint("base", str(folder), (), "none", "float32", PromptSpec())


def wrapped(folder: Path, dropout: float = 0.0, **settings: Any) -> Any:
    """A PEFT model in fp32 whose B is not zero, so that every gradient counts."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).requires_grad_(False)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules=["q_proj", "v_proj", "down_proj"],
        task_type="CAUSAL_LM",
        **settings,
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


def run(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the adapter's gradients of an arbitrary function of them."""
    torch.manual_seed(7)
    logits = model(input_ids=IDS).logits
    logits.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return logits.detach(), gradients


def test_outputs_and_gradients_equal_peft_s(tiny: Path) -> None:
    model = wrapped(tiny)
    theirs, their_gradients = run(model)
    assert fast_lora(model) == 3 * model.config.num_hidden_layers
    ours, our_gradients = run(model)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(our_gradients[name], gradient, atol=1e-4 * float(gradient.abs().max())), name


def test_with_the_adapter_off_the_base_answers_bit_for_bit(tiny: Path) -> None:
    model = wrapped(tiny, dropout=0.1)
    fast_lora(model)
    plain = AutoModelForCausalLM.from_pretrained(str(tiny), dtype=torch.float32)(input_ids=IDS).logits
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, plain)
    assert not torch.equal(model(input_ids=IDS).logits, plain)


def test_dropout_zeroes_inputs_of_the_adapter_alone_and_rescales_the_rest(tiny: Path) -> None:
    model = wrapped(tiny, dropout=0.25)
    fast_lora(model)
    layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
    x = torch.randn(40, layer.in_features, generator=torch.Generator().manual_seed(3), requires_grad=True)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.manual_seed(11)
    out = layer(x)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    gradients = torch.autograd.grad(out, (x, a, b), upstream)
    torch.manual_seed(11)
    drop, p = drop_mask(40, layer.in_features, 0.25, x.device)
    assert p == 0.25
    kept = x * ~drop
    expected = layer.base_layer(x) + (8 / 4) / (1 - p) * kept @ a.T @ b.T
    assert torch.allclose(out, expected, atol=1e-5)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, (x, a, b), upstream), strict=True):
        assert torch.allclose(gradient, wanted, atol=1e-5 * float(1 + wanted.abs().max()))


def test_the_mask_drops_the_share_it_says_everywhere_and_anew_each_time() -> None:
    torch.manual_seed(5)
    one, p = drop_mask(1000, 401, 0.05, torch.device("cpu"))  # 401,000 is no multiple of four by rows
    other, _ = drop_mask(1000, 401, 0.05, torch.device("cpu"))
    assert p == pytest.approx(0.05, abs=2**-17)
    for mask in (one, other):
        # 401,000 draws: a standard deviation of 0.00034. A row: 0.011; a column: 0.0069.
        assert float(mask.double().mean()) == pytest.approx(0.05, abs=0.0017)
        assert float(mask.double().mean(0).max()) < 0.05 + 6 * 0.0069
        assert float(mask.double().mean(1).max()) < 0.05 + 6 * 0.011
    assert float((one & other).double().mean()) == pytest.approx(0.0025, abs=0.0004)


def test_a_layer_that_is_not_plain_lora_keeps_peft_s_forward(tiny: Path) -> None:
    assert fast_lora(wrapped(tiny, use_dora=True)) == 0
    assert fast_lora(wrapped(tiny, lora_bias=True)) == 0
    two = wrapped(tiny)
    two.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert fast_lora(two) == 2 * two.config.num_hidden_layers  # v_proj and down_proj have one adapter


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_nf4_unpacked_gives_the_gradients_of_nf4_packed_bit_for_bit(tiny: Path, dropout: float) -> None:
    trees = [(TokenPath.of(range(5, 20), range(20, 40)), TokenPath.of(range(5, 20), range(60, 70)))]
    found = []
    for held in ("packed", "unpacked"):
        model = load_for_training(
            checkpoint(tiny), Lora(r=4, dropout=dropout), "nf4", dtype="bfloat16", continues=False, seed=3, nf4=held
        )  # type: ignore[arg-type]
        quantised = any(type(m).__name__ == "Linear4bit" for m in model.modules())
        assert quantised == (held == "packed")
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.copy_(torch.linspace(-0.02, 0.02, p.numel()).view(p.shape))
        model.train()
        torch.manual_seed(9)
        scores = [path for tree in Scorer(model).score(trees) for path in tree]
        sum(path.sum() for path in scores).backward()  # type: ignore[union-attr]
        found.append([torch.cat(scores).detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
