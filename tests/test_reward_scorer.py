"""Rewards on the forest against transformers' own sequence classifiers: values and gradients, four families."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from test_forest import FAMILIES, SHAPE
from transformers import AutoConfig, AutoModelForSequenceClassification

from openbezoar.errors import ModelError
from openbezoar.forest import RewardScorer, TokenPath, Tree

PAD = 1
KINDS: dict[str, dict[str, Any]] = {
    **{name: FAMILIES[name] for name in ("llama", "qwen2", "gemma3_text")},
    "gpt_neox": {**SHAPE, "rotary_pct": 0.5},
}


@cache
def classifier(family: str) -> Any:
    """A random classifier with one output, in fp32, whose weights are large enough for attention to matter."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **KINDS[family], num_labels=1, pad_token_id=PAD)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def path(*ids: int) -> TokenPath:
    return TokenPath(ids, (False,) * len(ids))


# Pairs after one prompt, answers of unequal length, one that begins another, two that are equal, padding at an end.
TREES: list[Tree] = [
    (path(5, 6, 7, 8, 9, 10, 11), path(5, 6, 7, 8, 20)),
    (path(5, 6, 30, 31), path(5, 6, 30)),
    (path(40, 41, 42), path(40, 41, 42)),
    (path(50, 51, 52, PAD, PAD), path(50, 51, PAD, 53)),
    (path(60, 61),),
]


def theirs(model: Any, trees: list[Tree]) -> torch.Tensor:
    """Rewards as transformers gives them, all paths in one batch padded on the right."""
    rows = [list(one.ids) for tree in trees for one in tree]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    values: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    return values


def gradients(model: Any, rewards: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, len(rewards))
    parameters = [p for name, p in model.named_parameters() if "embed" not in name]
    return [g for g in torch.autograd.grad((rewards * weights).sum(), parameters, allow_unused=True) if g is not None]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("family", KINDS)
def test_rewards_and_their_gradients_are_those_of_transformers(family: str, plain: bool) -> None:
    model = classifier(family)
    model.set_attn_implementation("sdpa")
    expected = theirs(model, TREES)
    expected_gradients = gradients(model, expected)
    scorer = RewardScorer(model, model.score if hasattr(model, "score") else model.classifier, pad=PAD, plain=plain)
    assert scorer.plain == plain
    rewards = scorer.rewards(TREES)
    assert [len(part) for part in rewards] == [len(tree) for tree in TREES]
    assert float(expected.detach().std()) > 0.1  # a head that tells nothing apart would agree with anything
    assert torch.allclose(torch.cat(rewards), expected, atol=1e-4)
    for ours, own in zip(gradients(model, torch.cat(rewards)), expected_gradients, strict=True):
        assert torch.allclose(ours, own, atol=1e-4 * max(1.0, float(own.abs().max())))


def test_rewards_of_many_passes_come_in_the_trees_order_and_equal_those_of_one() -> None:
    model = classifier("llama")
    one = RewardScorer(model, model.score, pad=PAD, tokens=1000).scores(TREES)
    told: list[int] = []
    small = RewardScorer(model, model.score, pad=PAD, tokens=8)
    assert len(small.batches(TREES)) > 2
    many = small.scores(TREES, done=told.append)
    assert sum(told) == len(TREES)
    flat = [value for tree in one for value in tree]
    assert [value for tree in many for value in tree] == pytest.approx(flat, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", KINDS)
def test_a_model_that_ignores_the_forest_is_found_out(family: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(classifier(family)).to(dtype)
    trees = [(path(5, 6, 7, 8, 9), path(5, 6, 7, 10, 11))]
    RewardScorer(model, model.score, pad=PAD).rewards(trees)  # an honest one passes, in 16 bits too
    scorer = RewardScorer(model, model.score, pad=PAD)
    model.set_attn_implementation("sdpa")  # as a family whose attention is its own would be
    with pytest.raises(ModelError, match="differs from plain scoring"):
        scorer.rewards(trees)


def test_a_head_with_several_outputs_and_rewards_that_are_no_numbers_are_refused() -> None:
    model = classifier("llama")
    with pytest.raises(ModelError, match="the head has 2 outputs; a reward model has one"):
        RewardScorer(model, torch.nn.Linear(48, 2))
    broken = torch.nn.Linear(48, 1)
    torch.nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(ModelError, match="not numbers"):
        RewardScorer(model, broken, pad=PAD).scores(TREES)
