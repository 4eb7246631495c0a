"""Values of data frames, Arrow tables and the hub's client as JSON has them. Takes values, gives values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any


def plain(value: Any) -> Any:
    """A value as JSON has it: times their ISO text, decimals numbers, bytes that are UTF-8 text that
    text, not-a-number null, arrays lists. What JSON has no word for stays as it is.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return _text_of(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return plain(value.tolist()) if hasattr(value, "tolist") else value  # an array, or one of its numbers


def _text_of(value: bytes) -> str | dict[str, int]:
    """Bytes as their text; of an image or a sound, of which none can be made, how many they are."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"bytes": len(value)}
