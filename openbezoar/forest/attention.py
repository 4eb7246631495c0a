"""Attention over a forest's segments, registered with transformers under one name.

The layout travels as a keyword of the forward call, so activation checkpointing and several
micro-batches stay right. Each segment's queries attend to its ancestors and to itself: the
exact work of a forest, in torch's own kernels on any device, with autograd doing the rest.
Where FlexAttention compiles and agrees with that, it takes its place (``flex``).
Without a layout it is transformers' own SDPA.
"""

from __future__ import annotations

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
"""Most tokens of sibling leaves in one call: what they compute for each other in vain costs less than calls of their own."""

# Keywords that change nothing here: what they say is in the layout already, or is bookkeeping.
KNOWN = {
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "is_causal",
    "position_embeddings",
    "past_key_values",
    "output_hidden_states",
    "return_dict",
}


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None, **rest: Any
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

        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest)
        return plain
    window: int | None = rest.pop("sliding_window", None)
    cap: float | None = rest.pop("softcap", None)
    unknown = {k for k, v in rest.items() if v is not None and k not in KNOWN}
    if unknown or dropout:
        raise ModelError(
            f"{type(module).__name__}: attention with {', '.join(sorted(unknown)) or 'dropout'} is not supported by the forest; score this model with plain passes"
        )
    # Asked whatever the length, so that probing is over with the self-check, before activation checkpointing watches what is saved.
    usable = flex.usable(query, key, window, cap, _segments)
    way = flex.attend if usable and query.shape[2] >= flex.BLOCK else _segments
    return way(layout, query, key, value, scaling, window, cap).transpose(1, 2).contiguous(), None


def _segments(layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, cap: float | None) -> Tensor:
    """query [1, heads, n, d], key and value [1, kv heads, n, d] → [1, heads, n, d], a call of torch's attention for each segment."""
    dtype, (_, heads, n, d), shared = query.dtype, query.shape, key.shape[1]
    if query.device.type == "cpu":
        # The CPU kernel's backward pass is two to three times faster in fp32 at these lengths, and more exact.
        query, key, value = query.float(), key.float(), value.float()
    # The heads that share keys become the heads of one batch entry, whose keys are then seen by all of them uncopied.
    query = query.view(shared, heads // shared, n, d)
    key, value = key.view(shared, 1, n, d), value.view(shared, 1, n, d)
    calls = _calls(layout)
    # Split, not sliced: the gradient of a slice is a whole row of zeros around it, one for each part.
    queries, keys, values = (torch.split(x, [sum(call.sizes) for call in calls], 2) for x in (query, key, value))
    parts = []
    for i, call in enumerate(calls):
        k, v = (torch.cat([x[j] for j in call.reads], 2) if len(call.reads) > 1 else x[i] for x in (keys, values))
        k, v = k.expand(-1, heads // shared, -1, -1), v.expand(-1, heads // shared, -1, -1)
        mask = _mask(layout, i, call, k.shape[2], window, query)
        if cap is not None:
            parts.append(_capped(queries[i], k, v, mask, scaling, cap))
        else:
            parts.append(scaled_dot_product_attention(queries[i], k, v, attn_mask=mask, is_causal=mask is None, scale=scaling))
    return torch.cat(parts, 2).view(1, heads, n, d).to(dtype)


def _plain_capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, cap: float) -> Tensor:
    """Without a layout: query [batch, heads, n, d], mask [batch, 1, n, keys], true where a query sees, or None → [batch, n, heads, d]."""
    batch, heads, n, _d = query.shape
    shared, keys = key.shape[1:3]
    k, v = (x[:, :, None].expand(-1, -1, heads // shared, -1, -1).reshape(batch, heads, keys, -1) for x in (key, value))
    if mask is None:
        seen = torch.ones(n, keys, dtype=torch.bool, device=query.device).tril(keys - n)
    else:
        seen = mask if mask.dtype == torch.bool else mask == 0
    added = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(~seen, torch.finfo(query.dtype).min)
    return _capped(query, k, v, added, scaling, cap).transpose(1, 2).contiguous()


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, cap: float) -> Tensor:
    """Attention with scores cap * tanh(score / cap) (Gemma 2), which torch's kernels do not offer."""
    scores = (q @ k.transpose(-1, -2)).mul(scaling or q.shape[-1] ** -0.5).div(cap).tanh().mul(cap)
    if mask is None:
        mask = torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    return torch.softmax(scores + mask, -1, dtype=torch.float32).to(v.dtype) @ v


@dataclass(frozen=True)
class _Call:
    """One use of torch's attention: for one segment, or for short leaves of one parent side by side.

    reads: the calls whose keys it sees, the root's first, its own last. sizes: tokens of each of its segments.
    """

    reads: tuple[int, ...]
    sizes: tuple[int, ...]


def _calls(layout: Layout) -> list[_Call]:
    """The calls that cover a layout's row in order; worked out once for all layers."""
    found: list[_Call] | None = layout.kept.get("calls")
    if found is not None:
        return found
    inner = {start for segment in layout.segments for start, _ in segment.before}
    calls: list[_Call] = []
    at: dict[int, int] = {}  # an inner segment's start → its call
    parent: tuple[tuple[int, int], ...] | None = None  # of the leaves that the last call holds
    for segment in layout.segments:
        size, leaf = segment.end - segment.start, segment.start not in inner
        if leaf and calls and parent == segment.before and sum(calls[-1].sizes) + size <= TOGETHER:
            calls[-1] = _Call(calls[-1].reads, (*calls[-1].sizes, size))
            continue
        parent = segment.before if leaf else None
        if not leaf:
            at[segment.start] = len(calls)
        calls.append(_Call((*(at[start] for start, _ in segment.before), len(calls)), (size,)))
    layout.kept["calls"] = calls
    return calls


def _mask(layout: Layout, i: int, call: _Call, whole: int, window: int | None, like: Tensor) -> Tensor | None:
    """What is added to the scores [queries, keys]: 0 or minus infinity; None if plain causal attention says the same."""
    n = sum(call.sizes)
    if whole == n and len(call.sizes) == 1 and (window is None or n <= window):
        return None
    name = (i, None if window is None or whole <= window else window, like.dtype)
    if name not in layout.kept:
        before = whole - n
        sizes = torch.tensor(call.sizes)
        branch = torch.arange(len(call.sizes)).repeat_interleave(sizes)
        place = before + torch.cat([torch.arange(size) for size in call.sizes])  # along the path
        of = torch.cat([torch.arange(before), place])
        seen = of <= place[:, None]
        seen[:, before:] &= branch[:, None] == branch
        if window is not None:
            seen &= place[:, None] - of < window
        layout.kept[name] = torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, -torch.inf).to(like.device)
    mask: Tensor = layout.kept[name]
    return mask


def register() -> str:
    """Make the function known to transformers; its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
