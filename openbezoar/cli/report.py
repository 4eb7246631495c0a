"""The command ``report``. Arguments in, one call, words out; no torch at import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openbezoar.cli.arguments import RunPath, named


def report(
    run: RunPath,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER", help="A second run, of the same recipe or another, to hold against the first."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default: RUN/report, or RUN/compare-OTHER.")
    ] = None,
) -> None:
    """Write a run's report again, or compare two runs.

    Nothing is run. Alone: report.html and report.md. With OTHER: compare.html and compare.md.

    Example: openbezoar report runs/demo

    Example: openbezoar report runs/demo runs/demo-beta-0.2
    """
    from openbezoar.store.runs import open_run
    from openbezoar.verbs.report.compare_page import write_comparison
    from openbezoar.verbs.report.page import write_report

    first = open_run(named(run))
    if other is None:
        target = out or first.step("report")
        write_report(first, target)
        if target == first.step("report"):
            first.vouch("report")
        print(target / "report.html")
        return
    second = open_run(named(other))
    print(write_comparison(first, second, out or first.path / f"compare-{second.name}"))
