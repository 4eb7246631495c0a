"""Settings of the steps that measure: evaluate, mt_bench, agreement and failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Tag, model_validator

from openbezoar.recipe.blocks import DataRef, Name, Step, Strict, name_or
from openbezoar.recipe.fields import MAX_REFUSED, JudgeTemperature, JudgeTopP, MaxRefused, Prompts, StepBudget
from openbezoar.recipe.protocols import GRADINGS, compares, described
from openbezoar.recipe.refs import NotInKey, Ref

TRAINED = "trained"
"""The system message that a checkpoint was trained under, as ``failures`` names it."""

if TYPE_CHECKING:
    GradingName = str
else:
    GradingName = Literal[tuple(GRADINGS)]


class TaskSpec(Strict):
    """A benchmark whose rows or shots differ from the usual."""

    task: str = Field(description="An lm-eval task: its prompts and metrics are used.")
    name: str | None = Field(
        None, description="The name to report under; give one when the rows are not the task's own."
    )
    file: Annotated[str | None, Ref("file")] = Field(
        None, description="Rows in the plain schema ('openbezoar docs data'); default: DATA/TASK.jsonl.gz."
    )
    fewshot: int | None = Field(None, ge=0, description="Default: the step's 'fewshot'.")
    limit: int | None = Field(None, ge=1)


Task = Annotated[Name | Annotated[TaskSpec, Tag("(TaskSpec)")], name_or("(TaskSpec)")]


class Gate(Strict):
    """What must not get worse: the run fails, or warns, where it is sure that it did."""

    measure: str = Field(description="A task, loss or set of pairs of the step, by the name it is reported under.")
    fall: float = Field(
        ge=0, description="By how much it may get worse: points (hundredths) of a task or pairs, nats of a loss."
    )
    before: str | None = Field(None, description="The checkpoint it is compared with; default: the first of the list.")
    after: str | None = Field(None, description="The checkpoint it is asked of; default: the last of the list.")
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description=(
            "Of the paired interval. The gate is broken if all of the interval is beyond 'fall', and open if some is."
        ),
    )
    broken: Literal["fail", "warn"] = Field("fail", description="What a broken gate does; an open one warns.")


class Wins(Strict):
    """Answers of every checkpoint to the same prompts, compared in pairs by a reward model or a judge: how
    often each one wins, and whether answers stop and loop.
    """

    prompts: Annotated[DataRef, Ref("data", role="benchmark", most="limit")] = Field(
        description="Rows whose prompts are answered; kept out of training rows by 'decontaminate'."
    )
    by: Annotated[str, Ref("model", also="reward model", role="judge")] = Field(
        description="The reward model or judge that compares: name of a model or step. A judge sees both orders."
    )
    against: str | list[str] = Field(
        min_length=1, description="A checkpoint of the list, or several: every other one is compared with it."
    )
    limit: int = Field(
        300,
        ge=1,
        description=(
            "Prompts, the first ones. 300 tell a win rate of 0.58 from 0.5 in a single comparison (80 % of the time)."
        ),
    )
    max_new_tokens: int = Field(256, gt=0, description="Most new tokens of an answer.")
    temperature: float = Field(0.0, ge=0, description="Of the answers; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Of the answers, where their temperature is above 0.")
    batch: int = Field(16, ge=1, description="Answers at a time.")
    mode: Literal["text", "probability"] = Field(
        "text", description="Of a judge that is no reward model: as in mt_bench."
    )
    judge_max_new_tokens: int = Field(512, gt=0, description="Of a judge that writes.")
    judge_check: Annotated[str | None, Ref("step", to="judge check")] = Field(
        None, description="An agreement step that measured how far 'by' agrees with people; told beside the win rates."
    )

    @property
    def opponents(self) -> list[str]:
        """The checkpoints that every other one is compared with."""
        return [self.against] if isinstance(self.against, str) else list(dict.fromkeys(self.against))


class Evaluate(Step):
    """LM-Eval tasks, held-out losses, preference accuracies and win rates of several checkpoints."""

    evaluate: Annotated[list[str], Ref("model")] = Field(
        min_length=1, description="Names of models and steps, in the order of the table."
    )
    tasks: list[Task] = Field(default=[], description="LM-Eval tasks, by name or with rows and shots of their own.")
    data: Annotated[str | None, Ref("folder")] = Field(None, description="Folder of local task rows; default: the hub.")
    fewshot: int | None = Field(None, ge=0, description="Default: 0.")
    limit: int | None = Field(None, ge=1, description="Questions a task.")
    losses: Annotated[dict[str, DataRef], Ref("data", role="benchmark", most="loss_rows")] = Field(
        default={}, description="Held-out loss on these rows, by the name to report."
    )
    pairs: Annotated[dict[str, DataRef], Ref("data", role="benchmark", most="loss_rows")] = Field(
        default={}, description="Share of these pairs in which the chosen answer is the likelier one."
    )
    loss_rows: int = Field(64, ge=1, description="Rows a loss or pair set.")
    reference: str | None = Field(
        None,
        description=(
            "A checkpoint of the list, such as the one that DPO began with: on each pair set the others get implicit"
            " rewards and a KL divergence from it."
        ),
    )
    kl_rows: int = Field(
        16,
        ge=0,
        description="Prompts of each pair set that a checkpoint answers for its KL divergence from the reference.",
    )
    kl_tokens: int = Field(64, ge=1, description="Most new tokens of such an answer.")
    wins: Annotated[dict[str, Wins], NotInKey("steps that had none compared no answers", at={})] = Field(
        default={}, description="Win rates over prompts, by the name to report."
    )
    gate: Annotated[list[Gate], NotInKey("what is done about the result")] = Field(
        default=[], description="What must hold before the run goes on."
    )
    tokens: int = Field(2048, ge=64)

    @model_validator(mode="after")
    def _reference_is_scored(self) -> Evaluate:
        if self.reference is not None and self.reference not in self.evaluate:
            raise ValueError(f"reference: '{self.reference}' is not in the list that is evaluated; add it there")
        if self.reference is not None and not self.pairs:
            raise ValueError("reference: there is no pair set to see the checkpoints on; add 'pairs'")
        return self

    @model_validator(mode="after")
    def _opponents_answer(self) -> Evaluate:
        for name, wins in self.wins.items():
            for other in wins.opponents:
                if other not in self.evaluate:
                    raise ValueError(
                        f"wins.{name}.against: '{other}' is not in the list that is evaluated; add it there"
                    )
            if len(set(self.evaluate)) < 2:
                raise ValueError(f"wins.{name}: one checkpoint alone wins against nobody; evaluate another one too")
        return self


class MtBench(Step):
    """Two-turn answers, graded by a judge: each from 1 to 10, or every two against each other."""

    mt_bench: Annotated[list[str], Ref("model")] = Field(
        description="Names of models and steps; may be empty where 'answers' brings others."
    )
    questions: Annotated[DataRef, Ref("data", role="benchmark")]
    judge: Annotated[str, Ref("model", role="judge")]
    answers: Annotated[DataRef | None, Ref("data")] = Field(
        None,
        description=(
            "Published answers of other models to set beside: rows with question_id, model_id and turns ('openbezoar"
            " docs data')."
        ),
    )
    grading: GradingName = Field("single", description=described())
    against: str | None = Field(None, description="Compare every model with this one only; default: every two models.")
    mode: Literal["text", "probability"] = Field(
        "text",
        description=(
            "'text': the judge writes and is parsed; 'probability': ratings or verdicts are weighed (local judges)."
        ),
    )
    max_new_tokens: int = Field(1024, gt=0, description="FastChat: 1024.")
    judge_max_new_tokens: int = Field(512, gt=0)
    judge_temperature: JudgeTemperature = 0.0
    judge_top_p: JudgeTopP = 1.0
    judge_prompts: Annotated[DataRef | None, Ref("data")] = Field(
        None,
        description="Rows of FastChat's judge_prompts.jsonl, used word for word; default: the project's own texts.",
    )
    judge_check: Annotated[str | None, Ref("step", to="judge check")] = Field(
        None, description="An agreement step that the judge must have passed before it grades."
    )
    batch: int = Field(16, ge=1)
    prompts: Prompts = {}
    budget: StepBudget = None
    max_refused: MaxRefused = MAX_REFUSED

    @model_validator(mode="after")
    def _something_to_grade(self) -> MtBench:
        if not self.mt_bench and self.answers is None:
            raise ValueError("mt_bench: no model to grade; name one, or 'answers' of others")
        if self.judge_prompts is not None and self.prompts:
            raise ValueError("prompts: judge_prompts brings all texts already; remove one of the two")
        if self.against is not None and not compares(self.grading):
            raise ValueError("against: graded one at a time nothing is compared; set grading: pairwise")
        return self


class Agreement(Step):
    """A judge on pairs of answers that people have compared, in both orders, so that it earns its
    number before it grades.
    """

    agreement: Annotated[str, Ref("model", also="reward model")] = Field(
        description="The judge: name of a model, a reward model, or a step that made one."
    )
    pairs: Annotated[DataRef, Ref("data", role="measured")] = Field(
        description=(
            "Rows with instruction, output_1, output_2 and human_majority: 1, 2, or 0 for a tie ('openbezoar docs"
            " data'); or preference pairs, of which people preferred the chosen answer."
        )
    )
    mode: Literal["text", "probability"] = Field("text", description="As in mt_bench.")
    min_agreement: Annotated[float | None, NotInKey("what is done about the result")] = Field(
        None,
        ge=0,
        le=1,
        description=(
            "The run stops if the judge and the people agree on a smaller share of the pairs (ties count, a verdict"
            " that changed on swapped order is one)."
        ),
    )
    judge_max_new_tokens: int = Field(512, gt=0)
    judge_temperature: JudgeTemperature = 0.0
    judge_top_p: JudgeTopP = 1.0
    judge_prompts: Annotated[DataRef | None, Ref("data")] = Field(None, description="As in mt_bench.")
    retest: Annotated[bool, NotInKey("judges that were asked once", at=False)] = Field(
        False, description="Ask everything again with other seeds, and tell how often the verdict was the same."
    )
    batch: int = Field(16, ge=1)
    prompts: Prompts = {}
    budget: StepBudget = None
    max_refused: MaxRefused = MAX_REFUSED


class Failures(Step):
    """What checkpoints get wrong: loops, empty and endless answers, refusals, what the system
    prompt changes, unsafe and unsupported answers.
    """

    failures: Annotated[list[str], Ref("model")] = Field(min_length=1, description="Names of models and steps.")
    instructions: Annotated[DataRef, Ref("data")] = Field(
        description="Rows whose prompts every checkpoint answers, greedily."
    )
    harmless: Annotated[DataRef | None, Ref("data")] = Field(
        None, description="Prompts whose answers the judge checks for harm, such as HH-RLHF's harmless-base."
    )
    grounded: Annotated[DataRef | None, Ref("data")] = Field(
        None, description="Rows with instruction and context; the judge checks whether the context supports the answer."
    )
    judge: Annotated[str | None, Ref("model", role="judge")] = Field(
        None, description="Needed with 'harmless' and 'grounded'."
    )
    mode: Literal["text", "probability"] = Field("text", description="As in mt_bench.")
    systems: dict[str, str] = Field(
        default={"none": "", "wrong": "You are a weather station. You report temperatures and nothing else."},
        description="System messages that take the place of the trained one, by the name to report.",
    )
    rows: int = Field(64, ge=1, description="Most rows of each set.")
    max_new_tokens: int = Field(256, gt=0)
    judge_max_new_tokens: int = Field(256, gt=0)
    judge_temperature: JudgeTemperature = 0.0
    judge_top_p: JudgeTopP = 1.0
    batch: int = Field(16, ge=1)
    prompts: Prompts = {}
    budget: StepBudget = None
    max_refused: MaxRefused = MAX_REFUSED

    @model_validator(mode="after")
    def _checks_have_a_judge(self) -> Failures:
        if (self.harmless is not None or self.grounded is not None) and self.judge is None:
            raise ValueError("judge: 'harmless' and 'grounded' are checked by a judge; name one")
        if TRAINED in self.systems:
            raise ValueError(f"systems: '{TRAINED}' is always asked; give yours another name")
        return self
