"""Attention over a forest's row in one call of torch's FlexAttention, on GPUs whose compiler makes a kernel of it.

Token i sees token j exactly if j <= i <= last[j], where last[j] ends the subtree of j's segment;
blocks of tokens that no path connects are never computed. A sliding window counts along the path.
Whether it is used is decided once for each kind of attention: by the device, and by a probe that
compares values and gradients with attention over segments. A kind that fails later, such as at
the compiler's limit of variants, is left to the segments from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from openbezoar.forest.layout import Layout, TokenPath, lay_out

CAPABILITY = (8, 0)
"""Least compute capability: older GPUs (a T4 is 7.5) have no kernels worth the name."""
BLOCK = 128
"""Rows shorter than a block of the mask have nothing to skip, and torch would compile another kernel for them."""
KERNELS = 64
"""Variants that torch may compile: masks with and without windows, with and without gradients, for
each shape of heads.
"""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Segments = Callable[[Layout, Tensor, Tensor, Tensor, float | None, int | None, float | None], Tensor]
_usable: dict[tuple[Any, ...], bool] = {}
_reported: set[str] = set()


def usable(query: Tensor, key: Tensor, window: int | None, cap: float | None, segments: Segments) -> bool:
    """Whether this kind of attention is for FlexAttention; finding out compiles kernels and runs them, once.

    segments: the function to agree with. Where the device is able but the probe fails, a line on stderr says why.
    """
    if not _able(query.device):
        return False
    name = _kind(query, key, window, cap)
    if name not in _usable:
        reason = _fault(query, key, window, cap, segments)
        _usable[name] = not reason
        if reason:
            _say(reason)
    return _usable[name]


def _able(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY


def _kind(query: Tensor, key: Tensor, window: int | None, cap: float | None) -> tuple[Any, ...]:
    return query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], window is None, cap


def _say(reason: str) -> None:
    """Kinds of attention that fail alike are one line."""
    if reason not in _reported:
        _reported.add(reason)
        print(f"  attention by segments: FlexAttention does not work here ({reason})", file=sys.stderr, flush=True)


def attempt(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    cap: float | None,
) -> Tensor | None:
    """As ``attend``; None where that fails. This kind is then not usable any more, and a line on stderr says why."""
    try:
        return attend(layout, query, key, value, scaling, window, cap)
    except torch.OutOfMemoryError:
        raise  # the row is too large for the device, whatever computes it
    except Exception as error:  # as in the probe
        _usable[_kind(query, key, window, cap)] = False
        _say(_reason(error))
        return None


def attend(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    cap: float | None,
) -> Tensor:
    """query [1, heads, n, d], key and value [1, kv heads, n, d] → [1, heads, n, d]."""
    usual = query.shape[3] ** -0.5
    if scaling is not None and scaling != usual:
        query = query * (scaling / usual)  # a scale of its own would be one more thing that kernels are compiled for
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = _kernel()(
        query, key, value, score_mod=_capped(cap, query.device), block_mask=_blocks(layout, window), enable_gqa=grouped
    )
    return out


@cache
def _kernel() -> Callable[..., Any]:
    """FlexAttention compiled for rows of any length. More variants than ``KERNELS`` raise rather
    than run uncompiled.
    """
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(KERNELS, torch._dynamo.config.recompile_limit)
    # Backward kernels are compiled beside the forward ones, so that what cannot be compiled shows
    # where segments can take over.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def _blocks(layout: Layout, window: int | None) -> Any:
    """The row's block mask; layers with the same window share it."""
    from torch.nn.attention.flex_attention import create_block_mask

    name = ("flex", window)
    if name not in layout.cache:
        n = len(layout.ids)
        layout.cache[name] = create_block_mask(
            rule(layout, window), None, None, n, n, device=str(layout.ids.device), BLOCK_SIZE=BLOCK
        )
    return layout.cache[name]


def rule(layout: Layout, window: int | None) -> Rule:
    """Which key a query sees, by their places in the row. Numbers travel as tensors, so that no
    kernel is compiled for their values.
    """
    last, positions = layout.last, layout.positions

    def on_path(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i <= last[j])

    if window is None:
        return on_path
    beyond = positions - window

    def near(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i <= last[j]) & (positions[j] > beyond[i])

    return near


@cache
def _capped(cap: float | None, device: torch.device) -> Callable[..., Tensor] | None:
    """Scores s as cap * tanh(s / cap) (Gemma 2)."""
    if cap is None:
        return None
    most = torch.tensor(cap, device=device)

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _i: Tensor, _j: Tensor) -> Tensor:
        return most * torch.tanh(score / most)

    return capped


def _fault(query: Tensor, key: Tensor, window: int | None, cap: float | None, segments: Segments) -> str:
    """Why this kind of attention does not work; empty if it does. Draws nothing from torch's generators."""
    allowed = 1e-3 if query.dtype == torch.float32 else 3e-2
    try:
        for longest in (BLOCK, 3 * BLOCK):
            gap = _gap(query, key, longest, None if window is None else min(window, BLOCK // 2), cap, segments)
            if not gap <= allowed:
                return f"its results differ by {gap:.0e} of the largest"
    except Exception as error:  # the compiler, its kernels and the driver raise many kinds
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _gap(query: Tensor, key: Tensor, longest: int, window: int | None, cap: float | None, segments: Segments) -> float:
    """Greatest difference from fp32 attention over segments on a made tree, of output and
    gradients, each against its greatest value.
    """
    stem = range(longest // 3)
    paths = (
        TokenPath.of((*stem, 1), range(longest)),
        TokenPath.of((*stem, 2), range(longest // 2)),
        TokenPath.of(stem, range(3, longest)),
        TokenPath.of((9,), range(7)),
    )
    layout = lay_out([paths], query.device)
    generator = torch.Generator().manual_seed(longest)

    def random(heads: int) -> Tensor:
        return torch.randn(1, heads, len(layout.ids), query.shape[3], generator=generator).to(query.device, query.dtype)

    q, k, v, upstream = random(query.shape[1]), random(key.shape[1]), random(key.shape[1]), random(query.shape[1])
    results = []
    for way, dtype in ((attend, query.dtype), (segments, torch.float32)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        with torch.enable_grad():
            out = way(layout, leaves[0], leaves[1], leaves[2], None, window, cap)
            results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))])
    with torch.no_grad():
        results[0].append(attend(layout, q, k, v, None, window, cap))
        results[1].append(results[1][0])
    return max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))
