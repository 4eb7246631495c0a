"""Log-probabilities of given tokens from hidden states: the vocabulary head in chunks, and a
backward that never holds [tokens × vocabulary].

z = cap · tanh(scale · (W h + b + B u) / cap), where a model has a cap, a factor, a bias, an
adapter on its head (u = s A h); log p_t = z_t - m - log S with m = max z and S = sum_v e^(z_v - m),
and ∂ log p_t / ∂ z = onehot(t) - e^(z - m) / S: value and gradient from one sum.

Not torch's log_softmax: in fp32 on a CPU its sum over a large vocabulary drifts, and one sign of
error in every token adds up along an answer (on peaked logits +7e-6 nats a token at 49,152 entries,
+4e-5 at 262,144).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shaping(NamedTuple):
    """What stands between the head's product and the logits: factor and soft cap. chunk: rows of a product."""

    scale: float
    cap: float | None
    chunk: int

    def logits(self, product: Tensor, slope: bool = False) -> tuple[Tensor, Tensor | None]:
        """Float32 logits of a product [rows, vocabulary], and the cap's slope there if it is asked for."""
        logits = product.float()
        if self.scale != 1.0:
            logits *= self.scale
        if self.cap is None:
            return logits, None
        logits = logits.div_(self.cap).tanh_()
        derivative = 1 - logits.square() if slope else None
        logits *= self.cap
        return logits, derivative

    def error(self, powers: Tensor, total: Tensor, target: Tensor, slope: Tensor | None) -> Tensor:
        """∂ log p(target) / ∂ product, written over the powers [rows, vocabulary] of ``picked``.
        total, target: [rows, 1].
        """
        error = powers.div_(-total)
        error.scatter_add_(-1, target, torch.ones_like(target, dtype=error.dtype))
        if slope is not None:
            error *= slope
        if self.scale != 1.0:
            error *= self.scale
        return error

    def chunks(self, rows: int) -> list[slice]:
        """So many rows, a product's worth at a time."""
        return [slice(first, first + self.chunk) for first in range(0, rows, self.chunk)]


def picked(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(target) [rows, 1] of float32 logits [rows, vocabulary], e^(z - max z) written over
    them, and its sums [rows, 1].
    """
    logits -= logits.amax(-1, keepdim=True)
    logp = logits.gather(-1, target)
    total = logits.exp_().sum(-1, keepdim=True)
    return logp.sub_(total.log()), logits, total


def log_distribution(logits: Tensor) -> Tensor:
    """log p [rows, vocabulary], written over float32 logits."""
    logits -= logits.amax(-1, keepdim=True)
    logits -= logits.exp().sum(-1, keepdim=True).log_()
    return logits


class SelectedLogProb(torch.autograd.Function):
    """log p(target) [rows] at each row of hidden states [rows, hidden], with its gradient found in the same sweep.

    d log p_t / dh = W_t - sum_v p_v W_v needs no upstream value, so it is computed chunk by
    chunk in the forward pass and only [rows, hidden] is kept. The head must be frozen.
    likeliest: a bool [rows] that is filled with whether each target has the greatest logit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shaping: Shaping,
        likeliest: Tensor | None,
    ) -> Tensor:
        need = hidden.requires_grad
        out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if need else None
        for rows in shaping.chunks(len(hidden)):
            logits, slope = shaping.logits(
                torch.nn.functional.linear(hidden[rows].to(weight.dtype), weight, bias), need
            )
            target = targets[rows, None]
            if likeliest is not None:
                likeliest[rows] = logits.argmax(-1) == targets[rows]
            logp, powers, total = picked(logits, target)
            out[rows] = logp[:, 0]
            if gradient is not None:
                gradient[rows] = (shaping.error(powers, total, target, slope).to(weight.dtype) @ weight).to(
                    gradient.dtype
                )
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None].to(gradient.dtype), None, None, None, None, None)


class AdaptedLogProb(torch.autograd.Function):
    """The same where the head carries an adapter: the product is W h + B u, u [rows, r], B [vocabulary, r] in float32.

    ∂/∂B sums over the rows, each with its upstream value, so the product is made again on the
    way back, chunk by chunk; only u and the hidden states are kept. W and the bias are frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        u: Tensor,
        b: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shaping: Shaping,
        likeliest: Tensor | None,
    ) -> Tensor:
        out, cast = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device), b.to(weight.dtype)
        for rows in shaping.chunks(len(hidden)):
            logits, _ = shaping.logits(adapted(hidden[rows], u[rows], cast, weight, bias))
            if likeliest is not None:
                likeliest[rows] = logits.argmax(-1) == targets[rows]
            out[rows] = picked(logits, targets[rows, None])[0][:, 0]
        ctx.save_for_backward(hidden, u, b, targets)
        ctx.head = weight, bias, shaping
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, u, b, targets = ctx.saved_tensors
        weight, bias, shaping = ctx.head
        cast = b.to(weight.dtype)
        to_hidden, to_u, to_b = torch.empty_like(hidden), torch.empty_like(u), torch.zeros_like(b)
        for rows in shaping.chunks(len(hidden)):
            logits, slope = shaping.logits(adapted(hidden[rows], u[rows], cast, weight, bias), True)
            target = targets[rows, None]
            _, powers, sums = picked(logits, target)
            error = shaping.error(powers, sums, target, slope)
            error = error.mul_(grads[0][rows, None]).to(weight.dtype)
            to_hidden[rows] = (error @ weight).to(hidden.dtype)
            to_u[rows] = (error @ cast).to(u.dtype)
            to_b += error.T @ u[rows].to(weight.dtype)
        return to_hidden, to_u, to_b, None, None, None, None, None


class TrainedLogProb(torch.autograd.Function):
    """The same where the head's own weight [vocabulary, hidden], and its bias if it has one, are trained.

    d/dW sums error h^T over the rows, each with its upstream value, so the product is made again on the way
    back, chunk by chunk; the sum is kept in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shaping: Shaping,
        likeliest: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets, *(() if bias is None else (bias,)))
        ctx.shaping = shaping
        frozen = hidden.detach(), weight, bias, targets, shaping, likeliest
        return SelectedLogProb.forward(ctx, *frozen)  # of a hidden state without gradient: keeps nothing

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, *biases = ctx.saved_tensors
        bias = biases[0] if biases else None
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight, dtype=torch.float32)
        to_bias = torch.zeros(len(weight), device=weight.device)
        for rows in ctx.shaping.chunks(len(hidden)):
            part = hidden[rows].to(weight.dtype)
            logits, slope = ctx.shaping.logits(torch.nn.functional.linear(part, weight, bias), True)
            target = targets[rows, None]
            _, powers, sums = picked(logits, target)
            error = ctx.shaping.error(powers, sums, target, slope)
            error = error.mul_(grads[0][rows, None]).to(weight.dtype)
            to_hidden[rows] = (error @ weight).to(hidden.dtype)
            to_weight += error.T @ part
            to_bias += error.sum(0)
        parts = to_weight.to(weight.dtype), None if bias is None else to_bias.to(bias.dtype)
        return to_hidden, *parts, None, None, None


def adapted(hidden: Tensor, u: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W h + bias + B u [rows, vocabulary], in the weight's dtype."""
    return torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias) + u.to(weight.dtype) @ b.to(weight.dtype).T
