"""``report``: one page about the run, as Markdown and as self-contained HTML.

Reads the manifests and files of the other steps. Writes ``report.md`` (with its pictures)
and ``report.html``.
"""

from __future__ import annotations

from typing import Any

from openbezoar.context import StepContext
from openbezoar.recipe.tell_steps import Report
from openbezoar.verbs.report.page import NAME, write_report


def run(step: Report, context: StepContext) -> dict[str, Any]:
    """Write the report on the steps it names, or on all others."""
    names = context.steps if step.report == "all" else step.report
    write_report(context.run, context.out, names, context.recipe)
    files = {path.name: path.stat().st_size for path in sorted(context.out.glob(f"{NAME}.*"))}
    return {"files": files, "summary": f"{NAME}.html and {NAME}.md"}
