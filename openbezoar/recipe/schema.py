"""The recipe's schema: every knob, documented where it is declared.

A recipe is YAML. ``models`` names what answers and what is trained; ``steps`` is a mapping
from a step's name to what it does. A step is recognised by its verb, the one key among
``generate filter sft merge dpo evaluate agreement mt_bench failures report release`` that it has. Inputs are
the names of other steps, or data files (relative to the recipe's own file).

Sources of defaults are given as [QLoRA] arXiv 2305.14314 and its scripts, [DPO] arXiv
2305.18290 and its reference code, [card] the released OpenBezoar cards; a default without
a source is this project's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from openbezoar.recipe.blocks import Budget, LocalModel, PromptSpec, ServerModel, Strict, data_specs
from openbezoar.recipe.data_steps import Filter, Generate
from openbezoar.recipe.measure_steps import Agreement, Evaluate, Failures, MtBench
from openbezoar.recipe.tell_steps import Release, Report
from openbezoar.recipe.train_steps import Dpo, Merge, Sft


def _model_entry(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


VERBS: dict[str, type[BaseModel]] = {
    "generate": Generate,
    "filter": Filter,
    "sft": Sft,
    "merge": Merge,
    "dpo": Dpo,
    "evaluate": Evaluate,
    "agreement": Agreement,
    "mt_bench": MtBench,
    "failures": Failures,
    "report": Report,
    "release": Release,
}
Step = Generate | Filter | Sft | Merge | Dpo | Evaluate | Agreement | MtBench | Failures | Report | Release


class Recipe(Strict):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The run folder's name.")
    description: str = ""
    data: str | None = Field(
        None, description="A folder of data; paths that begin with $data/ lie in it. Relative to the recipe's own file."
    )
    seed: int = Field(0, ge=0, description="All randomness comes from it and the step's name.")
    policy: Literal["any", "open"] = Field(
        "any",
        description=(
            "'open': teachers, judges, seeds and training rows must have an open licence that is stated and is not"
            " non-commercial."
        ),
    )
    prompt: PromptSpec = PromptSpec()
    budget: Budget | None = Field(
        None, description="What all steps together may spend on models, over all tries of the run."
    )
    models: dict[str, Annotated[ServerModel | LocalModel, Field(union_mode="left_to_right")]]
    defaults: dict[str, dict[str, Any]] = Field(
        default={}, description="Settings by verb, for all steps of that verb that do not set them."
    )
    steps: dict[str, Step]

    @field_validator("models", mode="before")
    @classmethod
    def _short_models(cls, value: Any) -> Any:
        return {k: _model_entry(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        if both := set(self.models) & set(self.steps):
            raise ValueError(f"the name '{min(both)}' is both a model and a step; rename one")
        return self


def verb_of(step: BaseModel | Mapping[str, Any]) -> str:
    """The verb of a step."""
    if isinstance(step, BaseModel):
        return next(verb for verb, kind in VERBS.items() if type(step) is kind)
    found = [verb for verb in VERBS if verb in step]
    # 'model: x' steps may carry only one verb; two verbs are a mistake the caller reports.
    return found[0] if len(found) == 1 else ""


def references(step: Step) -> Iterator[tuple[str, str, str]]:
    """What a step names: (key, kind, name) with kind 'model' (a model or a step), 'data' or 'step'."""
    for key, value in (
        ("teacher", getattr(step, "teacher", None)),
        ("judge", getattr(step, "judge", None)),
        ("model", getattr(step, "model", None)),
    ):
        if isinstance(value, str):
            yield key, "model", value
    for key in ("merge", "agreement"):
        if isinstance(name := getattr(step, key, None), str):
            yield key, "model", name
    if isinstance(step, MtBench) and step.judge_check is not None:
        yield "judge_check", "step", step.judge_check
    for key in ("evaluate", "mt_bench", "failures", "release"):
        for name in getattr(step, key, None) or []:
            yield key, "model", name
    for key in (
        "filter",
        "sft",
        "dpo",
        "seeds",
        "heldout",
        "drift",
        "questions",
        "answers",
        "judge_prompts",
        "instructions",
        "harmless",
        "grounded",
    ):
        if (ref := getattr(step, key, None)) is not None:
            for spec in data_specs(ref):
                yield key, "data", spec.data
    if isinstance(step, Agreement):
        yield from (("pairs", "data", spec.data) for spec in data_specs(step.pairs))
        return
    for key in ("losses", "pairs"):
        for name, ref in getattr(step, key, {}).items():
            for spec in data_specs(ref):
                yield f"{key}.{name}", "data", spec.data


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    models = schema["properties"]["models"]["additionalProperties"]
    models.setdefault("anyOf", []).append({"type": "string"})
    for verb, kind in VERBS.items():  # 'defaults' may give what a step leaves out, but never its verb
        schema["$defs"][kind.__name__]["required"] = [verb]
    return schema
