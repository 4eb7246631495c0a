"""Seeds by use, never by the order of calls."""

from __future__ import annotations

import hashlib


def step_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed for one use of randomness, from the recipe's seed and the use's name."""
    return int(hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).hexdigest()[:15], 16)
