"""The recipe's schema: every knob, documented where it is declared.

A recipe is YAML. ``models`` names what answers and what is trained; ``steps`` is a mapping
from a step's name to what it does. A step is recognised by its verb, the one key that it has
of those in the table of verbs (``verbs.py``). Inputs are the names of other steps, or data files
(relative to the recipe's own file).

Sources of defaults are given as [QLoRA] arXiv 2305.14314 and its scripts, [DPO] arXiv
2305.18290 and its reference code, [KTO] arXiv 2402.01306, [card] the released OpenBezoar cards; a
default without a source is this project's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, SerializeAsAny, Tag, create_model, field_validator, model_validator

from openbezoar.recipe.blocks import Budget, LocalModel, PromptSpec, RewardModel, ServerModel, Step, Strict
from openbezoar.recipe.verbs import VERBS, verb_of


def _model_entry(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


def _where_it_runs(value: Any) -> str:
    """A model with a server is asked for over HTTP, any other runs in this process; one with 'reward' gives numbers."""
    for key, kind in (("server", ServerModel), ("reward", RewardModel)):
        if key in value if isinstance(value, Mapping) else isinstance(value, kind):
            return f"({kind.__name__})"
    return "(LocalModel)"


Model = Annotated[
    Annotated[ServerModel, Tag("(ServerModel)")]
    | Annotated[RewardModel, Tag("(RewardModel)")]
    | Annotated[LocalModel, Tag("(LocalModel)")],
    Discriminator(_where_it_runs),
]


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
    track: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = Field(
        [],
        description=(
            "Trackers that get what metrics.jsonl and heldout.jsonl have, and the scores of steps that measure: files"
            " in the run's folder 'track', nothing over a network ('openbezoar docs how-to/follow-a-run'). Part of no"
            " key."
        ),
    )
    models: dict[str, Model]
    defaults: dict[str, dict[str, Any]] = Field(
        default={}, description="Settings by verb, for all steps of that verb that do not set them."
    )
    steps: dict[str, SerializeAsAny[Step]] = Field(
        description="By name what it does: one verb, and that verb's settings, which are told below."
    )

    @field_validator("models", mode="before")
    @classmethod
    def _short_models(cls, value: Any) -> Any:
        return {k: _model_entry(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    @field_validator("steps", mode="before")
    @classmethod
    def _by_verb(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        rows = {name: VERBS.get(verb_of(step)) if isinstance(step, Mapping) else None for name, step in value.items()}
        return {name: row.settings.model_validate(value[name]) if row else value[name] for name, row in rows.items()}

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        if both := set(self.models) & set(self.steps):
            raise ValueError(f"the name '{min(both)}' is both a model and a step; rename one")
        return self


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors; with the settings of all verbs in the table."""
    steps: Any = Union[tuple(row.settings for row in VERBS.values())]  # noqa: UP007  not known before the table is
    whole = create_model(
        Recipe.__name__, __base__=Recipe, __doc__=Recipe.__doc__, steps=(dict[str, steps], Recipe.model_fields["steps"])
    )
    schema = whole.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    models = schema["properties"]["models"]["additionalProperties"]
    models["oneOf"].append({"type": "string"})
    for verb, row in VERBS.items():  # 'defaults' may give what a step leaves out, but never its verb
        schema["$defs"][row.settings.__name__]["required"] = [verb]
    return schema
