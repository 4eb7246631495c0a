"""Settings of the steps that tell about a run: report and release."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from openbezoar.recipe.blocks import Step
from openbezoar.recipe.refs import NotInKey, Ref


class Report(Step):
    """One page about the run."""

    report: Annotated[Literal["all"] | list[str], Ref("step", every="all")] = "all"


DataForm = Literal["plain", "messages"]
GgufForm = Literal["f16", "q8_0"]


class Release(Step):
    """Merged weights, tokenizer with template, GGUF, data sets and cards, ready to publish."""

    release: Annotated[list[str], Ref("step", to="merged model")] = Field(
        min_length=1, description="Names of merge steps, and of steps that trained all weights."
    )
    gguf: list[GgufForm] = Field(
        ["q8_0"],
        description=(
            "Forms of GGUF to make of each model, for llama.cpp and Ollama: f16 is as large as the safetensors, q8_0"
            " about half; [] makes none."
        ),
    )
    forms: Annotated[list[DataForm], NotInKey("releases that had no other", at=["plain"])] = Field(
        ["plain"],
        min_length=1,
        description=(
            "Forms to write each data set in, a Parquet file and a configuration each, the first one the default: plain"
            " has instruction, response and system; messages has them as a list of messages, for other trainers."
        ),
    )
    title: str | None = Field(None, description="Family name on the cards; default: the recipe's name.")
