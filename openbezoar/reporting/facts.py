"""A run folder as facts: reads every finished step's ``manifest.json``; writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbezoar.errors import RunError, UserError
from openbezoar.recipe.file import load
from openbezoar.recipe.schema import Recipe
from openbezoar.reporting.wording import NOTHING
from openbezoar.rows.records import Row, read_jsonl
from openbezoar.store.digests import MANIFEST
from openbezoar.store.manifests import read_object
from openbezoar.store.runs import RunFolder

ABOUT = ("report", "release")  # verbs that only tell about the other steps


@dataclass(frozen=True)
class StepFacts:
    """One finished step, as its manifest has it."""

    name: str
    verb: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def parts(self) -> Mapping[str, Any]:
        return _mapping(self.manifest.get("parts"))

    @property
    def settings(self) -> Mapping[str, Any]:
        return _mapping(self.parts.get("settings"))

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(_mapping(self.parts.get("inputs")))

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows dropped or changed, by reason."""
        return _mapping(self.manifest.get("counts"))

    @property
    def numbers(self) -> Mapping[str, Any]:
        return _mapping(self.manifest.get("numbers"))

    @property
    def environment(self) -> Mapping[str, Any]:
        return _mapping(self.manifest.get("environment"))

    @property
    def seconds(self) -> float:
        return float(self.manifest.get("seconds") or 0.0)

    @property
    def place(self) -> int:
        """Where the step stands in its recipe's order; -1 if its manifest does not say."""
        return int(self.manifest.get("place", -1))

    @property
    def finished(self) -> str:
        """Time of the end, UTC, as written."""
        return str(self.manifest.get("finished") or "")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the step, {} if it has none. Raises RunError if it cannot be read."""
        path = self.folder / name
        return read_object(path, "JSON", "delete the step's folder and run again") if path.is_file() else {}

    def rows(self, name: str) -> Iterator[Row]:
        """Rows of a JSON lines file of the step, none if it has no such file."""
        path = self.folder / name
        return read_jsonl(path) if path.is_file() else iter(())

    def rows_in(self, name: str) -> int:
        """How many rows a JSON lines file of the step has."""
        path = self.folder / name
        if not path.is_file():
            return 0
        with path.open("rb") as lines:
            return sum(bool(line.strip()) for line in lines)


@dataclass(frozen=True)
class RunFacts:
    """All finished steps of a run, inputs before what read them."""

    run: RunFolder
    steps: Mapping[str, StepFacts]
    recipe: Recipe | None = None  # for what manifests do not have: prices, and steps that are not finished

    def of(self, *verbs: str) -> list[StepFacts]:
        """The steps with one of these verbs, in order."""
        return [s for s in self.steps.values() if s.verb in verbs]

    def lineage(self, names: Iterable[str]) -> list[StepFacts]:
        """These steps and everything they were made from, in order."""
        wanted: set[str] = set()
        todo = [n for n in names if n in self.steps]
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo += [i for i in self.steps[name].inputs if i in self.steps]
        return [s for s in self.steps.values() if s.name in wanted]

    def trained_on(self, name: str) -> str | None:
        """The recipe's model at the root of a sft, dpo or merge step."""
        seen: set[str] = set()
        while name in self.steps and name not in seen:
            seen.add(name)
            settings = self.steps[name].settings
            name = str(settings.get("merge") or settings.get("model") or "")
        return name or None

    def models(self) -> dict[str, Mapping[str, Any]]:
        """Identities of the recipe's models that a step used, by name."""
        found: dict[str, Mapping[str, Any]] = {}
        for step in self.steps.values():
            for name, identity in _mapping(step.parts.get("models")).items():
                found.setdefault(name, _mapping(identity))
        return found

    @property
    def seed(self) -> int | None:
        return next((s.parts["seed"] for s in self.steps.values() if "seed" in s.parts), None)


def read_facts(run: RunFolder, names: Iterable[str] | None = None, recipe: Recipe | None = None) -> RunFacts:
    """The finished steps of a run, or those of them in ``names``; reports and releases never.

    Raises RunError if there is no such step, or if a file of one is not what it made.
    """
    found: dict[str, StepFacts] = {}
    allowed = None if names is None else set(names)
    for path in sorted(run.path.glob(f"*/{MANIFEST}")):
        folder = path.parent
        manifest = run.checked(folder.name)
        if manifest is None or manifest.get("verb") in ABOUT or (allowed is not None and folder.name not in allowed):
            continue
        found[folder.name] = StepFacts(folder.name, str(manifest.get("verb", "")), folder, manifest)
    if not found:
        raise RunError(f"{run.path}: no finished step to report on; run the recipe first")
    return RunFacts(run, _ordered(found), recipe)


def _ordered(found: Mapping[str, StepFacts]) -> dict[str, StepFacts]:
    """Inputs first, otherwise as the recipe has them; steps of older versions, which did not say,
    before, by the time of their end.
    """
    ordered: dict[str, StepFacts] = {}

    def visit(step: StepFacts, trail: tuple[str, ...]) -> None:
        if step.name in ordered or step.name in trail:
            return
        for name in step.inputs:
            if name in found:
                visit(found[name], (*trail, step.name))
        ordered[step.name] = step

    for step in sorted(found.values(), key=lambda s: (s.place, "" if s.place >= 0 else s.finished, s.name)):
        visit(step, ())
    return ordered


def reference_of(identity: Mapping[str, Any]) -> str:
    """A model's reference as the recipe has it; only a folder's name of an absolute path, no address of a server."""
    text = str(identity.get("model", NOTHING))
    if identity.get("server"):
        return f"{text} (behind a server)"
    return Path(text).name if Path(text).is_absolute() else text


def known_recipe(run: RunFolder) -> Recipe | None:
    """The recipe that a run was last made by, as it is now; None where it is not on this machine or no longer holds."""
    try:
        about = read_object(run.path / "run.json", "the run's recipe", "run it again")
        return load(Path(about["recipe"]), about["overrides"])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
