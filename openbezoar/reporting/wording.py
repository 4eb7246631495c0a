"""Numbers, durations and foreign text as they are written in tables, Markdown and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from openbezoar.progress import visible
from openbezoar.store.digests import digest

NOTHING = "—"


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def number(value: Any, digits: int = 3) -> str:
    """A number with so many decimals, or a dash if there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def amount(value: float) -> str:
    """A size of any magnitude in three significant digits."""
    return f"{value:.3g}"


def size(n: float) -> str:
    """Bytes in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"


def estimate(value: float, low: float | None, high: float | None, digits: int = 3, sign: bool = False) -> str:
    """A value with its 95 % interval."""
    plus = "+" if sign else ""
    text = f"{value:{plus}.{digits}f}"
    if low is None or high is None:
        return f"{text} (no interval)"
    return f"{text} [{low:{plus}.{digits}f}, {high:{plus}.{digits}f}]"


def tally(counts: Mapping[str, int]) -> str:
    """Counts by reason in one line."""
    return ", ".join(f"{reason}: {n}" for reason, n in counts.items()) or "none"


_UNDERSCORE = re.compile(r"(?<!\w)_|_(?!\w)")
_LINK = re.compile(r"\](?=[(\[:])")


def slug(text: str) -> str:
    """A name for a file or an anchor: letters, digits and hyphens, with a few digits of a digest
    where something was lost.
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")
    return plain if plain.replace("-", "") == re.sub(r"[ _.-]", "", text) else f"{plain}-{digest(text)[:6]}".strip("-")


def plural(n: int, thing: str, things: str | None = None) -> str:
    """\"1 row\", \"2 rows\"."""
    return f"{n:,} {thing if n == 1 else things or thing + 's'}"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line, safe in a table: no HTML, pipe, link or emphasis."""
    text = html.escape(" ".join(visible(text).split()), quote=False)
    text = re.sub(r"[\\`*|~]", lambda m: "\\" + m[0], text)
    return _LINK.sub(r"\\]", _UNDERSCORE.sub(r"\\_", text))


def fenced(text: str, language: str = "text") -> str:
    """A fenced block that no run of backticks in ``text`` can close."""
    text = visible(text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def code(text: str) -> str:
    """A span of code on one line that no run of backticks in ``text`` can close."""
    shown = " ".join(visible(text).split())
    fence = "`" * (max(map(len, re.findall(r"`+", shown)), default=0) + 1)
    room = " " if "`" in shown else ""
    return f"{fence}{room}{shown}{room}{fence}"


def shorten(text: str, limit: int, count: bool = True) -> str:
    """At most ``limit`` characters, and how many were left out if they shall be counted."""
    return text if len(text) <= limit else text[:limit] + (f"… [{len(text) - limit} more characters]" if count else "…")
