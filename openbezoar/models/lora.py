"""LoRA layers computed in the base's precision, in place of PEFT's own forward pass.

PEFT casts each layer's input to the adapter's fp32, draws a mask of fp32 numbers and keeps
both for the backward pass. Here the adapter stays fp32 and is cast itself, a few thousand
numbers; the update is added into the base layer's output; and dropout draws 16 random bits
an element. Parameters, names and files stay PEFT's: only ``forward`` is replaced.

y = W x + s B A (m ∘ x), m = 0 with probability p and 1/(1-p) otherwise (arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


class _AddUpdate(torch.autograd.Function):
    """out += s B A x, in place, with x taken as 0 where ``drop`` is true. x [..., in], out [...,
    out] in one dtype; A [r, in] and B [out, r] fp32.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, a: Tensor, b: Tensor, drop: Tensor | None, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), b.to(x.dtype)
        hidden = (rows if drop is None else rows.masked_fill(drop, 0)) @ a.T
        ctx.save_for_backward(rows, a, b, hidden, *(() if drop is None else (drop,)))
        ctx.scale, ctx.shape = scale, x.shape
        ctx.mark_dirty(out)
        out.view(-1, out.shape[-1]).addmm_(hidden, b.T, alpha=scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, b, hidden, *masks = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_hidden = (grad @ b).mul_(ctx.scale)
        grad_a = (grad_hidden.T @ (rows.masked_fill(masks[0], 0) if masks else rows)).float()
        grad_b = (grad.T @ hidden).float().mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = grad_hidden @ a
            if masks:
                grad_x.masked_fill_(masks[0], 0)
            grad_x = grad_x.view(ctx.shape)
        return grads[0], grad_x, grad_a, grad_b, None, None


def drop_mask(rows: int, width: int, p: float, device: torch.device) -> tuple[Tensor, float]:
    """(bool [rows, width], true with probability p; the p that 16 bits allow, within 2^-17), from torch's generator.

    One draw of 64 bits serves four elements, which on a CPU is several times cheaper than one number each.
    """
    n = rows * width
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-n // 4),), device=device).view(torch.int16)[:n].view(rows, width)
    dropped = round(p * 65536)
    return bits < dropped - 32768, dropped / 65536


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The layer's output [..., out] for x [..., in]."""
    out: Tensor = self.base_layer(x, *args, **kwargs)
    if self.disable_adapters or self.merged:
        return out
    (name,) = self.active_adapters
    scale, drop = self.scaling[name], None
    dropout = self.lora_dropout[name]
    if self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
        drop, p = drop_mask(x.numel() // x.shape[-1], x.shape[-1], dropout.p, x.device)
        scale = scale / (1 - p)
    updated: Tensor = _AddUpdate.apply(out, x, self.lora_A[name].weight, self.lora_B[name].weight, drop, scale)  # type: ignore[no-untyped-call]
    return updated


def fast_lora(model: nn.Module) -> int:
    """Replace the forward pass of every plain LoRA layer on a linear base; the number replaced.

    A layer with DoRA, a bias of its own or several adapters keeps PEFT's.
    """
    from peft.tuners.lora.layer import LoraLayer

    replaced = 0
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _plain(layer):
            layer.forward = MethodType(_forward, layer)
            replaced += 1
    return replaced


def _plain(layer: Any) -> bool:
    names = list(layer.lora_A)
    if len(names) != 1 or list(layer.active_adapters) != names or getattr(layer, "fan_in_fan_out", False):
        return False
    base, a, b = layer.base_layer, layer.lora_A[names[0]], layer.lora_B[names[0]]
    linear = type(base) is nn.Linear or type(base).__name__ == "Linear4bit"
    variants = getattr(layer, "lora_variant", {})
    return (
        linear and type(a) is nn.Linear and type(b) is nn.Linear and a.bias is None and b.bias is None and not variants
    )
