"""A key/value cache that grows in steps rather than being copied whole for each new token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE = 64
"""Tokens of room made at a time."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [batch, kv heads, n, d], views of larger tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: Any
        self.values: Any
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; the whole keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        had, more = self.get_seq_length(), key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < had + more:
            batch, heads, _, _ = key_states.shape
            room = tuple(x.new_empty(batch, heads, had + more + SPARE, x.shape[-1]) for x in (key_states, value_states))
            if had:
                room[0][:, :, :had], room[1][:, :, :had] = self.keys, self.values
            self._room = (room[0], room[1])
        keys, values = self._room
        keys[:, :, had : had + more], values[:, :, had : had + more] = key_states, value_states
        self.keys, self.values = keys[:, :, : had + more], values[:, :, : had + more]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._room = None  # keys and values are copies now


def roomy_cache(config: Any, whole: bool = False) -> DynamicCache:
    """A cache for a model's layers; those with a sliding window keep transformers' own, which stay
    short, unless ``whole``.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if whole or type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
