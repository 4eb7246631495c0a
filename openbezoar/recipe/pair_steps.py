"""Settings of the step that makes preference pairs: pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from openbezoar.recipe.blocks import DataRef, Step
from openbezoar.recipe.fields import MAX_REFUSED, MaxRefused, Prompts, RatingSettings, StepBudget
from openbezoar.recipe.refs import NotInKey, Ref


class Pairs(Step):
    """Make preference pairs from prompts: answers of models, of the rows, or of both, of which a reward model or a
    judge says the better ones (or who wrote them: 'pick: delta').
    """

    pairs: Annotated[DataRef, Ref("data", role="rows")] = Field(description="Rows with a prompt, of any form.")
    from_: Annotated[str | list[str], Ref("model", role="teacher")] = Field(
        [],
        alias="from",
        description=(
            "Whose answers are paired: a model or a step that made one, or several. The first one's are its own, all"
            " others are foreign."
        ),
    )
    row_answers: bool = Field(
        False,
        description=(
            "The answers that the rows bring take part: one, or of a pair both, whichever is called the chosen one."
        ),
    )
    foreign: float = Field(
        1.0,
        ge=0,
        le=1,
        description=(
            "Share of the prompts, drawn by seed, in which foreign answers (of other models than the first, of the"
            " rows) take part beside the own ones; in the others a pair is of own answers alone."
        ),
    )
    samples: int = Field(
        8, ge=1, description="Answers of each model to a prompt. Up to 5, the answer at 2 sigma is the worst."
    )
    temperature: float = Field(0.8, ge=0, description="As SimPO (arXiv 2405.14734) draws its own answers.")
    top_p: float = Field(0.95, gt=0, le=1, description="As SimPO's code.")
    max_new_tokens: int = Field(512, gt=0, description="Most tokens of an answer.")
    by: Annotated[str | None, Ref("model", also="reward model", role="judge")] = Field(
        None, description="What scores the answers: a reward model, or a model that rates as a filter's judge does."
    )
    rating: RatingSettings = Field(RatingSettings(), description="How a judge rates; a reward model needs none of it.")
    pick: Literal["best_2sigma", "best_worst", "delta"] = Field(
        "best_2sigma",
        description=(
            "Which two answers make the pair. 'best_2sigma': the best, and the one whose score is nearest to the mean"
            " less two standard deviations (arXiv 2502.16825); 'best_worst': the best and the worst; 'delta': one of"
            " 'strong' and one of 'weak', and nobody is asked which is better (arXiv 2507.06187)."
        ),
    )
    strong: Annotated[str | None, Ref("model", role="teacher")] = Field(
        None, description="Of 'pick: delta': the model whose answer is chosen."
    )
    weak: Annotated[str | None, Ref("model", role="teacher")] = Field(
        None, description="Of 'pick: delta': the model whose answer is rejected."
    )
    min_margin: float = Field(
        0.0, ge=0, description="Least difference of the two scores. A pair of equal scores is always dropped."
    )
    length_bias: Annotated[Literal["keep", "remove"], NotInKey("steps that scored as they were told", at="keep")] = (
        Field(
            "keep",
            description=(
                "Whether length counts in the scores by which two answers are picked. 'remove': what the scores pay for"
                " it, measured by regression over the step's answers within their prompts, is taken off."
            ),
        )
    )
    max_length_ratio: Annotated[float | None, NotInKey("steps that paired any lengths", at=None)] = Field(
        None,
        ge=1,
        allow_inf_nan=False,
        description=(
            "Of a pair's two answers the longer one has at most so many times the characters of the other. Prompts"
            " without two such answers give no pair."
        ),
    )
    unfinished: Literal["drop", "keep", "reject"] = Field(
        "drop",
        description=(
            "What becomes of answers that the token limit cut off. 'reject': such an answer may be the rejected one,"
            " and is then learnt without an end; it is never the chosen one."
        ),
    )
    batch: int = Field(32, ge=1, description="Answers a batch, fixed by place, so that a rerun gives the same rows.")
    draws_as: Annotated[str | None, NotInKey("the step's own name", at=None)] = Field(
        None,
        description=(
            "The name by which answers are drawn; default: the step's. Steps that have one name, the same prompts,"
            " model and sampling pick among the same answers, which are asked for once."
        ),
    )
    prompts: Prompts = {}
    budget: StepBudget = None
    max_refused: MaxRefused = MAX_REFUSED

    @property
    def models(self) -> tuple[str, ...]:
        """Who is asked; the first one's answers are its own."""
        if self.strong is not None and self.weak is not None:
            return (self.strong, self.weak)
        return (self.from_,) if isinstance(self.from_, str) else tuple(self.from_)

    @property
    def answers(self) -> int:
        """Answers of each model to a prompt."""
        return 1 if self.pick == "delta" else self.samples

    @model_validator(mode="after")
    def _is_a_way_to_pair(self) -> Self:
        if self.pick == "delta":
            self._check_delta()
        elif self.strong is not None or self.weak is not None:
            raise ValueError("strong and weak are of 'pick: delta'; set it, or name the models in 'from'")
        elif self.by is None:
            raise ValueError("by: name a reward model or a judge that scores the answers, or set 'pick: delta'")
        else:
            self._check_scored()
        return self

    def _check_scored(self) -> None:
        foreign = self.row_answers or len(self.models) > 1
        if not self.models and not self.row_answers:
            raise ValueError("from: name whose answers are paired, or set 'row_answers: true' for those of the rows")
        if len(set(self.models)) < len(self.models):
            raise ValueError("from: a model stands there twice; for more of its answers raise 'samples'")
        if self.foreign < 1 and not (self.models and foreign):
            raise ValueError("foreign: there are none to be mixed; name own and foreign answers, or leave it out")
        if self.models and self.samples == 1 and (self.foreign < 1 or not foreign):
            raise ValueError("samples: a pair of own answers takes two; ask for more")

    def _check_delta(self) -> None:
        if self.strong is None or self.weak is None:
            raise ValueError("pick: delta takes its answers from 'strong' and 'weak'; name both")
        if self.strong == self.weak:
            raise ValueError("weak: the same model as 'strong'; name a weaker one")
        for name in (
            "from_",
            "by",
            "rating",
            "row_answers",
            "foreign",
            "samples",
            "min_margin",
            "length_bias",
            "max_length_ratio",
        ):
            if name in self.model_fields_set:
                raise ValueError(f"{name.rstrip('_')}: 'pick: delta' has no use for it; leave it out")

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Under the keys of a recipe."""
        fields: dict[str, Any] = write(self)
        return {"from" if name == "from_" else name: value for name, value in fields.items()}
