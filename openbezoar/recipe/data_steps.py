"""Settings of the steps that make rows: generate and filter."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from openbezoar.recipe.blocks import DataRef, Step, Strict
from openbezoar.recipe.fields import (
    MAX_REFUSED,
    JudgeTemperature,
    JudgeTopP,
    MaxRefused,
    Prompts,
    RatingSettings,
    StepBudget,
)
from openbezoar.recipe.refs import NotInKey, Ref


class Generate(Step):
    """Make synthetic instruction data by one scheme. Further keys are the scheme's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    generate: str = Field(description="The scheme; the options of each are below.")
    teacher: Annotated[str, Ref("model", role="teacher")] = Field(description="Name of a model.")
    seeds: Annotated[DataRef | None, Ref("data", role="seeds")] = Field(
        None,
        description=(
            "Seed rows: instructions (lamini, evol_instruct) or tasks with a 'submix' (orca); a scheme that needs none"
            " (magpie) only avoids repeating them."
        ),
    )
    rows: int = Field(gt=0, description="How many rows to make.")
    max_new_tokens: int = Field(512, gt=0, description="Most tokens of an answer.")
    temperature: float = Field(0.8, ge=0, description="0.8 is the co-author's setting for Evol-Instruct.")
    top_p: float = Field(0.95, gt=0, le=1)
    batch: int = Field(
        32, ge=1, description="Prompts a batch; batches are fixed by row number, so a rerun gives the same rows."
    )
    samples: Annotated[int, NotInKey("steps that asked once", at=1)] = Field(
        1, ge=1, description="Answers to each instruction, of which the best one is kept (rejection sampling)."
    )
    pick: Annotated[Literal["best"], NotInKey("steps that asked once", at="best")] = Field(
        "best", description="Which of several answers is kept: the one with the highest score."
    )
    by: Annotated[
        str | None,
        Ref("model", also="reward model", role="judge"),
        NotInKey("steps that scored no answer", at=None),
    ] = Field(
        None,
        description=(
            "What scores several answers: a reward model, or a model that rates as a filter's judge does. Their scores"
            " stand in the row."
        ),
    )
    rating: Annotated[RatingSettings, NotInKey("steps that scored no answer", at=RatingSettings())] = Field(
        RatingSettings(), description="How a judge rates; a reward model needs none of it."
    )
    prompts: Annotated[dict[str, str], Ref("file")] = Field(
        default={}, description="Files with texts to use instead of the scheme's own, by prompt name."
    )
    budget: StepBudget = None
    max_refused: MaxRefused = MAX_REFUSED

    @property
    def options(self) -> dict[str, Any]:
        """The scheme's own options, unchecked."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _several_are_scored(self) -> Self:
        if self.samples > 1 and self.by is None:
            raise ValueError("by: name a reward model or a judge that says which of several answers is the best")
        if self.by is not None and self.samples == 1:
            raise ValueError("samples: of one answer there is none to be picked; ask for 2 or more, or leave 'by' out")
        return self


CleanerName = Literal[
    "line_ends",
    "control_characters",
    "unicode_form",
    "thoughts",
    "run_on",
    "markers",
    "quotes",
    "whitespace",
    "unclosed_fence",
]


class Rules(Strict):
    """Cheap rules before the judge; each drop is counted under the rule's name."""

    language: Literal["en", "any"] = Field(
        "en",
        description=(
            "'en': drop rows that are not English, unless the instruction speaks of a language, as translations do."
        ),
    )
    min_instruction_words: int = Field(
        2, ge=0, description="In scripts without spaces characters count as parts of words; 'openbezoar docs cleaning'."
    )
    max_instruction_words: int = Field(600, ge=1)
    min_response_words: int = Field(2, ge=0)
    max_response_words: int = Field(1200, ge=1)
    drop_unfinished: bool = Field(True, description="Drop answers that were cut off by the token limit.")
    drop_refusals: bool = Field(True, description="Drop short apologies ('sorry' in under 80 words).")
    drop_echoes: bool = Field(True, description="Drop answers that repeat their instruction.")
    drop_repetition: float = Field(
        0.5,
        ge=0,
        le=1,
        description=(
            "Drop answers whose share of repeated 4-grams is above this, or whose end repeats one stretch again and"
            " again; 1: none."
        ),
    )
    decontaminate: bool = Field(
        False,
        description=(
            "Drop rows that share a run of words with the local rows of the recipe's evaluate and mt_bench steps. "
            "The filter then depends on those rows, and runs again when they change."
        ),
    )
    decontaminate_words: int = Field(
        13, ge=4, description="Length of that run. GPT-3, appendix C: 13; shorter texts count whole from 8 words on."
    )
    drop_duplicates: bool = Field(
        True, description="Drop rows whose instruction equals an earlier one, case and spaces aside."
    )
    near_duplicates: float | None = Field(
        0.7,
        gt=0,
        le=1,
        description=(
            "Drop rows whose instruction is at least this like an earlier one (Jaccard index of word 3-grams); null:"
            " none."
        ),
    )


def _share_or_number(value: int | float | None) -> int | float | None:
    """A part of rows: 1.0 is all of them, and a whole number below 2 was hardly meant."""
    if value is not None and not (value >= 2 if isinstance(value, int) else 0 < value <= 1):
        raise ValueError("expected a share above 0 and at most 1.0, or a number of rows, 2 or more")
    return value


class Ifd(Strict):
    """Instruction-following difficulty (arXiv 2402.00530): the perplexity of an answer given its
    instruction, divided by that of the answer alone.
    """

    below: float = Field(
        1.0,
        gt=0,
        description="Drop rows from this ratio on: at 1 the instruction makes its answer no likelier. The paper's.",
    )
    keep: int | float | None = Field(
        None,
        description=(
            "Of the rows below, keep those with the highest ratio: a share of all rows that come this far (0.1; 1.0:"
            " all), or a number of rows (1000). null: all. The paper's: 0.05, 0.1 and 0.15."
        ),
    )

    @field_validator("keep")
    @classmethod
    def _is_a_share_or_a_number(cls, value: int | float | None) -> int | float | None:
        return _share_or_number(value)


class PerplexityBand(Strict):
    """Which perplexities of an answer, given what stands before it, are kept, ends included."""

    between: tuple[float, float] | None = Field(
        None, description="As quantiles of the rows that come this far, such as [0.05, 0.95]."
    )
    bounds: tuple[float | None, float | None] | None = Field(
        None, description="As perplexities, such as [1.5, 200]; null: no such bound."
    )

    @model_validator(mode="after")
    def _is_one_band(self) -> Self:
        if (self.between is None) == (self.bounds is None):
            raise ValueError("expected one of between (quantiles) and bounds (perplexities)")
        if self.between is not None and not 0 <= self.between[0] < self.between[1] <= 1:
            raise ValueError("between: expected two quantiles from 0 to 1, the lower one first")
        low, high = self.bounds or (None, None)
        if self.bounds is not None and (low is None and high is None):
            raise ValueError("bounds: expected a lower bound, an upper one, or both")
        if low is not None and high is not None and not low < high:
            raise ValueError("bounds: expected two perplexities, the lower one first")
        return self


class Likelihood(Strict):
    """Rows by how likely a model finds their answers. Without 'ifd' and 'perplexity' nothing is
    dropped, and the scores are there to look at.
    """

    model: Annotated[str, Ref("model")] = Field(description="Name of a local model, or of a step that made one.")
    ifd: Ifd | None = Field(None, description="Instruction-following difficulty.")
    perplexity: PerplexityBand | None = Field(None, description="A band of perplexities; goes before 'ifd'.")
    max_length: int | None = Field(
        None,
        ge=8,
        description="Tokens of prompt and answer; longer ones are scored as far as they fit. null: the model's window.",
    )
    tokens: int = Field(2048, ge=1, description="Most tokens of a pass; of what is longer, one row.")


class ByReward(Strict):
    """Rows by the reward of their answers. Without 'at_least' and 'best' nothing is dropped, and the
    rewards are there to look at.
    """

    model: Annotated[str, Ref("model", to="reward model", role="judge")] = Field(
        description="Name of a reward model, or of a step that trained one."
    )
    at_least: float | None = Field(
        None, description="Drop rows below this reward, whose scale is the model's own: look at the quantiles first."
    )
    best: int | float | None = Field(
        None,
        description=(
            "Of the rows left keep those with the highest reward: a share of all rows that come this far (0.5), or a"
            " number of rows (1000)."
        ),
    )

    @field_validator("best")
    @classmethod
    def _is_a_share_or_a_number(cls, value: int | float | None) -> int | float | None:
        return _share_or_number(value)


class Filter(Step):
    """Keep the good rows: texts are cleaned, rules drop, a judge gives status, rating and reason,
    and 'openbezoar review' has the last word.
    """

    filter: Annotated[DataRef, Ref("data", role="rows")]
    clean: list[CleanerName] = Field(
        list(get_args(CleanerName)),
        description=(
            "What is put right in a row's texts before the rules; counted under these names. A recipe that keeps"
            " thoughts leaves 'thoughts' out."
        ),
    )
    judge: Annotated[str | None, Ref("model", role="judge")] = Field(
        None, description="Name of a model; without one only the rules decide."
    )
    mode: Literal["text", "probability"] = Field(
        "text",
        description=(
            "'text': the judge writes status, rating and reason; 'probability': expected rating from the probabilities"
            " of the rating tokens (local judges, and servers that tell them)."
        ),
    )
    min_rating: float = Field(5.0, ge=1, le=10)
    retries: int = Field(2, ge=0, description="Further asks when a reply cannot be parsed.")
    max_new_tokens: int = Field(160, gt=0)
    judge_temperature: JudgeTemperature = 0.0
    judge_top_p: JudgeTopP = 1.0
    batch: int = Field(32, ge=1)
    rules: Rules = Rules()
    likelihood: Annotated[Likelihood | None, NotInKey("filters that asked no model's likelihood", at=None)] = Field(
        None, description="Drop rows by how likely a model finds their answers, after the rules and before the judge."
    )
    reward: Annotated[ByReward | None, NotInKey("filters that asked no reward model", at=None)] = Field(
        None, description="Drop rows by a reward model, after the rules and 'likelihood' and before the judge."
    )
    prompts: Prompts = {}
    budget: StepBudget = None
    max_refused: MaxRefused = MAX_REFUSED

    @property
    def rating(self) -> RatingSettings:
        """How its judge rates."""
        return RatingSettings(
            mode=self.mode,
            retries=self.retries,
            max_new_tokens=self.max_new_tokens,
            temperature=self.judge_temperature,
            top_p=self.judge_top_p,
        )
