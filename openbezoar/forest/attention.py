"""Attention over a forest's segments, registered with transformers under one name.

The layout travels as a keyword of the forward call, so activation checkpointing and several
micro-batches stay right. Each segment's queries attend to its ancestors and to itself: the
exact work of a forest, in torch's own kernels on any device, with autograd doing the rest.
Where FlexAttention compiles and agrees with that, it takes its place (``flex``) for as long as it does.
Without a layout it is transformers' own SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from openbezoar.errors import ModelError
from openbezoar.forest import flex
from openbezoar.forest.layout import Layout

NAME = "openbezoar_forest"

TOGETHER = 128
"""Most tokens of sibling leaves in one call: what they compute for each other in vain costs less
than calls of their own.
"""

# Keywords that change nothing here: what they say is in the layout already, or is bookkeeping.
KNOWN = {
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "is_causal",
    "position_embeddings",
    "past_key_values",
    "cache",
    "output_hidden_states",
    "return_dict",
}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: query [1, heads, n, d], key and value [1, kv heads, n, d] → [1, n, heads, d].

    Raises ModelError for a feature of the layer that it does not know (sinks, biases).
    """
    layout: Layout | None = rest.pop("forest", None)
    if layout is None and rest.get("softcap") is not None:
        return _plain_capped(query, key, value, attention_mask, scaling, rest["softcap"]), None
    if layout is None and query.shape[2] == 1 and attention_mask is not None and dropout == 0:
        # Heads that share keys see the same ones, so they become the queries of one head, and keys need no copies.
        grouped = query.view(query.shape[0], key.shape[1], -1, query.shape[3])
        one = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
        return one.reshape(query.shape).transpose(1, 2), None
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return plain
    window: int | None = rest.pop("sliding_window", None)
    cap: float | None = rest.pop("softcap", None)
    unknown = {k for k, v in rest.items() if v is not None and k not in KNOWN}
    if unknown or dropout:
        raise ModelError(
            f"{type(module).__name__}: attention with {', '.join(sorted(unknown)) or 'dropout'} is not supported by the"
            " forest; score this model with plain passes"
        )
    # Asked whatever the length, so that probing is over with the self-check, before activation
    # checkpointing watches what is saved.
    usable = flex.usable(query, key, window, cap, _segments)
    # A layer that activation checkpointing runs again goes the way of its first run, since the
    # other would save other tensors.
    again: bool | None = layout.cache.get(("by flex", module))
    out = None
    if again or (again is None and usable and query.shape[2] >= flex.BLOCK):
        out = (flex.attend if again else flex.attempt)(layout, query, key, value, scaling, window, cap)
    layout.cache["by flex", module] = out is not None
    if out is None:
        out = _segments(layout, query, key, value, scaling, window, cap)
    return out.transpose(1, 2).contiguous(), None


def _segments(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    cap: float | None,
) -> Tensor:
    """query [1, heads, n, d], key and value [1, kv heads, n, d] → [1, heads, n, d], a call of
    torch's attention for each segment.
    """
    calls = _calls(layout)
    if cap is None and _has_cpu_kernel(query.device):
        masks = [_mask(layout, i, call, window, torch.float32, query.device) for i, call in enumerate(calls)]
        lean: Tensor = _OnCpu.apply(query, key, value, calls, masks, scaling)  # type: ignore[no-untyped-call]
        return lean
    queries, keys, values = _parts(calls, query, key, value)
    parts = []
    for i, call in enumerate(calls):
        k, v = _read(call, keys), _read(call, values)
        mask = _mask(layout, i, call, window, query.dtype, query.device)
        if cap is not None:
            parts.append(_capped(queries[i], k, v, mask, scaling, cap))
        else:
            heads = queries[i].shape[1]
            k, v = k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1)
            parts.append(
                scaled_dot_product_attention(queries[i], k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
            )
    return torch.cat(parts, 2).view(query.shape)


def _has_cpu_kernel(device: torch.device) -> bool:
    """Whether ``_OnCpu`` can run there; its operators are torch's own, but not promised to stay."""
    return device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def _parts(calls: Sequence[_AttentionCall], query: Tensor, *keys_and_values: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor in the calls' parts: queries [kv heads, heads a kv head, m, d], keys and values [kv heads, 1, m, d].

    The heads that share keys become the heads of one batch entry, whose keys are then seen by all of them uncopied.
    """
    shared, sizes = keys_and_values[0].shape[1], [sum(call.sizes) for call in calls]
    # Split, not sliced: the gradient of a slice is a whole row of zeros around it, one for each part.
    return [torch.split(x.reshape(shared, -1, *x.shape[2:]), sizes, 2) for x in (query, *keys_and_values)]


def _read(call: _AttentionCall, parts: Sequence[Tensor]) -> Tensor:
    """The keys (or values) that a call sees, along its path."""
    return torch.cat([parts[j] for j in call.reads], 2) if len(call.reads) > 1 else parts[call.reads[0]]


class _OnCpu(torch.autograd.Function):
    """The calls of a pass through the CPU's flash kernels in fp32, keeping query, key, value and
    result in the model's own precision.

    The kernel's backward pass is two to three times faster in fp32 than in bf16 at these lengths, and more exact; but a
    pass through autograd would keep everything in fp32, and every key once more for each segment that sees it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        calls: Sequence[_AttentionCall],
        masks: Sequence[Tensor | None],
        scaling: float | None,
    ) -> Tensor:
        queries, keys, values = _parts(calls, query.float(), key.float(), value.float())
        outs, sums = [], []
        for q, call, mask in zip(queries, calls, masks, strict=True):
            k, v = (_read(call, x).expand(-1, q.shape[1], -1, -1) for x in (keys, values))
            out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, mask is None, attn_mask=mask, scale=scaling
            )
            outs.append(out)
            sums.append(total)
        out = torch.cat(outs, 2).view(query.shape).to(query.dtype)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.calls, ctx.masks, ctx.scaling = calls, masks, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        above, queries, outs = (_parts(ctx.calls, x.float(), key)[0] for x in (grads[0], query, out))
        _, keys, values = _parts(ctx.calls, query, key.float(), value.float())
        grad_keys, grad_values = ([torch.zeros_like(part) for part in x] for x in (keys, values))
        grad_queries = []
        for i, (call, mask) in enumerate(zip(ctx.calls, ctx.masks, strict=True)):
            q = queries[i]
            k, v = (_read(call, x).expand(-1, q.shape[1], -1, -1) for x in (keys, values))
            grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                above[i], q, k, v, outs[i], sums[i], 0.0, mask is None, attn_mask=mask, scale=ctx.scaling
            )
            grad_queries.append(grad_q)
            for held, grad in ((grad_keys, grad_k), (grad_values, grad_v)):
                for j, part in zip(
                    call.reads, grad.sum(1, keepdim=True).split([held[j].shape[2] for j in call.reads], 2), strict=True
                ):
                    held[j] += part
        whole = (
            torch.cat(x, 2).view(like.shape).to(like.dtype)
            for x, like in ((grad_queries, query), (grad_keys, key), (grad_values, value))
        )
        return (*whole, None, None, None)


def _plain_capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, cap: float
) -> Tensor:
    """Without a layout: query [batch, heads, n, d], mask [batch, 1, n, keys], true where a query
    sees, or None → [batch, n, heads, d].
    """
    batch, heads, n, _d = query.shape
    shared, keys = key.shape[1:3]
    k, v = (x[:, :, None].expand(-1, -1, heads // shared, -1, -1).reshape(batch, heads, keys, -1) for x in (key, value))
    if mask is None:
        seen = torch.ones(n, keys, dtype=torch.bool, device=query.device).tril(keys - n)
    else:
        seen = mask if mask.dtype == torch.bool else mask == 0
    added = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(
        ~seen, torch.finfo(query.dtype).min
    )
    return _capped(query, k, v, added, scaling, cap).transpose(1, 2).contiguous()


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, cap: float) -> Tensor:
    """Attention with scores cap * tanh(score / cap) (Gemma 2), which torch's kernels do not offer."""
    scores = (q @ k.transpose(-1, -2)).mul(scaling or q.shape[-1] ** -0.5).div(cap).tanh().mul(cap)
    if mask is None:
        mask = torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    return torch.softmax(scores + mask, -1, dtype=torch.float32).to(v.dtype) @ v


@dataclass(frozen=True)
class _AttentionCall:
    """One use of torch's attention: for one segment, or for short leaves of one parent side by side.

    reads: the calls whose keys it sees, the root's first, its own last. start: where it begins in the row; sizes:
    tokens of each of its segments.
    """

    reads: tuple[int, ...]
    start: int
    sizes: tuple[int, ...]


def _calls(layout: Layout) -> list[_AttentionCall]:
    """The calls that cover a layout's row in order; worked out once for all layers."""
    cached: list[_AttentionCall] | None = layout.cache.get("calls")
    if cached is not None:
        return cached
    inner = {start for segment in layout.segments for start, _ in segment.before}
    calls: list[_AttentionCall] = []
    at: dict[int, int] = {}  # an inner segment's start → its call
    parent: tuple[tuple[int, int], ...] | None = None  # of the leaves that the last call holds
    for segment in layout.segments:
        size, leaf = segment.end - segment.start, segment.start not in inner
        if leaf and calls and parent == segment.before and sum(calls[-1].sizes) + size <= TOGETHER:
            calls[-1] = _AttentionCall(calls[-1].reads, calls[-1].start, (*calls[-1].sizes, size))
            continue
        parent = segment.before if leaf else None
        if not leaf:
            at[segment.start] = len(calls)
        reads = (*(at[start] for start, _ in segment.before), len(calls))
        calls.append(_AttentionCall(reads, segment.start, (size,)))
    layout.cache["calls"] = calls
    return calls


def _mask(
    layout: Layout, i: int, call: _AttentionCall, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """What is added to the scores [queries, keys] of the i-th call: 0 or minus infinity; None if
    plain causal attention says the same.
    """
    calls = _calls(layout)
    n, whole = sum(call.sizes), sum(sum(calls[j].sizes) for j in call.reads)
    if whole == n and len(call.sizes) == 1 and (window is None or n <= window):
        return None
    within = None if window is None or whole <= window else window
    name = (i, within, dtype)
    if name not in layout.cache:
        # Made on the device, of what is there: a copy in a layer would wait for all that was asked of it before.
        runs = ((calls[j].start, sum(calls[j].sizes)) for j in call.reads)
        keys = torch.cat([torch.arange(start, start + size, device=device) for start, size in runs])
        query = torch.arange(call.start, call.start + n, device=device)[:, None]
        seen = (keys <= query) & (query <= layout.last[keys])
        if within is not None:
            seen &= layout.positions[query] - layout.positions[keys] < within
        layout.cache[name] = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
    mask: Tensor = layout.cache[name]
    return mask


def register() -> str:
    """Make the function known to transformers; its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
