"""The command ``report``. Arguments in, one call, words out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openbezoar.cli_arguments import RunPath


def report(run_path: RunPath, out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: RUN/report.")] = None) -> None:
    """Write a run's report again, from its manifests.

    Two pages, report.html and report.md; nothing is run.

    Example: openbezoar report runs/demo
    """
    from openbezoar.graph import open_run
    from openbezoar.reporting.page import write_report

    folder = open_run(run_path)
    target = out or folder.step("report")
    target.mkdir(parents=True, exist_ok=True)
    write_report(folder, target)
    print(target / "report.html")
