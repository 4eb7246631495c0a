"""Settings of the steps that tell about a run: report and release."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from openbezoar.recipe.blocks import Step
from openbezoar.recipe.refs import Ref


class Report(Step):
    """One page about the run."""

    report: Annotated[Literal["all"] | list[str], Ref("step", every="all")] = "all"


GgufForm = Literal["f16", "q8_0"]


class Release(Step):
    """Merged weights, tokenizer with template, GGUF, data sets and cards, ready to publish."""

    release: Annotated[list[str], Ref("step", to="merged model")] = Field(
        min_length=1, description="Names of merge steps."
    )
    gguf: list[GgufForm] = Field(
        ["q8_0"],
        description=(
            "Forms of GGUF to make of each model, for llama.cpp and Ollama: f16 is as large as the safetensors, q8_0"
            " about half; [] makes none."
        ),
    )
    title: str | None = Field(None, description="Family name on the cards; default: the recipe's name.")
