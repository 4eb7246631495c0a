"""The report's section of environment, models, licences and hashes. Reads manifests and
``model.json``; writes nothing.
"""

from __future__ import annotations

from pathlib import Path

from openbezoar.publishing.licences import cached_licence
from openbezoar.reporting.document import Block, Fold, Grid, Section
from openbezoar.reporting.facts import RunFacts, reference_of
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING
from openbezoar.store.digests import Marks, marks_in


def environment_section(facts: RunFacts) -> Section:
    """What it ran on, with which models and files, and the hashes that say so."""
    blocks: list[Block] = []
    if models := facts.models():
        licences = stated_licences(facts)
        rows = tuple(
            (
                name,
                reference_of(identity),
                licences.get(name) or "not stated in the run folder",
                str(identity.get("dtype") or NOTHING),
            )
            for name, identity in models.items()
        )
        blocks.append(Grid(Table(("model", "reference", "licence", "dtype"), rows), "Models and licences", stack=True))
    blocks.append(Grid(Table(("what", "value", "steps"), tuple(_environments(facts))), "Environment", stack=True))
    files: dict[str, str] = {}
    for step in facts.steps.values():
        files |= {
            Path(k).name if Path(k).is_absolute() else str(k): str(v)
            for k, v in (step.parts.get("files") or {}).items()
        }
    if files:
        table = Table(("file read", "SHA-256"), tuple((name, digest) for name, digest in sorted(files.items())))
        blocks.append(Fold("Hashes of the files that were read", (Grid(table, "Files and their hashes"),)))
    keys = tuple(
        (
            s.name,
            str(s.manifest.get("key", NOTHING)),
            str(s.parts.get("version", NOTHING)),
            _weights(marks_in(s.manifest)),
        )
        for s in facts.steps.values()
    )
    note = "A step's key is a hash of all that its result depends on; the same key means the same step."
    blocks.append(
        Fold(
            "Keys of the steps and hashes of their weights",
            (Grid(Table(("step", "key", "version", "weights, SHA-256"), keys, note), "Keys of the steps"),),
        )
    )
    return Section("Environment, models and hashes", tuple(blocks))


def _weights(marks: Marks) -> str:
    return ", ".join(f"{name} {mark[-1]}" for name, mark in marks.items() if name.endswith(".safetensors")) or NOTHING


def _environments(facts: RunFacts) -> list[tuple[str, str, str]]:
    """Each value of the environment, with the steps that had it where steps differ."""
    versions: dict[tuple[str, str], list[str]] = {}
    for step in facts.steps.values():
        flat = {k: v for k, v in step.environment.items() if k != "packages" and v is not None}
        flat |= step.environment.get("packages") or {}
        if "recipe_version" in step.manifest:
            flat.setdefault("openbezoar", step.manifest["recipe_version"])
        for key, value in flat.items():
            versions.setdefault((str(key), str(value)), []).append(step.name)
    order = list(dict.fromkeys(key for key, _ in versions))
    return [
        (key, value, "all" if len(names) == len(facts.steps) else ", ".join(names))
        for (key, value), names in sorted(versions.items(), key=lambda item: order.index(item[0][0]))
    ]


def stated_licences(facts: RunFacts) -> dict[str, str]:
    """Licences of the recipe's models, as ``model.json`` of the steps trained on them has them."""
    licences: dict[str, str] = {}
    for step in facts.steps.values():
        licence, root = step.read_json("model.json").get("licence"), facts.trained_on(step.name)
        if licence and root:
            licences.setdefault(root, str(licence))
    for name, identity in facts.models().items():
        if name not in licences and (licence := cached_licence(str(identity.get("model", "")))):
            licences[name] = licence
    return licences
