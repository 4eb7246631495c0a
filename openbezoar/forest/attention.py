"""Attention over a forest's segments, registered with transformers under one name.

The layout travels as a keyword of the forward call, so activation checkpointing and several
micro-batches stay right. Each segment's queries attend to its ancestors and to itself: the
exact work of a forest, in torch's own kernels on any device, with autograd doing the rest.
Without a layout it is transformers' own SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from openbezoar.errors import ModelError
from openbezoar.forest.layout import Layout

NAME = "openbezoar_forest"

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

    Raises ModelError for a feature of the layer that it does not know (sinks, biases, soft caps).
    """
    layout: Layout | None = rest.pop("forest", None)
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest)
        return plain
    window: int | None = rest.pop("sliding_window", None)
    unknown = {k for k, v in rest.items() if v is not None and k not in KNOWN}
    if unknown or dropout:
        raise ModelError(
            f"{type(module).__name__}: attention with {', '.join(sorted(unknown)) or 'dropout'} is not supported by the forest; score this model with plain passes"
        )
    dtype, (_, heads, n, d), shared = query.dtype, query.shape, key.shape[1]
    if query.device.type == "cpu":
        # The CPU kernel's backward pass is two to three times faster in fp32 at these lengths, and more exact.
        query, key, value = query.float(), key.float(), value.float()
    # The heads that share keys become the heads of one batch entry, whose keys are then seen by all of them uncopied.
    query = query.view(shared, heads // shared, n, d)
    key, value = key.view(shared, 1, n, d), value.view(shared, 1, n, d)
    # Split, not sliced: the gradient of a slice is a whole row of zeros around it, one for each segment.
    sizes = [segment.end - segment.start for segment in layout.segments]
    index = {segment.start: i for i, segment in enumerate(layout.segments)}
    queries, keys, values = (torch.split(x, sizes, 2) for x in (query, key, value))
    parts = []
    for i, segment in enumerate(layout.segments):
        path = [*(index[start] for start, _ in segment.before), i]
        parts.append(_segment(queries[i], [keys[j] for j in path], [values[j] for j in path], scaling, window))
    out = torch.cat(parts, 2).view(1, heads, n, d).to(dtype)
    return out.transpose(1, 2).contiguous(), None


def _segment(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scaling: float | None, window: int | None) -> Tensor:
    """One segment's queries [kv heads, group, n, d] over its ancestors and itself, keys and values [kv heads, 1, .., d]."""
    k, v = ((torch.cat(list(x), 2) if len(x) > 1 else x[0]).expand(-1, q.shape[1], -1, -1) for x in (keys, values))
    n = q.shape[2]
    whole = k.shape[2]
    if whole == n and (window is None or n <= window):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    # The runs are contiguous on the path, so what counts along it counts here.
    at, of = torch.arange(whole - n, whole, device=q.device)[:, None], torch.arange(whole, device=q.device)
    mask = of <= at
    if window is not None:
        mask &= at - of < window
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)


def register() -> str:
    """Make the function known to transformers; its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
