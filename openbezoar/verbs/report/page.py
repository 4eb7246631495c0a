"""The report of a run: ``report.md`` and ``report.html``, from manifests and the files of finished steps only.

``write_report`` reads a run folder (every ``manifest.json``, ``scores.json``, ``answers.jsonl``,
``rejected.jsonl``, ``metrics.jsonl``, ``heldout.jsonl``, ``model.json``) and the call cache beside it,
and writes the two pages; Markdown's pictures lie beside it as SVG. No step, no section.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import VERBS
from openbezoar.reporting.document import Page, write_page
from openbezoar.reporting.facts import RunFacts, known_recipe, read_facts
from openbezoar.reporting.scores_section import scores_section
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.report.environment_section import environment_section
from openbezoar.verbs.report.recipe_section import cost_section, recipe_section
from openbezoar.verbs.report.summary_section import summary_section

NAME = "report"


def write_report(run: RunFolder, out: Path, steps: Iterable[str] | None = None, recipe: Recipe | None = None) -> None:
    """Write ``report.md``, its pictures and ``report.html`` into the folder ``out``.

    steps: tell of these only; default: every finished step. recipe: the run's, default the one
    that run.json names, if it is still there. Raises RunError if no step is finished.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_page(page(read_facts(run, steps, recipe or known_recipe(run))), out, NAME)


def page(facts: RunFacts) -> Page:
    """The report as plain data: what is said of every run, and between it the verbs' own sections."""
    own = dict.fromkeys(row.part("section") for row in VERBS.values() if row.section)  # one for verbs that share it
    sections = [
        summary_section(facts),
        recipe_section(facts),
        scores_section(facts),
        *(section for sections_of in own for section in sections_of(facts)),
        cost_section(facts),
        environment_section(facts),
    ]
    return Page(f"OpenBezoar run '{facts.run.name}'", tuple(s for s in sections if s is not None))
