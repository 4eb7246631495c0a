"""What ``plan`` prints: the steps as a table, and what they will cost together."""

from __future__ import annotations

import sys
from typing import Any


def print_plan(rows: list[dict[str, Any]]) -> None:
    """One line a step, and a line of sums, to stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, side in (
        ("step", "left"),
        ("verb", "left"),
        ("state", "left"),
        ("rows", "right"),
        ("tokens", "right"),
        ("money", "right"),
        ("memory", "right"),
        ("time", "right"),
        ("why", "left"),
    ):
        table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    open_rows = [row for row in rows if row["state"] != "done"]
    for row in rows:
        tokens = (row["tokens_in"] or 0) + (row["tokens_out"] or 0)
        table.add_row(
            row["name"],
            row["verb"],
            row["state"],
            _count(row["rows"]),
            _count(tokens),
            _money(row["money"]),
            _bytes(row["memory_bytes"]),
            _time(row["seconds"], row["assumed"]),
            row["why"],
        )
    seconds = [row["seconds"] for row in open_rows if row["seconds"]]
    total = sum((row["tokens_in"] or 0) + (row["tokens_out"] or 0) for row in open_rows)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    money = sum(row["money"] or 0 for row in open_rows)
    print(
        f"\n{len(open_rows)} of {len(rows)} steps would run: {_count(total)} tokens"
        + (f", money {_money(money)}" if money else "")
        + (f", about {_time(sum(seconds), False)}" if seconds else "")
    )
    if any(row["assumed"] and row["seconds"] for row in open_rows):
        print("Times with '~' are assumed; a finished run on this machine teaches better ones.")


def _count(n: float | None) -> str:
    return "" if not n else f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n / 1e3:.0f}k" if n >= 1e4 else f"{n:.0f}"


def _money(value: float | None) -> str:
    return "" if not value else f"{value:.2f}"


def _bytes(n: float | None) -> str:
    return "" if not n else f"{n / 1e9:.1f} GB"


def _time(seconds: float | None, assumed: bool) -> str:
    if not seconds:
        return ""
    text = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return ("~" if assumed else "") + text
