"""A run folder as facts: reads every finished step's ``manifest.json``; writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from openbezoar.errors import RunError, UserError
from openbezoar.recipe.file import load
from openbezoar.recipe.order import Circle, in_order, needed_by
from openbezoar.recipe.refs import field_of
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import VERBS
from openbezoar.reporting.chosen import ChooseNumbers
from openbezoar.reporting.results import Result, StepFacts
from openbezoar.reporting.wording import NOTHING
from openbezoar.store.digests import MANIFEST
from openbezoar.store.manifests import read_object
from openbezoar.store.runs import RunFolder

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class RunFacts:
    """All finished steps of a run, inputs before what read them."""

    run: RunFolder
    steps: Mapping[str, StepFacts]
    recipe: Recipe | None = None  # for what manifests do not have: prices, and steps that are not finished

    def of(self, *verbs: str) -> list[StepFacts]:
        """The steps with one of these verbs, in order."""
        return [s for s in self.steps.values() if s.verb in verbs]

    def results(self, kind: type[R]) -> list[R]:
        """The steps' results of a kind, in order."""
        return [s.result for s in self.steps.values() if isinstance(s.result, kind)]

    def lineage(self, names: Iterable[str]) -> list[StepFacts]:
        """These steps and everything they were made from, in order; of a choice the step that was taken."""
        inputs = {
            name: [one for one in read if not (chosen := _chosen(self.steps[name])) or one == chosen]
            for name, read in _inputs(self.steps.values()).items()
        }
        needed_names = set().union(*(needed_by(inputs, name) for name in names if name in inputs))
        return [step for name, step in self.steps.items() if name in needed_names]

    def part(self, names: Iterable[str]) -> RunFacts:
        """The run as if it had only these steps and what they were made from."""
        return RunFacts(self.run, {step.name: step for step in self.lineage(names)}, self.recipe)

    def trained_on(self, name: str) -> str | None:
        """The recipe's model at the root of a step that made one."""
        *_, root = ("", *self.descent(name))
        return root or None

    def descent(self, name: str) -> Iterator[str]:
        """A model's name, what it was made from, and so on down to a model as it came; of a choice the step that was
        taken.
        """
        seen: set[str] = set()
        while name and name not in seen:
            yield name
            seen.add(name)
            name = _made_from(self.steps[name]) if name in self.steps else ""

    def models(self) -> dict[str, Mapping[str, Any]]:
        """Identities of the recipe's models that a step used, by name."""
        identities: dict[str, Mapping[str, Any]] = {}
        for step in self.steps.values():
            for name, identity in (step.parts.get("models") or {}).items():
                identities.setdefault(name, identity if isinstance(identity, Mapping) else {})
        return identities

    def commits(self) -> dict[str, str]:
        """The commits of models and data sets on the hub that a step read, by their names in the recipe."""
        return {
            name: commit
            for step in self.steps.values()
            for name, commit in (step.manifest.get("hub") or {}).items()
            if isinstance(commit, str)
        }

    @property
    def seed(self) -> int | None:
        return next((s.parts["seed"] for s in self.steps.values() if "seed" in s.parts), None)


def read_facts(run: RunFolder, names: Iterable[str] | None = None, recipe: Recipe | None = None) -> RunFacts:
    """The finished steps of a run, or those of them in ``names``; never steps that tell of others.

    Raises RunError if there is no such step, or if a file of one is not what it made.
    """
    steps: dict[str, StepFacts] = {}
    allowed = None if names is None else set(names)
    for path in sorted(run.path.glob(f"*/{MANIFEST}")):
        folder = path.parent
        manifest = run.checked(folder.name)
        if manifest is None or (allowed is not None and folder.name not in allowed):
            continue
        step = StepFacts(folder.name, str(manifest.get("verb", "")), folder, manifest)
        if not (step.verb in VERBS and VERBS[step.verb].tells):
            steps[step.name] = step
    if not steps:
        raise RunError(f"{run.path}: no finished step to report on; run the recipe first")
    try:
        return RunFacts(run, _ordered(steps), recipe)
    except Circle as circle:
        raise RunError(f"{run.path}: its steps read one another: {circle}; run the recipe again") from None


def _made_from(step: StepFacts) -> str:
    """What a step's model was made from; '' of one that makes no model."""
    if chosen := _chosen(step):
        return chosen
    field = field_of(VERBS[step.verb].settings, "base") if step.verb in VERBS else None
    named = step.settings.get(field) if field else None
    return str((named[0] if isinstance(named, list) else named) or "")


def _chosen(step: StepFacts) -> str | None:
    """The step that was taken; None of a step that is no choice."""
    return step.result.chosen if isinstance(step.result, ChooseNumbers) else None


def _ordered(found: Mapping[str, StepFacts]) -> dict[str, StepFacts]:
    """Inputs first, otherwise as the recipe has them; steps of older versions, which did not say,
    before, by the time of their end.
    """
    by_place = sorted(found.values(), key=lambda s: (s.place, "" if s.place >= 0 else s.finished, s.name))
    return {name: found[name] for name in in_order(_inputs(by_place))}


def _inputs(steps: Iterable[StepFacts]) -> dict[str, list[str]]:
    """What each of these steps has read of the others."""
    by_name = {step.name: step for step in steps}
    return {name: [other for other in step.inputs if other in by_name] for name, step in by_name.items()}


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
