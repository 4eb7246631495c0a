"""The table of verbs: one row says all that the rest of the package asks of a step by its verb.

A verb is its settings (a class of this room), its row here, and its room in ``verbs/``. What the
row names as text, 'module:name' in that room, is imported when it is used, so that planning stays
without torch. A verb of another package: ``VERBS["name"] = Verb(...)`` before a recipe is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from openbezoar.recipe.blocks import Step
from openbezoar.recipe.data_steps import Filter, Generate
from openbezoar.recipe.measure_steps import Agreement, Evaluate, Failures, MtBench
from openbezoar.recipe.pair_steps import Pairs
from openbezoar.recipe.tell_steps import Release, Report
from openbezoar.recipe.train_steps import Choose, Dpo, Kto, Merge, Reward, Sft


@dataclass(frozen=True)
class Verb:
    """One row. Functions of a step are given its settings first, and most a ``StepPlace`` of it in its recipe.

    version: of the work, part of the step's key; raised when the same settings would give other results.
    produces: what other steps can name it for ('rows', 'model', 'adapter', 'merged model', 'judge check');
    products: (settings, the recipe's steps) -> those of them that this step makes, where not all do.
    tells: it only tells about other steps. scores: its result scores checkpoints. together: all
    processes of a run take part. reads_wholly: its inputs' files are read whole against their digests.

    work: (settings, context) -> the numbers of its manifest, with 'summary', a line.
    cost: (settings, book) -> Estimate. hands_on: (settings, book, name) -> the rows it hands on, estimated.
    result: the class that writes and reads what it measured. section: (facts) -> sections of the report.
    options: (settings, place) -> checked settings that the class leaves open.
    check: (settings, place), raises RecipeError. inputs: (settings, recipe) -> further steps that it reads.
    parts: (settings, place) -> groups of its key beside those of every step. texts: (settings) -> names
    of the project's texts that it sends. benchmarks: (settings, name, recipe, its folder) -> rows to
    keep out of training.
    packages: (settings, recipe) -> optional packages it imports; opening: those to open its model.
    gate: (name, settings, folder, seed) -> warnings about finished numbers; raises RunError.
    """

    settings: type[Step]
    version: int
    does: str
    room: str
    work: str
    produces: tuple[str, ...] = ()
    products: str = ""
    tells: bool = False
    scores: bool = False
    together: bool = False
    reads_wholly: bool = False
    cost: str = ""
    hands_on: str = ""
    result: str = ""
    section: str = ""
    options: str = ""
    check: str = ""
    inputs: str = ""
    parts: str = ""
    texts: str = ""
    benchmarks: str = ""
    packages: str = ""
    opening: str = ""
    gate: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """What a recipe calls the fields of its settings."""
        return tuple(field.alias or name for name, field in self.settings.model_fields.items())

    def part(self, name: str) -> Any:
        """What the row names, imported; None where it names nothing."""
        if not (text := getattr(self, name)):
            return None
        module, _, attribute = text.partition(":")
        return getattr(import_module(f"{self.room}.{module}"), attribute)


VERBS: dict[str, Verb] = {
    "generate": Verb(
        settings=Generate,
        version=4,
        does="a teacher writes instructions and answers",
        room="openbezoar.verbs.generate",
        work="work:run",
        produces=("rows",),
        cost="cost:cost",
        hands_on="cost:hands_on",
        result="result:GenerateNumbers",
        options="key:options",
        texts="key:texts",
    ),
    "filter": Verb(
        settings=Filter,
        version=4,
        does="rules and a judge keep the good rows",
        room="openbezoar.verbs.filter",
        work="work:run",
        produces=("rows",),
        cost="cost:cost",
        hands_on="cost:hands_on",
        result="result:FilterNumbers",
        section="section:sections",
        check="key:check",
        parts="key:parts",
        texts="key:texts",
        packages="key:packages",
    ),
    "pairs": Verb(
        settings=Pairs,
        version=1,
        does="answers become preference pairs",
        room="openbezoar.verbs.pairs",
        work="work:run",
        produces=("rows",),
        cost="cost:cost",
        hands_on="cost:hands_on",
        result="result:PairsNumbers",
        section="section:sections",
        texts="key:texts",
    ),
    "sft": Verb(
        settings=Sft,
        version=2,
        does="trains on answers (an adapter)",
        room="openbezoar.verbs.train",
        work="sft:run",
        produces=("model", "adapter", "merged model"),
        products="key:products",
        together=True,
        cost="cost:sft",
        result="result:SftNumbers",
        section="section:sections",
        check="key:check",
        packages="key:packages",
        opening="key:opening",
    ),
    "merge": Verb(
        settings=Merge,
        version=2,
        does="adds the adapter to the weights",
        room="openbezoar.verbs.merge",
        work="work:run",
        produces=("model", "merged model"),
        cost="cost:cost",
        result="result:MergeNumbers",
        section="section:sections",
        packages="key:packages",
        opening="key:packages",
        gate="gate:gate",
    ),
    "dpo": Verb(
        settings=Dpo,
        version=2,
        does="trains on preferred against rejected answers",
        room="openbezoar.verbs.train",
        work="dpo:run",
        produces=("model", "adapter", "merged model"),
        products="key:products",
        together=True,
        cost="cost:dpo",
        result="result:DpoNumbers",
        section="section:sections",
        packages="key:packages",
        opening="key:opening",
    ),
    "kto": Verb(
        settings=Kto,
        version=1,
        does="trains on answers that were liked or not",
        room="openbezoar.verbs.train",
        work="kto:run",
        produces=("model", "adapter", "merged model"),
        products="key:products",
        together=True,
        cost="cost:kto",
        result="result:KtoNumbers",
        section="section:sections",
        packages="key:packages",
        opening="key:opening",
    ),
    "reward": Verb(
        settings=Reward,
        version=1,
        does="trains a reward model on pairs",
        room="openbezoar.verbs.train",
        work="reward:run",
        produces=("reward model",),
        together=True,
        cost="cost:reward",
        result="result:RewardNumbers",
        section="section:sections",
        packages="key:packages",
        opening="key:opening",
        gate="gate:gate",
    ),
    "choose": Verb(
        settings=Choose,
        version=1,
        does="takes the best of several steps that trained",
        room="openbezoar.verbs.choose",
        work="work:run",
        produces=("model", "adapter", "merged model", "reward model"),
        products="key:products",
        cost="cost:cost",
        result="result:ChooseNumbers",
        section="section:sections",
        check="key:check",
        opening="key:opening",
        gate="gate:gate",
    ),
    "evaluate": Verb(
        settings=Evaluate,
        version=5,
        does="scores checkpoints on tasks and held-out rows",
        room="openbezoar.verbs.evaluate",
        work="work:run",
        scores=True,
        cost="cost:cost",
        result="result:EvaluateScores",
        texts="key:texts",
        benchmarks="key:benchmarks",
        packages="key:packages",
        gate="gates:gate",
    ),
    "agreement": Verb(
        settings=Agreement,
        version=3,
        does="holds the judge against people",
        room="openbezoar.verbs.judge",
        work="agreement:run",
        produces=("judge check",),
        cost="cost:agreement",
        result="result:AgreementScores",
        section="section:sections",
        texts="key:agreement_texts",
        gate="gate:gate",
    ),
    "mt_bench": Verb(
        settings=MtBench,
        version=4,
        does="asks two-turn questions; a judge grades",
        room="openbezoar.verbs.judge",
        work="mt_bench:run",
        scores=True,
        cost="cost:mt_bench",
        result="result:MtBenchScores",
        section="answers_section:sections",
        texts="key:mt_bench_texts",
    ),
    "failures": Verb(
        settings=Failures,
        version=4,
        does="counts what goes wrong in answers",
        room="openbezoar.verbs.failures",
        work="work:run",
        cost="cost:cost",
        result="result:FailuresScores",
        section="section:sections",
        texts="key:texts",
    ),
    "report": Verb(
        settings=Report,
        version=2,
        does="writes one page about the run",
        room="openbezoar.verbs.report",
        work="work:run",
        tells=True,
    ),
    "release": Verb(
        settings=Release,
        version=3,
        does="writes models, data and cards, ready to publish",
        room="openbezoar.verbs.release",
        work="work:run",
        tells=True,
        reads_wholly=True,
        cost="cost:cost",
        result="result:ReleaseNumbers",
        inputs="key:inputs",
        parts="key:parts",
        packages="key:packages",
    ),
}


def verb_of(step: BaseModel | Mapping[str, Any]) -> str:
    """The verb of a step; '' of a mapping that has none, or more than one."""
    if isinstance(step, BaseModel):
        return next(verb for verb, row in VERBS.items() if type(step) is row.settings)
    verbs = verbs_in(step)
    return verbs[0] if len(verbs) == 1 else ""


def verbs_in(step: Mapping[str, Any]) -> list[str]:
    """The verbs among a mapping's keys; a verb's name that is a key of another verb there, as ``pairs`` is one
    of ``evaluate``, is that.
    """
    verbs = [verb for verb in VERBS if verb in step]
    return [v for v in verbs if not any(v in VERBS[other].keys for other in verbs if other != v)]


def row_of(step: BaseModel) -> Verb:
    """The row of a step's verb."""
    return VERBS[verb_of(step)]


def products_of(steps: Mapping[str, BaseModel], name: str) -> tuple[str, ...]:
    """What a step can be named for."""
    row = row_of(steps[name])
    made = row.part("products")
    return tuple(made(steps[name], steps)) if made else row.produces
