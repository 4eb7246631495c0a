"""Norms and gated MLPs that keep less for the backward pass and touch memory less often.

transformers writes both as chains of single operations, each of which reads and writes a whole
tensor and keeps some for autograd. Here each is one function: a norm keeps its input and one
number a row, an MLP its gate and its up projection. Values are transformers' own up to the
rounding of a mean; modules, parameters and names stay as they are, only ``forward`` is replaced.

RMSNorm (arXiv 1910.07467, equation 4): y = w x / sqrt(mean(x²) + eps). SwiGLU and GEGLU
(arXiv 2002.05202, equations 5 and 6): y = W_down (act(W_gate x) * W_up x).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

# Class names in transformers, since each family defines its own copy. The value: what is added to
# the weight, in fp32 and before the result is cast.
NORMS = {
    "LlamaRMSNorm": None,
    "MistralRMSNorm": None,
    "Qwen2RMSNorm": None,
    "Qwen3RMSNorm": None,
    "Gemma2RMSNorm": 1.0,
    "Gemma3RMSNorm": 1.0,
}
MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Gemma2MLP", "Gemma3MLP"}
ACTIVATIONS = {"SiLU": "silu", "SiLUActivation": "silu", "GELUTanh": "tanh", "PytorchGELUTanh": "tanh"}


class _RmsNorm(torch.autograd.Function):
    """x [..., n] → [..., n] in x's dtype, for a frozen weight [n]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, plus: float | None) -> Tensor:
        scale = (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            .square_()
            .div_(x.shape[-1])
            .add_(eps)
            .rsqrt_()
        )
        ctx.save_for_backward(x, weight, scale)
        ctx.plus = plus
        normed: Tensor = x * scale
        return normed.to(x.dtype).mul_(weight) if plus is None else normed.mul_(weight.float() + plus).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0] * (weight.float() + (ctx.plus or 0.0))
        normed = x * scale
        grad.addcmul_(normed, (grad * normed).mean(-1, keepdim=True), value=-1).mul_(scale)
        return grad.to(x.dtype), None, None, None


class _Gated(torch.autograd.Function):
    """act(gate) * up, both [..., n] of one dtype."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _activate(gate, activation).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        through = grads[0] * up
        if ctx.activation == "silu":
            grad_gate = torch.ops.aten.silu_backward(through, gate)
        else:
            grad_gate = torch.ops.aten.gelu_backward(through, gate, approximate=ctx.activation)
        return grad_gate, _activate(gate, ctx.activation).mul_(grads[0]), None


def _activate(gate: Tensor, activation: str) -> Tensor:
    return silu(gate) if activation == "silu" else gelu(gate, approximate=activation)


def _norm(self: Any, x: Tensor) -> Tensor:
    if self.weight.requires_grad or self.weight.dtype != x.dtype:
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
    normed: Tensor = _RmsNorm.apply(x, self.weight, eps, NORMS[type(self).__name__])  # type: ignore[no-untyped-call]
    return normed


def _mlp(self: Any, x: Tensor) -> Tensor:
    gate, up, activation = self.gate_proj(x), self.up_proj(x), ACTIVATIONS[type(self.act_fn).__name__]
    product: Tensor = _Gated.apply(gate, up, activation)  # type: ignore[no-untyped-call]
    out: Tensor = self.down_proj(product)
    return out


def lean_layers(model: nn.Module) -> int:
    """Replace the forward pass of every norm and gated MLP that is known by its class; the number replaced."""
    replaced = 0
    for module in model.modules():
        name = type(module).__name__
        if name in NORMS:
            module.forward = MethodType(_norm, module)  # type: ignore[method-assign]
        elif name in MLPS and type(module.act_fn).__name__ in ACTIVATIONS:
            module.forward = MethodType(_mlp, module)  # type: ignore[method-assign]
        else:
            continue
        replaced += 1
    return replaced
