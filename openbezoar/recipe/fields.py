"""Fields that the settings of several verbs share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from openbezoar.recipe.blocks import Budget, Strict
from openbezoar.recipe.refs import NotInKey, Ref

MAX_REFUSED = 0.1

JudgeTemperature = Annotated[
    float,
    NotInKey("steps that had none sampled at 0", at=0.0),
    Field(
        ge=0,
        description=(
            "Of the judge's replies, by text; 0 is greedy. Some judges take 1 only; they are asked without it if it is"
            " another."
        ),
    ),
]

JudgeTopP = Annotated[
    float,
    NotInKey("steps that had none sampled from all tokens", at=1.0),
    Field(gt=0, le=1, description="Of the judge's replies, where their temperature is above 0."),
]

Prompts = Annotated[
    dict[str, str],
    Ref("file"),
    Field(description="Files with texts to use instead of the project's own, by prompt name."),
]


class RatingSettings(Strict):
    """How a judge that is a language model rates single answers, as ``filter``'s does."""

    mode: Literal["text", "probability"] = Field(
        "text",
        description=(
            "'text': the judge writes status, rating and reason; 'probability': expected rating from the probabilities"
            " of the rating tokens (local judges, and servers that tell them)."
        ),
    )
    retries: int = Field(2, ge=0, description="Further asks when a reply cannot be parsed.")
    max_new_tokens: int = Field(160, gt=0)
    temperature: float = Field(0.0, ge=0, description="Of the judge's replies, by text; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Of the judge's replies, where their temperature is above 0.")


StepBudget = Annotated[
    Budget | None,
    NotInKey("where a step stops"),
    Field(description="What this step may spend on models."),
]

MaxRefused = Annotated[
    float,
    NotInKey("where a step stops"),
    Field(
        ge=0,
        le=1,
        description=(
            "Share of a model's calls in this step that may be refused one by one (a prompt over the window, refused"
            " content); more stop the step, once there are more than 10. 0: none may. This project's: a judge or"
            " teacher that cannot answer one row in ten is the wrong one for these rows."
        ),
    ),
]
