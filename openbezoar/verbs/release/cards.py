"""Model and data cards of a release, filled only from manifests and measured files.

Reads finished steps' facts; returns the text of a README.md with YAML metadata that the
hub understands. Nothing is claimed that a step did not measure, and no time, speed or place
of this machine is told: equal runs have equal cards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openbezoar.errors import DataError
from openbezoar.publishing.checksums import File
from openbezoar.publishing.licences import Licence, Source, for_use
from openbezoar.recipe.tell_steps import DataForm
from openbezoar.recipe.verbs import VERBS
from openbezoar.reporting.document import template
from openbezoar.reporting.facts import RunFacts, reference_of
from openbezoar.reporting.funnels import RowNumbers, funnel_table, funnels
from openbezoar.reporting.measured import Measured
from openbezoar.reporting.results import Scores, StepFacts
from openbezoar.reporting.scores import differences
from openbezoar.reporting.scores_table import scores_table
from openbezoar.reporting.table import Table
from openbezoar.reporting.training import (
    PreferenceNumbers,
    TrainingNumbers,
    UnpairedNumbers,
    preference_table,
    settings_table,
    training_table,
    unpaired_table,
)
from openbezoar.reporting.wording import NOTHING, size
from openbezoar.verbs.release.released_rows import languages

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class ModelFiles:
    """What lies in a released model's folder."""

    name: str
    weights: Mapping[str, str]  # file → SHA-256
    bytes: int
    prompt: str  # an example prompt, as the template renders it
    stop: tuple[str, ...]  # texts at which generation should stop besides the end token
    end: str  # what closes an answer; '' if it was not trained
    terms: tuple[str, ...]  # licence files carried on
    gguf: tuple[File, ...] = ()
    gguf_refused: str = ""  # why there are none


def model_card(facts: RunFacts, title: str, files: ModelFiles, licence: Licence, sources: Sequence[Source]) -> str:
    """README.md of one released merge step."""
    own = facts.part([files.name])
    down = set(own.descent(files.name))  # other steps trained who wrote or judged its data
    made_by = RunFacts(own.run, {name: step for name, step in own.steps.items() if name in down}, own.recipe)
    trainings = made_by.results(TrainingNumbers)
    root = own.trained_on(files.name) or NOTHING
    base = reference_of(own.models().get(root, {}))
    own_funnels = funnels(own)
    values = {
        "metadata": _model_metadata(facts, files, licence, base, trainings),
        "title": title,
        "files": files,
        "size": size(files.bytes),
        "run": facts.run.name,
        "seed": facts.seed,
        "base": base,
        "teachers": _teachers(own),
        "licence": licence,
        "use": for_use(sources),
        "sources": sources,
        "funnels": funnel_table(own_funnels) if own_funnels else None,
        "kept_back": [s.name for s in own.steps.values() if _keeps_rows_back(s)],
        "training": _training_tables(trainings),
        "preference": preference_table(p) if (p := made_by.results(PreferenceNumbers)) else None,
        "unpaired": unpaired_table(u) if (u := made_by.results(UnpairedNumbers)) else None,
        "merges": next(iter(VERBS["merge"].part("section")(made_by)), None),
        "scores": scores_table(facts),
        "limitations": limitations(facts, files),
        "lineage": Table(
            ("step", "verb", "key"),
            tuple((s.name, s.verb, str(s.manifest.get("key", NOTHING))) for s in own.steps.values()),
        ),
        "versions": versions(own.steps[files.name]) if files.name in own.steps else "",
    }
    return template("model_card.md.j2", **values)


def _keeps_rows_back(step: StepFacts) -> bool:
    """Whether a step hands rows on that are none of a scheme's, which a data set here is of."""
    row = VERBS.get(step.verb)
    return row is not None and "rows" in row.produces and not isinstance(step.result, RowNumbers)


def _training_tables(trainings: Sequence[TrainingNumbers]) -> list[Table]:
    if not trainings:
        return []
    return [training_table(trainings, speed=False), settings_table(trainings)]


def _model_metadata(
    facts: RunFacts, files: ModelFiles, licence: Licence, base: str, trainings: Sequence[TrainingNumbers]
) -> str:
    """The hub's fields: https://huggingface.co/docs/hub/model-cards. A base that is not on the hub
    has no field there.
    """
    lineage = facts.lineage([files.name])
    tags = ["openbezoar", *(verb for verb in ("sft", "dpo", "kto") if any(n.step.verb == verb for n in trainings))]
    tags += ["qlora"] if any(n.held_in() == "nf4" for n in trainings) else []
    tags += ["gguf"] if files.gguf else []
    metadata: dict[str, Any] = {
        **_licence_metadata(licence, files.terms),
        **_language_metadata(lineage),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    hub, _, revision = base.partition("@")
    revision = facts.commits().get(base, revision)
    if HUB_ID.match(hub):
        metadata |= {"base_model": hub, **({"base_model_revision": revision} if revision else {})}
    if data := hub_datasets(lineage):
        metadata["datasets"] = data
    measured = [one for result in facts.results(Scores) for one in result.scores()]
    if results := [_result(one) for one in measured if one.checkpoint == files.name]:
        metadata["model-index"] = [{"name": files.name, "results": results}]
    return yaml_text(metadata)


METRICS = {"loss": "loss", "rewards": "accuracy", "pairs": "accuracy", "rating": "rating", "ended": "ended"}


def _result(m: Measured) -> dict[str, Any]:
    """One score in the form of the hub's model index."""
    interval = {} if m.score.low is None or m.score.high is None else {"low": m.score.low, "high": m.score.high}
    metric = {
        "type": METRICS.get(m.kind) or m.title.partition(": ")[2].partition(",")[0],
        "name": m.title,
        "value": m.score.value,
    }
    return {
        "task": {"type": "text-generation"},
        "dataset": {
            "name": m.name,
            "type": re.sub(r"[^a-z0-9]+", "-", m.name.lower()).strip("-"),
            "args": {"n": m.score.n},
        },
        "metrics": [metric | ({"args": interval} if interval else {})],
    }


def _language_metadata(steps: Sequence[StepFacts]) -> dict[str, Any]:
    codes = languages(list(steps))
    return {"language": codes} if codes else {}


def _licence_metadata(licence: Licence, terms: Sequence[str] = ()) -> dict[str, str]:
    if licence.name is None:
        return {"license": licence.id}
    return {"license": licence.id, "license_name": licence.name, **({"license_link": terms[0]} if terms else {})}


def yaml_text(metadata: Mapping[str, Any]) -> str:
    """Metadata as YAML, in the given order."""
    import yaml

    return yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True).rstrip("\n")


def hub_datasets(steps: Sequence[StepFacts]) -> list[str]:
    """Hub data sets that these steps read."""
    names: dict[str, None] = {}
    for step in steps:
        for text in _strings(step.settings):
            if match := re.match(r"hub:([\w.-]+/[\w.-]+)", text):
                names[match[1]] = None
    return list(names)


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [s for v in value.values() for s in _strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in _strings(v)]
    return [value] if isinstance(value, str) else []


def _teachers(facts: RunFacts) -> list[str]:
    """References of the models that wrote or judged data."""
    models = facts.models()
    uses: dict[str, None] = {}
    for step in facts.of("generate", "filter", "pairs"):
        for field, role in (("teacher", "teacher"), ("judge", "judge"), ("by", "judge")):
            if name := step.settings.get(field):
                uses[f"{role} of {step.name}: {reference_of(models[name]) if name in models else name}"] = None
    return list(uses)


def versions(step: StepFacts) -> str:
    """The packages with which a step ran."""
    environment = step.environment
    packages = ", ".join(f"{k} {v}" for k, v in (environment.get("packages") or {}).items())
    commit = f" ({environment['commit']})" if environment.get("commit") else ""
    return (
        f"openbezoar {step.manifest.get('recipe_version', environment.get('openbezoar', NOTHING))}{commit}, Python"
        f" {environment.get('python', NOTHING)}, {packages}"
    )


def limitations(facts: RunFacts, files: ModelFiles) -> list[str]:
    """What was measured against this model; what was not measured is said too."""
    sentences = []
    name = files.name
    for result in facts.results(Scores):
        for g in (g for g in result.grades() if g.checkpoint == name):
            shares = (
                ("Answers that the model ended itself, the rest was cut off at the token limit", g.ended),
                ("Answers that repeat themselves", g.degenerate),
                ("Empty answers", g.empty),
            )
            where = f"({result.step.name})"
            sentences += [f"{what}: {score.text()} answers {where}." for what, score in shares if score is not None]
            if g.unscored:
                sentences.append(
                    f"{g.unscored} turns have no rating, because the judge's reply could not be read {where}."
                )
    for d in differences(facts):
        if d.after == name and d.worse and d.outside_noise:
            sentences.append(f"Worse than {d.before}, outside noise: {d}.")
    if not files.end:
        sentences.append(
            "No end of an answer was trained: the model does not stop by itself. Stop at the texts named above, and set"
            " max_new_tokens."
        )
    if not sentences:
        sentences.append("No evaluation of this checkpoint is part of the run; nothing is known of its faults.")
    sentences.append(
        "Not measured: safety, bias, truthfulness beyond the tasks in the table, and languages other than those of the"
        " data."
    )
    return sentences


@dataclass(frozen=True)
class DataFile:
    """One released data set."""

    name: str
    files: Mapping[DataForm, str]  # by form, the default one first
    step: str
    rows: int
    sha256: str  # of the default one
    columns: tuple[str, ...]  # its columns

    @property
    def file(self) -> str:
        """The default form's."""
        return next(iter(self.files.values()))

    def configs(self) -> list[dict[str, Any]]:
        """The hub's configurations: the default form, then the others by their names."""
        names = ["default", *list(self.files)[1:]]
        return [
            {"config_name": name, "data_files": [{"split": "train", "path": file}]}
            for name, file in zip(names, self.files.values(), strict=True)
        ]


def data_card(facts: RunFacts, title: str, data: DataFile, licence: Licence, sources: Sequence[Source]) -> str:
    """README.md of one released data set. The hub's fields: https://huggingface.co/docs/hub/datasets-cards."""
    steps = facts.lineage([data.step])
    metadata: dict[str, Any] = {
        "pretty_name": f"{title}: {data.name}",
        **_licence_metadata(licence),
        **_language_metadata(steps),
        "task_categories": ["text-generation"],
        "size_categories": [_size_category(data.rows)],
        "tags": ["openbezoar", "synthetic", "instruction-tuning"],
        "configs": data.configs(),
    }
    own = facts.part([data.step])
    return template(
        "data_card.md.j2",
        metadata=yaml_text(metadata),
        title=title,
        run=facts.run.name,
        seed=facts.seed,
        data=data,
        columns=", ".join(data.columns),
        teachers=_teachers(own),
        funnels=funnel_table(funnels(own)),
        filters=[line for result in own.results(RowNumbers) for line in result.told(own)],
        reviewed=any(result.by_hand() for result in own.results(RowNumbers)),
        licence=licence,
        use=for_use(sources),
        sources=sources,
        verdicts=any(step.verb == "filter" for step in steps),
    )


def _size_category(rows: int) -> str:
    """The hub's name for a number of rows."""
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
    return next((name for place, name in enumerate(names) if rows < 1000 * 10**place), "n>1T")


def check_card(text: str, where: str, kind: str) -> None:
    """Hold a card's metadata against the hub's client, without the network. Raises DataError with what is wrong.

    An upload also asks the hub itself (``publishing.upload``).
    """
    try:
        from huggingface_hub import DatasetCard, ModelCard
    except ImportError:
        return
    try:
        data: dict[str, Any] = (ModelCard if kind == "model" else DatasetCard)(
            text, ignore_metadata_errors=False
        ).data.to_dict()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{where}: the hub's client cannot read the card's metadata ({' '.join(str(error).split())[:200]}); please"
            " report this"
        ) from None
    wrong = [
        key
        for key in ("license", "tags", *(("library_name",) if kind == "model" else ("configs",)))
        if not data.get(key)
    ]
    if wrong:
        raise DataError(f"{where}: the card's metadata lacks {', '.join(wrong)}; please report this")
