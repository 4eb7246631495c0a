"""Settings of the steps that make models: sft, dpo, kto, reward and merge, and choose, which takes one of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    create_model,
    model_serializer,
    model_validator,
)

from openbezoar.recipe.blocks import DataRef, Plain, Step, Strict, name_or
from openbezoar.recipe.losses import LOSSES, Constant, constants, described, filled
from openbezoar.recipe.refs import InKeyAs, NotInKey, Ref

TOKENS = 1024
DTYPE: Literal["bfloat16"] = "bfloat16"
AUTO: Any = "auto"
if TYPE_CHECKING:  # 'auto' until models/fitting.py has settled it
    LossName = str
    TokenBudget = int
    Arithmetic = Literal["bfloat16", "float16", "float32"]
else:
    LossName = Literal[tuple(LOSSES)]
    TokenBudget = Annotated[
        Annotated[Literal["auto"], Tag("(name)")] | Annotated[int, Field(ge=64), Tag("(number)")],
        name_or("(number)"),
    ]
    Arithmetic = Literal["auto", "bfloat16", "float16", "float32"]
BY_THE_DEVICE = "the device chooses, which changes no more than rounding"


ALL_LINEAR = "all-linear"
AllLinear = Annotated[Literal["all-linear"], Tag("(name)")]
LayerNames = Annotated[list[str], Field(min_length=1), Tag("(list)")]


class Lora(Strict):
    """The adapter. Defaults: [card], first version of OpenBezoar-SFT."""

    r: int = Field(16, ge=1, le=65_536)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: Annotated[AllLinear | LayerNames, name_or("(list)")] = Field(
        ["q_proj", "k_proj", "v_proj"],
        description=(
            "Linear layers by their names; 'lm_head' too, where it is not the embedding matrix as well. Or"
            " 'all-linear': every linear layer but the head, which [QLoRA] found to be needed for the quality of full"
            " fine-tuning."
        ),
    )
    rslora: bool = Field(
        False,
        description=(
            "Scale the update by alpha / sqrt(r) in place of alpha / r (rank-stabilised, arXiv 2312.03732), with which"
            " a higher rank does not learn more slowly."
        ),
    )

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As before there was ``rslora``, where it is off: keys of steps are made of this."""
        fields: dict[str, Any] = write(self)
        return fields if self.rslora else {name: value for name, value in fields.items() if name != "rslora"}


WHOLE = "none"
NoAdapter = Annotated[Literal["none"], Tag("(name)")]
Adapter = Annotated[Lora, Tag("(Lora)")]


Measure = Literal["loss", "accuracy", "margin", "auc"]


class Sweep(Plain):
    """Values to try, by key: 'learning_rate: [1e-4, 3e-4]', or with a dot 'lora.r: [8, 32]'; of several keys every
    combination. Each is a step of its own, and the step's name stands for the best of them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, list[Any]]

    by: Measure = Field(
        "loss",
        description=(
            "What is best on the held-out rows of the training: the lowest 'loss'; the highest 'accuracy' of"
            " rewards (dpo, reward), their 'margin' (dpo) or 'auc' (kto). The earlier of equals."
        ),
    )


class Training(Step):
    """What sft, dpo, kto and reward have in common."""

    paths: ClassVar[int] = 1  # of a row's tree
    measures: ClassVar[tuple[Measure, ...]] = ("loss",)  # of held-out rows, by which a sweep may choose

    model: Annotated[str, Ref("model", role="base")] = Field(
        description="A model's or a step's name: the whole model that is trained on."
    )
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps.")
    batch: int = Field(16, ge=1, description="Rows (or pairs) an optimiser step. [QLoRA] 16.")
    learning_rate: float = Field(2e-4, gt=0, description="[QLoRA] 2e-4.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="[QLoRA] constant.")
    warmup: float = Field(0.03, ge=0, le=1, description="Share of steps. [QLoRA] 0.03.")
    clip: float = Field(0.3, gt=0, description="Greatest gradient norm. [QLoRA] 0.3.")
    weight_decay: float = Field(0.0, ge=0)
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = Field(
        "adamw",
        description=(
            "'adamw8bit' keeps its state in 8 bits, 'paged_adamw8bit' may also move it out of a GPU's memory. (QLoRA's"
            " scripts page a state of 32 bits.)"
        ),
    )
    lora: Annotated[NoAdapter | Adapter, name_or("(Lora)")] = Field(
        Lora(),
        description=(
            "The adapter; or 'none': all weights are trained, embeddings and head with them, and the step makes a whole"
            " model in the arithmetic's 'dtype', with nothing to merge. Weights in 16 bits then have master copies in"
            " fp32. For small models: a checkpoint takes 12 bytes a parameter, so a larger 'save_every' is worth while."
        ),
    )
    quantize: Literal["nf4", "none", "auto"] = Field(
        "nf4",
        description=(
            "NF4 with double quantisation through bitsandbytes [QLoRA], or none. 'auto': none for a base of fewer than"
            " 1.5e9 parameters, whatever memory is free, else NF4. (NF4 costs Gemma-3-270M 2.27 to 2.51 nats a token,"
            " more than its fine-tuning gains: 'openbezoar docs results'.)"
        ),
    )
    nf4: Literal["auto", "packed", "unpacked"] = Field(
        "auto",
        description=(
            "How NF4's values are held: packed in 4 bits, or unpacked to the arithmetic's dtype, which are the same"
            " numbers, faster, and four times the memory. 'auto' unpacks on a CPU where that takes at most a quarter"
            " of its free memory, on a GPU where passes of 4,096 tokens still fit beside them."
        ),
    )
    dtype: Annotated[Arithmetic, InKeyAs("auto", DTYPE, BY_THE_DEVICE)] = Field(
        AUTO,
        description=(
            "Of the arithmetic; adapters are kept in fp32. 'auto' is bfloat16, or float16 with a scaled loss on a GPU"
            " without bfloat16 products (below compute capability 8.0). A CPU without them (before AVX-512) holds and"
            " multiplies such weights in fp32."
        ),
    )
    max_length: int = Field(1024, ge=8, description="Most tokens of prompt and answer.")
    too_long: Literal["drop", "truncate"] = Field(
        "drop",
        description=(
            "What happens to longer rows; counted either way. Truncation drops whole turns: the oldest of a prompt, the"
            " last of a conversation all of whose answers are learnt."
        ),
    )
    heldout: Annotated[DataRef | None, Ref("data")] = Field(
        None, description="Rows for the held-out loss; default: every 'heldout_every'-th row of the data."
    )
    heldout_every: int = Field(10, ge=2, description="Without 'heldout': each n-th row is held out.")
    heldout_rows: int = Field(64, ge=1, description="Most rows held out.")
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description=(
            "Optimiser steps between held-out measurements; default: only before and after. With it the adapter with"
            " the lowest held-out loss is kept."
        ),
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many measurements without a better held-out loss. Needs evaluate_every.",
    )
    tokens: Annotated[TokenBudget, InKeyAs("auto", TOKENS, BY_THE_DEVICE)] = Field(
        AUTO,
        description=(
            "Token budget of one forward pass, 64 or more; a longer row or pair is a pass by itself. 'auto': 1,024 on a"
            " CPU; on a GPU up to 16,384, as many as its memory takes with no activations recomputed."
        ),
    )
    checkpointing: Annotated[Literal["auto"] | bool, NotInKey("changes memory and time")] = Field(
        "auto",
        description=(
            "Recompute activations in the backward pass: less memory, the same bits, and half as much arithmetic again"
            " (a third where all weights are trained). auto: on a GPU only as many layers as its memory asks for, on a"
            " CPU all of them where keeping them takes over 7.5 GB."
        ),
    )
    save_every: Annotated[int, NotInKey("where a killed training goes on from, which leaves no trace")] = Field(
        5, ge=1, description="Optimiser steps between checkpoints that a killed run goes on from."
    )

    draws_as: Annotated[str | None, NotInKey("the step's own name", at=None)] = Field(
        None,
        description=(
            "The name by which initial values, the rows' order and dropout are drawn; default: the step's. The steps of"
            " a sweep have the swept step's, so that they differ in the value alone."
        ),
    )
    sweep: Annotated[Sweep | None, NotInKey("each value is a step of its own", at=None)] = Field(
        None, description="Values to try in place of one; 'openbezoar docs how-to/sweep'."
    )

    @property
    def whole(self) -> bool:
        """Whether all weights are trained, in place of an adapter."""
        return self.lora == WHOLE

    @property
    def second_copy(self) -> bool:
        """Whether the model as given is held beside the one that is trained, as its reference."""
        return False

    @model_validator(mode="after")
    def _what_is_trained_is_not_quantised(self) -> Training:
        if self.whole and self.quantize != "none":
            raise ValueError(
                f"lora: none trains the weights themselves, and quantize: {self.quantize} may hold them in 4 bits; set"
                " quantize: none, or give lora an adapter"
            )
        return self

    @model_validator(mode="after")
    def _patience_has_measurements(self) -> Training:
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience counts held-out measurements; set evaluate_every too")
        return self


SAMPLE_PROMPTS = (
    "Name three things that float on water, and say in one sentence why they do.",
    "Write a short, friendly note that asks a neighbour to turn the music down after ten.",
    "A train leaves at 9:40 and needs 85 minutes. When does it arrive?",
)
"""What a model in training is asked, written for this project: to explain, to write, to reckon."""
SAMPLED = "what is looked at beside the training, which it does not change"


class Answering(Training):
    """What sft, dpo and kto have in common: what they train answers."""

    sample_every: Annotated[int | None, NotInKey(SAMPLED)] = Field(
        None,
        ge=1,
        description=(
            "Optimiser steps between greedy answers of the model in training to 'sample_prompts', before the first and"
            " after the last step too: samples.jsonl, shown by 'openbezoar watch' and in the report. Changes no bit of"
            " the training."
        ),
    )
    sample_prompts: Annotated[list[str], NotInKey(SAMPLED)] = Field(
        list(SAMPLE_PROMPTS), min_length=1, description="What is asked then."
    )
    sample_tokens: Annotated[int, NotInKey(SAMPLED)] = Field(64, ge=1, description="Most tokens of such an answer.")


class Sft(Answering):
    """QLoRA fine-tuning, loss on the answers only."""

    sft: Annotated[DataRef, Ref("data", role="rows")]
    loss_on: Annotated[Literal["all", "last"], NotInKey("as rows with one answer have it", at="all")] = Field(
        "all",
        description=(
            "Which answers of a conversation are learnt: 'all', or the 'last'. Rows with a prompt and an answer, and"
            " pairs, have one."
        ),
    )
    adapter: Literal["continue", "new"] = Field(
        "continue",
        description=(
            "On top of an sft step: continue its adapter, with the lora settings that it has, or merge it and start a"
            " new one."
        ),
    )


class Choose(Step):
    """The best of several steps that trained, by their held-out rows: its model is that one's. What a sweep's own name
    stands for.
    """

    choose: Annotated[list[str], Ref("step", to="model", also="reward model", role="base")] = Field(
        min_length=2,
        description=(
            "Steps of one verb, with one prompt, that hold out the same rows; for 'loss' and 'margin' with the same"
            " constants too."
        ),
    )
    by: Measure = Field("loss", description="As a sweep's.")
    beats: Annotated[Literal["length", "nothing"], NotInKey("what is done about the result")] = Field(
        "length", description="Of reward models: what a reward step's is, for the chosen one."
    )
    values: dict[str, dict[str, Any]] = Field({}, description="What differs in each of them, by name, for the report.")


class Merge(Step):
    """Adapters into their base, in fp32 and then cast; the drift from the unmerged model is measured."""

    merge: Annotated[str, Ref("step", to="adapter", role="base")] = Field(
        description="The step whose adapters are merged."
    )
    onto: Literal["best", "original", "dequantized"] = Field(
        "best",
        description=(
            "The base the adapter is added to: the original 16-bit weights, what NF4 made of them (which is what the"
            " adapter saw), or whichever of the two has the lower loss on the drift rows."
        ),
    )
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    drift: Annotated[DataRef | None, Ref("data")] = Field(
        None, description="Rows on which the drift is measured; default: the training step's held-out rows."
    )
    drift_rows: int = Field(16, ge=1)
    max_drift: Annotated[float | None, NotInKey("what is done about the result")] = Field(
        1.0,
        gt=0,
        description=(
            "The run stops if the merged model lies further from the unmerged one, in nats a token of those rows: by KL"
            " divergence, or by a higher loss. 1.0: rounding and NF4's error stay below 0.3 on a 135M model, weights"
            " that were misread make 10 or more. null: no limit."
        ),
    )


class Preference(Answering):
    """The data and the loss of preference training."""

    paths: ClassVar[int] = 2
    measures: ClassVar[tuple[Measure, ...]] = ("loss", "accuracy", "margin")

    dpo: Annotated[DataRef, Ref("data", role="rows")]
    loss: LossName = Field(
        "sigmoid",
        description="The preference loss; 'sigmoid' is DPO [DPO] equation 7, with label_smoothing conservative DPO.",
    )


def _kind_of(constant: Constant) -> Any:
    unused = NotInKey("a constant that the loss does not use", at=None)
    return float | None if constant.always_in_key else Annotated[float | None, unused]


# The losses' constants are fields too, one for each constant of the table.
if TYPE_CHECKING:
    WithConstants = Preference
else:
    WithConstants = create_model(
        "WithConstants",
        __base__=Preference,
        **{
            c.name: (_kind_of(c), Field(None, description=described(c), gt=c.gt, ge=c.ge, lt=c.lt)) for c in constants()
        },
    )


class Dpo(WithConstants):
    """Preference training, with a new adapter or of all weights; the reference is the model as given.
    Losses: 'openbezoar docs preference-losses'.
    """

    reference: Literal["same pass", "cached"] = Field(
        "same pass",
        description=(
            "'same pass': the reference is computed beside the policy, adapter off, or with lora: none by a second copy"
            " of the model in memory; 'cached': once before training, and kept in the step's folder (worth it for more"
            " than one epoch, for several losses on the same pairs, or to do without that copy)."
        ),
    )
    learning_rate: float = Field(1e-5, gt=0, description="About 1e-5 is advised for adapters by TRL's documentation.")
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float = Field(10.0, gt=0, description="[DPO] 10.")

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_loss(cls, data: Any) -> Any:
        """Fill in the loss's own defaults; refuse what the loss does not use."""
        loss = data.get("loss", "sigmoid") if isinstance(data, dict) else None
        # any other is reported by the field's own check
        return filled(loss, data) if isinstance(loss, str) and loss in LOSSES else data

    @property
    def constants(self) -> dict[str, float]:
        """The constants of its loss, by their names."""
        return {name: getattr(self, name) for name in LOSSES[self.loss].defaults}

    @property
    def second_copy(self) -> bool:
        return self.whole and self.reference == "same pass" and LOSSES[self.loss].needs_reference


class Reward(Training):
    """A reward model learnt from pairs (Bradley-Terry): an adapter and a head that gives an answer a number,
    merged into a sequence classifier that transformers reads by itself.
    """

    paths: ClassVar[int] = 2
    measures: ClassVar[tuple[Measure, ...]] = ("loss", "accuracy")

    reward: Annotated[DataRef, Ref("data", role="rows")]
    margin: float = Field(0.0, ge=0, description="By how much a chosen answer's reward is to be above the rejected's.")
    center: float = Field(
        0.0,
        ge=0,
        description=(
            "Weight of the squared sum of a pair's rewards, which holds them near zero; 0.01 is the example of TRL's"
            " documentation."
        ),
    )
    learning_rate: float = Field(1e-4, gt=0, description="TRL's default.")
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float = Field(1.0, gt=0, description="transformers' default.")
    heldout_rows: int = Field(512, ge=1, description="Most rows held out.")
    beats: Annotated[Literal["length", "nothing"], NotInKey("what is done about the result")] = Field(
        "length",
        description=(
            "'length': the run stops if the model is right about no more held-out pairs than the length of the answers"
            " is; 'nothing': it goes on."
        ),
    )

    @model_validator(mode="after")
    def _has_an_adapter(self) -> Reward:
        if self.whole:
            raise ValueError("lora: a reward model is trained as an adapter and a head, then merged; give its settings")
        return self


class Kto(Answering):
    """KTO: preference training on answers each of which was liked or not, with a new adapter or of all weights;
    the reference is the model as given. A pair is read as a liked answer and one that was not.
    """

    measures: ClassVar[tuple[Measure, ...]] = ("loss", "auc")

    kto: Annotated[DataRef, Ref("data", role="rows")]
    beta: float = Field(0.1, gt=0, description="Strength of the pull to the reference. [KTO] 0.1.")
    desirable_weight: float = Field(
        1.0,
        ge=0,
        description=(
            "Weight of the loss of a liked answer. TRL's documentation advises weights with which liked and other"
            " answers, each number times its weight, are in a ratio from 1:1 to 4:3; a run says where they are not."
        ),
    )
    undesirable_weight: float = Field(1.0, ge=0, description="Weight of the loss of an answer that was not liked.")
    batch: int = Field(
        16,
        ge=2,
        description="Answers an optimiser step, two at least: z0 takes each prompt with another's answer.",
    )
    learning_rate: float = Field(
        5e-6, gt=0, description="[KTO] 5e-6. TRL's documentation advises 5e-7 to 5e-6, with a beta of 0.1."
    )
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float = Field(10.0, gt=0, description="[DPO] 10.")

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the loss, by their names."""
        return {name: getattr(self, name) for name in ("beta", "desirable_weight", "undesirable_weight")}

    @property
    def second_copy(self) -> bool:
        return self.whole

    @model_validator(mode="after")
    def _one_answer_is_learnt_from(self) -> Kto:
        if not self.desirable_weight and not self.undesirable_weight:
            raise ValueError("desirable_weight and undesirable_weight are both 0, so nothing is learnt; raise one")
        return self
