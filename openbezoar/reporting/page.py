"""The report of a run: ``report.md`` and ``report.html``, from manifests and the files of finished steps only.

``write_report`` reads a run folder (every ``manifest.json``, ``scores.json``, ``answers.jsonl``,
``rejected.jsonl``, ``metrics.jsonl``, ``heldout.jsonl``, ``model.json``) and writes the two
pages; Markdown's pictures lie beside it as SVG. No step, no section.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from openbezoar.reporting.answers_section import answer_sections
from openbezoar.reporting.data_sections import data_section
from openbezoar.reporting.document import Block, Chart, Grid, Page, Paragraph, Section, write_page
from openbezoar.reporting.facts import RunFacts, StepFacts, read_facts
from openbezoar.reporting.failures_section import failure_sections
from openbezoar.reporting.figures import graph_picture, mermaid
from openbezoar.reporting.judge_sections import judge_sections
from openbezoar.reporting.licences import cached_licence
from openbezoar.reporting.scores import differences
from openbezoar.reporting.table import Table, noise_sentences, scores_table
from openbezoar.reporting.training_sections import merge_section, training_section
from openbezoar.reporting.wording import NOTHING, duration, tally
from openbezoar.runs import RunFolder

NAME = "report"


def write_report(run: RunFolder, out: Path, steps: Iterable[str] | None = None) -> None:
    """Write ``report.md``, its pictures and ``report.html`` into the folder ``out``.

    steps: tell of these only; default: every finished step. Raises RunError if there is none.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_page(page(read_facts(run, steps)), out, NAME)


def page(facts: RunFacts) -> Page:
    """The report as plain data."""
    sections = [
        _opening(facts),
        _graph(facts),
        data_section(facts),
        training_section(facts),
        merge_section(facts),
        *judge_sections(facts),
        *answer_sections(facts),
        *failure_sections(facts),
        _times(facts),
        _environment(facts),
    ]
    return Page(f"OpenBezoar run '{facts.run.name}'", tuple(s for s in sections if s is not None))


def _opening(facts: RunFacts) -> Section:
    """The header and the table of checkpoints."""
    blocks: list[Block] = [Paragraph(header(facts))]
    table = scores_table(facts)
    if table.rows:
        blocks.append(Grid(table))
    blocks += [Paragraph(text) for text in noise_sentences(differences(facts))]
    return Section("", tuple(blocks))


def header(facts: RunFacts) -> str:
    """Recipe, seed, when and how long, in one paragraph."""
    steps = list(facts.steps.values())
    begun, ended = _begun(steps), max(s.finished for s in steps)
    when = f"between {begun} and {ended}" if begun else f"until {ended or NOTHING}"
    seed = NOTHING if facts.seed is None else facts.seed
    total = duration(sum(s.seconds for s in steps))
    dropped = f"{len(steps)} finished {'step' if len(steps) == 1 else 'steps'}"
    return f"Recipe '{facts.run.name}', seed {seed}: {dropped}, run {when} (UTC), {total} of work in all. Everything here is read from the run folder; a score has n and a 95 % interval in brackets."


def _begun(steps: list[StepFacts]) -> str:
    begun = []
    for step in steps:
        try:
            begun.append(datetime.strptime(step.finished, "%Y-%m-%dT%H:%M:%SZ") - timedelta(seconds=step.seconds))
        except ValueError:
            continue
    return min(begun).strftime("%Y-%m-%dT%H:%M:%SZ") if begun else ""


def _graph(facts: RunFacts) -> Section:
    steps = {name: (step.verb, step.inputs) for name, step in facts.steps.items()}
    return Section("Recipe", (Chart(mermaid(steps), graph_picture(steps, "Steps of the recipe, inputs above")),))


def _times(facts: RunFacts) -> Section:
    rows = tuple(
        (s.name, s.verb, duration(s.seconds), s.finished or NOTHING, tally(s.counts), str(s.manifest.get("summary") or NOTHING)) for s in facts.steps.values()
    )
    return Section("Time of every step", (Grid(Table(("step", "verb", "time", "finished (UTC)", "counted by reason", "summary"), rows)),))


def _environment(facts: RunFacts) -> Section:
    blocks: list[Block] = [Grid(Table(("what", "value", "steps"), tuple(_environments(facts))))]
    if models := facts.models():
        licences = stated_licences(facts)
        rows = tuple(
            (name, reference_of(identity), str(identity.get("dtype") or NOTHING), licences.get(name) or "not stated in the run folder")
            for name, identity in models.items()
        )
        blocks.append(Grid(Table(("model", "reference", "dtype", "licence"), rows)))
    files: dict[str, str] = {}
    for step in facts.steps.values():
        files |= {Path(k).name if Path(k).is_absolute() else str(k): str(v) for k, v in (step.parts.get("files") or {}).items()}
    if files:
        blocks.append(Grid(Table(("file read", "SHA-256"), tuple((name, digest) for name, digest in sorted(files.items())))))
    return Section("Environment, models and files", tuple(blocks))


def _environments(facts: RunFacts) -> list[tuple[str, str, str]]:
    """Each value of the environment, with the steps that had it where steps differ."""
    found: dict[tuple[str, str], list[str]] = {}
    for step in facts.steps.values():
        flat = {k: v for k, v in step.environment.items() if k != "packages" and v is not None}
        flat |= step.environment.get("packages") or {}
        if "recipe_version" in step.manifest:
            flat.setdefault("openbezoar", step.manifest["recipe_version"])
        for key, value in flat.items():
            found.setdefault((str(key), str(value)), []).append(step.name)
    return [(key, value, "all" if len(names) == len(facts.steps) else ", ".join(names)) for (key, value), names in found.items()]


def reference_of(identity: Mapping[str, Any]) -> str:
    """A model's reference as the recipe has it; only a folder's name of an absolute path, no address of a server."""
    text = str(identity.get("model", NOTHING))
    if identity.get("server"):
        return f"{text} (behind a server)"
    return Path(text).name if Path(text).is_absolute() else text


def stated_licences(facts: RunFacts) -> dict[str, str]:
    """Licences of the recipe's models, as ``model.json`` of the steps trained on them has them."""
    found: dict[str, str] = {}
    for step in facts.of("sft", "dpo", "merge"):
        licence, root = step.read_json("model.json").get("licence"), facts.trained_on(step.name)
        if licence and root:
            found.setdefault(root, str(licence))
    for name, identity in facts.models().items():
        if name not in found and (licence := cached_licence(str(identity.get("model", "")))):
            found[name] = licence
    return found
