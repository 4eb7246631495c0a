"""The command ``watch``: a run at work, live in the terminal. No torch at import."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from openbezoar.cli.arguments import RunPath

PIPE = 100  # columns where there is no terminal


def watch(
    run_path: RunPath,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, as without a terminal.")] = False,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.2, help="Between two frames.")] = 2.0,
) -> None:
    """Follow a run: steps, losses, rates, memory, time left.

    Reads files of the run's folder only, so it may be started, stopped and started again
    beside a run, and after it. Ctrl-C ends it; the run goes on.

    Example: openbezoar watch runs/demo --once
    """
    from rich.console import Console

    from openbezoar.people.watch import frame, look

    live = sys.stdout.isatty() and not once
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE)
    unicode = (console.encoding or "").lower().startswith("utf")
    if not live:
        console.print(frame(look(run_path), unicode=unicode))
        return
    from rich.live import Live

    try:
        with Live(frame(look(run_path), unicode=unicode), console=console, auto_refresh=False, screen=True) as shown:
            while True:
                time.sleep(every)
                shown.update(frame(look(run_path), unicode=unicode), refresh=True)
    except KeyboardInterrupt:
        console.print(frame(look(run_path), unicode=unicode))
