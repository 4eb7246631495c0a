"""The vocabulary head: no bias in fp32. An adapter on it: values, gradients, merge and memory
against the model's own forward pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_shards import CPU, checkpoint, merge_whole, save_adapter, whole
from transformers import AutoConfig, AutoModelForCausalLM

from openbezoar.forest import Scorer, TokenPath
from openbezoar.forest.head import AdaptedLogProb, SelectedLogProb, Shaping, log_distribution
from openbezoar.models import shards
from openbezoar.models.load import load_for_inference, load_for_training
from openbezoar.models.memory import shape_of, trained_parameters
from openbezoar.recipe.train_steps import Lora, Sft

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "granite": {**SHAPE, "logits_scaling": 3.0},  # a factor
    "phi": SHAPE,  # a bias
    "gemma2": {**SHAPE, "num_key_value_heads": 6, "head_dim": 16, "final_logit_softcapping": 2.0, "sliding_window": 64},
}
PATHS = [
    TokenPath.of([5, 6, 7, 8], [9, 10, 11]),
    TokenPath.of([5, 6, 7, 8], [12, 13]),
    TokenPath.of([40, 41], [42, 43, 44, 45]),
]


def adapted_model(family: str, dropout: float = 0.0, targets: tuple[str, ...] = ("q_proj", "lm_head")) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **FAMILIES[family]), dtype=torch.float32
    ).requires_grad_(False)
    if getattr(model.lm_head, "bias", None) is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    peft = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=list(targets), task_type="CAUSAL_LM")
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return peft.eval()


def by_the_model(model: Any) -> list[torch.Tensor]:
    found = []
    for path in PATHS:
        logs = model(torch.tensor([path.ids])).logits[0].log_softmax(-1)
        found.append(torch.stack([logs[i - 1, path.ids[i]] for i, asked in enumerate(path.scored) if asked]))
    return found


def total(scores: list[torch.Tensor]) -> torch.Tensor:
    """Each token's log-probability with a weight of its own, so that a gradient that forgets what
    comes from above is wrong.
    """
    flat = torch.cat(scores)
    return (flat * torch.linspace(-1.0, 2.0, len(flat))).sum()


@pytest.mark.parametrize("plain", [False, True], ids=["forest", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_on_the_head_gives_the_model_s_own_values_and_gradients(family: str, plain: bool) -> None:
    model = adapted_model(family)
    theirs = by_the_model(model)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    wanted = torch.autograd.grad(total(theirs), parameters)
    scorer = Scorer(model, head_bytes=4 * 97 * 2, plain=plain)  # two rows a product
    scorer.checked = True
    ours = [path for tree in scorer.score([tuple(PATHS[:2]), tuple(PATHS[2:])]) for path in tree]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert any("lm_head.lora_B" in name for name in names) and any("q_proj.lora_A" in name for name in names)
    for name, a, b in zip(names, torch.autograd.grad(total(ours), parameters), wanted, strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()), name
        assert float(b.abs().max()) > 0, name


def test_an_adapter_on_the_head_can_be_switched_off_and_its_dropout_is_drawn_in_training_only() -> None:
    model = adapted_model("llama", dropout=0.5, targets=("lm_head",))
    scorer = Scorer(model)
    trees = [tuple(PATHS[:2])]

    def scores() -> torch.Tensor:
        return torch.cat([path for tree in scorer.score(trees) for path in tree]).detach()

    on = scores()
    assert torch.equal(on, scores())
    with model.disable_adapter():
        off = scores()
        assert torch.allclose(off, torch.cat(by_the_model(model)[:2]).detach(), atol=1e-5)
    assert float((on - off).abs().max()) > 0.01
    model.train()
    torch.manual_seed(1)
    first = scores()
    torch.manual_seed(1)
    assert torch.equal(first, scores()) and not torch.equal(first, scores())


def test_an_adapter_on_the_head_is_trained_saved_loaded_and_merged(tiny: Path, tmp_path: Path) -> None:
    model = load_for_training(
        checkpoint(tiny),
        Lora(r=4, dropout=0.0, targets=["v_proj", "lm_head"]),
        "none",
        dtype="float32",
        continues=False,
        seed=0,
    )
    step = Sft.model_validate(
        {"sft": "rows.jsonl", "model": "base", "lora": {"r": 4, "targets": ["v_proj", "lm_head"]}}
    )
    assert trained_parameters(shape_of(model.config.to_dict()), step) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )

    adapter = save_adapter(tiny, tmp_path / "adapter", 5, ("v_proj", "lm_head"))
    shards.write(shards.weights_of(tiny, torch.float32, CPU, older=(), last=adapter), tmp_path / "merged")
    merged = whole(tiny, torch.float32)
    before = merged.lm_head.weight.clone()
    merge_whole(merged, adapter)
    assert not torch.equal(before, merged.lm_head.weight)
    written = shards.weights_of(tmp_path / "merged", torch.float32, CPU)
    assert torch.equal(written["lm_head.weight"][...], merged.lm_head.weight)

    for dtype, most in (("float32", 1e-4), ("bfloat16", 0.2)):  # bfloat16 layers are packed on a CPU, but not the head
        held, _ = load_for_inference(checkpoint(tiny, (adapter,), "none", dtype))
        (ours,) = Scorer(held).logprobs([tuple(PATHS[:2])])
        (theirs,) = Scorer(merged, plain=True).logprobs([tuple(PATHS[:2])])
        assert all(torch.allclose(a, b, atol=most) for a, b in zip(ours, theirs, strict=True)), dtype


@pytest.mark.parametrize("scale", [0.25, 0.75, 5.0], ids=["flat", "between", "peaked"])
def test_log_probabilities_and_gradients_have_no_bias_over_a_real_vocabulary(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    rows, vocabulary, width = 96, 49157, 16  # a prime: no width of a vector unit divides it
    weight = torch.randn(vocabulary, width, generator=draw)
    hidden = (scale * torch.randn(rows, width, generator=draw)).requires_grad_()
    logits = torch.nn.functional.linear(hidden, weight).detach()
    targets = torch.where(
        torch.arange(rows) % 2 == 0, logits.argmax(-1), torch.randint(vocabulary, (rows,), generator=draw)
    )
    exact = logits.double().log_softmax(-1)
    wanted = exact.gather(-1, targets[:, None])[:, 0]
    slope = weight[targets].double() - exact.exp() @ weight.double()  # d log p / d hidden

    shaping = Shaping(1.0, None, 32)
    b, u = torch.zeros(vocabulary, 2), torch.zeros(rows, 2)
    selected = SelectedLogProb.apply(hidden, weight, None, targets, shaping, None)
    adapted = AdaptedLogProb.apply(hidden, u, b, weight, None, targets, shaping, None)
    for found in (selected, adapted):
        error = found.detach().double() - wanted
        assert abs(float(error.mean())) < 1e-6
        assert float(error.abs().max()) < 4e-6 + 1e-7 * float(wanted.abs().max()), (
            "no more than a rounding of the logits"
        )
        (gradient,) = torch.autograd.grad(found.sum(), hidden)
        assert float((gradient.double() - slope).norm() / slope.norm()) < 1e-6
    whole = log_distribution(logits.clone()).double()
    assert float((whole - exact).mean().abs()) < 1e-6
    assert float(whole.exp().sum(-1).sub(1).mean().abs()) < 1e-6, "a distribution"
