"""Norms and gated MLPs of our own, against transformers' modules: values, gradients, what is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openbezoar.models.layers import MLPS, NORMS, lean_layers
from tests.test_forest import FAMILIES, model_of


def parts(family: str, names: Any) -> list[nn.Module]:
    """Copies of the family's modules of these classes, their weights away from the start."""
    found = [copy.deepcopy(m) for m in model_of(family).modules() if type(m).__name__ in names]
    generator = torch.Generator().manual_seed(3)
    for module in found:
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        module.requires_grad_(False)
    assert found
    return found


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    given = x.clone().requires_grad_(True)
    out = module(given)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    assert given.grad is not None
    return out.detach(), given.grad


def width(module: Any) -> int:
    return int(module.weight.shape[0] if hasattr(module, "weight") else module.gate_proj.weight.shape[1])


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("names", [NORMS, MLPS], ids=["norms", "mlps"])
def test_values_and_gradients_equal_transformers(family: str, names: Any) -> None:
    for module in parts(family, names):
        x = 3 * torch.randn(2, 5, width(module), generator=torch.Generator().manual_seed(1))
        value, gradient = run(module, x)
        assert lean_layers(module) == 1
        ours, our_gradient = run(module, x)
        assert torch.allclose(ours, value, rtol=1e-5, atol=1e-6)
        assert torch.allclose(our_gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("names", [NORMS, MLPS], ids=["norms", "mlps"])
def test_in_bf16_they_are_as_near_to_fp64_as_transformers(family: str, names: Any) -> None:
    module = parts(family, names)[0].bfloat16()
    x = torch.randn(40, width(module), generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = [t.float() for t in run(copy.deepcopy(module).float(), x.float())]
    theirs = [float((a.float() - b).abs().mean()) for a, b in zip(run(module, x), exact, strict=True)]
    lean_layers(module)
    ours = [float((a.float() - b).abs().mean()) for a, b in zip(run(module, x), exact, strict=True)]
    assert all(a <= 1.1 * b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def kept(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd holds after the forward pass, weights aside."""
    held: dict[int, int] = {}
    weights = {p.data_ptr() for p in module.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in weights:
            held[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = module(x.clone().requires_grad_(True))
    assert out.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("names", [NORMS, MLPS], ids=["norms", "mlps"])
def test_they_keep_less(names: Any) -> None:
    module = parts("llama", names)[0].bfloat16()
    x = torch.randn(64, width(module)).bfloat16()
    before = kept(module, x)
    lean_layers(module)
    assert kept(module, x) <= 0.7 * before


def test_a_trainable_norm_keeps_its_gradient() -> None:
    module: Any = parts("llama", NORMS)[0]
    lean_layers(module)
    module.weight.requires_grad_(True)
    module(torch.randn(3, width(module))).sum().backward()
    assert module.weight.grad.abs().max() > 0
