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
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from openbezoar.addresses import checked

LARGEST = 1e30  # of a setting: its square and its quotients with other settings still fit into 32-bit floats or Python's own


class Plain(BaseModel):
    """Base of everything in a recipe: a number is a number that arithmetic has room for, and true or false is none."""

    @field_validator("*", mode="wrap")
    @classmethod
    def _is_a_number(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        meant = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and meant & {int, float} and bool not in meant:
            raise ValueError("expected a number")
        found = read(value)
        if isinstance(found, int | float) and abs(found) > LARGEST:
            raise ValueError(f"expected a number of at most {LARGEST:.0e}")
        return found


def _kinds(annotation: Any) -> set[Any]:
    """The types that a value of a field may have, without those inside of lists and mappings."""
    return set().union(*map(_kinds, get_args(annotation))) if get_origin(annotation) in (Union, UnionType) else {annotation}


class Strict(Plain):
    """Base of every block: an unknown key is an error, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


# ------------------------------------------------------------------------------ models


class Shape(Strict):
    """Size of a decoder model, for ``plan`` to estimate without downloading it."""

    hidden: int = Field(gt=0, description="Width of the residual stream.")
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int | None = Field(None, description="Key/value heads; default: as many as heads.")
    head_dim: int | None = Field(None, description="Default: hidden / heads.")
    mlp: int = Field(gt=0, description="Width of the gated MLP.")
    vocabulary: int = Field(gt=0)
    tied_head: bool = Field(False, description="Whether the output head is the embedding matrix.")


TEMPLATES = ("openbezoar", "own")  # names of templates; any other text is a file's path


class PromptSpec(Strict):
    """How a conversation becomes the text that a model sees."""

    template: str = Field(
        "openbezoar",
        description="'openbezoar': '### System / ### Instruction / ### Response' [card]; 'own': the model's own chat template; "
        "or the path of a Jinja chat template.",
    )
    system: str | None = Field(None, description="System message when a row brings none; default: the template's own.")
    append_eos: bool = Field(
        True,
        description="Train the end-of-sequence token after the answer. Without it a model never learns to stop. (Whether the paper's targets had it is not known.)",
    )


Thoughts = Literal["drop", "keep"]


class LocalModel(Strict):
    """A model that runs in this process."""

    model: str = Field(description="A folder, 'org/name@revision' on the hub, 'pypi:NAME', or a .gguf file.")
    prompt: PromptSpec | None = Field(None, description="Default: the recipe's 'prompt'.")
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    shape: Shape | None = Field(None, description="For plan's estimates when the model is not on disk.")
    licence: str | None = Field(None, description="Licence name to carry on when the source states none.")
    thoughts: Thoughts = Field(
        "drop",
        description="What a reasoning model thinks before it answers: 'drop': left out of answers, and counted; 'keep': part of their text. "
        "The call cache holds it in either case, so that nothing is asked again.",
    )


class Price(Strict):
    """Money per million tokens, in the currency of your bill."""

    input: float = Field(0.0, ge=0)
    output: float = Field(0.0, ge=0)


class ServerModel(Strict):
    """A model behind an OpenAI-compatible server, or behind several that serve the same one."""

    server: str | list[str] = Field(min_length=1, description="Base URL, such as http://localhost:8000/v1; or a list of them, used side by side.")
    model: str = Field(description="The name the server knows it by.")
    revision: str | None = Field(
        None, description="Any text; another one makes it another model for keys and the call cache, as when a server has new weights under an old name."
    )
    key: str | None = Field(None, description="Name of the environment variable that holds the key. Never the key itself.")
    price: Price = Price()
    concurrency: int = Field(32, ge=1, description="Most requests under way at once at each server; how many are is found by its 429s and latency.")
    timeout: float = Field(600.0, gt=0, description="Seconds before a request counts as lost, from its connection to the last byte of its reply.")
    retries: int = Field(8, ge=0, description="Further tries after 429, 5xx or a broken connection.")
    refused_settings: Literal["leave_out", "stop"] = Field(
        "leave_out",
        description="What becomes of a setting that the server refuses by its name, as judges that take temperature 1 only refuse 0: 'leave_out': the "
        "server is asked without it, which is said once and recorded with each answer; 'stop': the step ends.",
    )
    wrapper: str | None = Field(
        None, description="For servers with raw completions only: text around a prompt, with {prompt}, such as '<human>: {prompt}\\n<bot>:'."
    )
    licence: str | None = Field(None, description="Terms of the model's outputs, for the data card.")
    thoughts: Thoughts = Field(
        "drop",
        description="What a reasoning model thinks before it answers: 'drop': left out of answers, and counted; 'keep': part of their text. "
        "The call cache holds it in either case, so that nothing is asked again.",
    )

    @field_validator("server")
    @classmethod
    def _is_an_address(cls, value: str | list[str]) -> str | list[str]:
        return checked(value) if isinstance(value, str) else [checked(address) for address in value]

    @property
    def servers(self) -> tuple[str, ...]:
        """The base URLs."""
        return (self.server,) if isinstance(self.server, str) else tuple(self.server)

    def identity(self) -> dict[str, Any]:
        """What makes it the same model, wherever it is served."""
        # Answers without a setting are none where that is not wanted.
        strict = {"refused_settings": "stop"} if self.refused_settings == "stop" else {}
        return {"server": True, "model": self.model, "revision": self.revision, "wrapper": self.wrapper, **strict}


class Budget(Strict):
    """What may be spent on models, answers from the call cache not counted; a run that reaches it stops and can be continued with more."""

    tokens: int | None = Field(None, gt=0, description="Tokens of prompts and answers together.")
    money: float | None = Field(None, gt=0, description="By the models' prices.")

    @model_validator(mode="after")
    def _limits_something(self) -> Budget:
        if self.tokens is None and self.money is None:
            raise ValueError("expected tokens, money or both")
        return self


def _judge_temperature() -> Any:
    return Field(0.0, ge=0, description="Of the judge's replies, by text; 0 is greedy. Some judges take 1 only; they are asked without it if it is another.")


def _judge_top_p() -> Any:
    return Field(1.0, gt=0, le=1, description="Of the judge's replies, where their temperature is above 0.")


MAX_REFUSED = 0.1


def _max_refused() -> Any:
    return Field(
        MAX_REFUSED,
        ge=0,
        le=1,
        description="Share of a model's calls in this step that may be refused one by one (a prompt over the window, refused content); more stop the step, once "
        "there are more than 10. 0: none may. This project's: a judge or teacher that cannot answer one row in ten is the wrong one for these rows.",
    )


def _model_entry(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


# ---------------------------------------------------------------------------- data in


class DataSpec(Strict):
    """Rows of a step, a file or a hub data set, perhaps only some of them."""

    data: str = Field(
        description="A step's name, a .jsonl or .jsonl.gz file, or 'hub:org/name/config[split]@revision', of which config, split and revision may be left out."
    )
    rename: dict[str, str] = Field(default={}, description="Fields under another name: {theirs: ours}.")
    add: dict[str, str] = Field(default={}, description="Fields that every row gets, such as {submix: cot}.")
    where: dict[str, str | int | bool | list[str]] = Field(default={}, description="Keep rows whose field has this value (or one of these).")
    shuffle: bool = Field(False, description="Shuffle by the recipe's seed before offset and limit.")
    offset: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)
    licence: str | None = Field(None, description="The rows' licence, where no README.md beside the file states it.")


DataRef = str | DataSpec | list[str | DataSpec]


def data_specs(ref: DataRef) -> list[DataSpec]:
    """A data reference in its long form."""
    items = ref if isinstance(ref, list) else [ref]
    return [DataSpec(data=item) if isinstance(item, str) else item for item in items]


# ------------------------------------------------------------------------------- steps


class Generate(Plain):
    """Make synthetic instruction data by one scheme. Further keys are the scheme's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    generate: str = Field(description="The scheme; the options of each are below.")
    teacher: str = Field(description="Name of a model.")
    seeds: DataRef | None = Field(
        None,
        description="Seed rows: instructions (lamini, evol_instruct) or tasks with a 'submix' (orca); a scheme that needs none (magpie) only avoids repeating them.",
    )
    rows: int = Field(gt=0, description="How many rows to make.")
    max_new_tokens: int = Field(512, gt=0, description="Most tokens of an answer.")
    temperature: float = Field(0.8, ge=0, description="0.8 is the co-author's setting for Evol-Instruct.")
    top_p: float = Field(0.95, gt=0, le=1)
    batch: int = Field(32, ge=1, description="Prompts a batch; batches are fixed by row number, so a rerun gives the same rows.")
    prompts: dict[str, str] = Field(default={}, description="Files with texts to use instead of the scheme's own, by prompt name.")
    budget: Budget | None = Field(None, description="What this step may spend on models.")
    max_refused: float = _max_refused()

    @property
    def options(self) -> dict[str, Any]:
        """The scheme's own options, unchecked."""
        return dict(self.model_extra or {})


CleanerName = Literal["line_ends", "control_characters", "unicode_form", "thoughts", "run_on", "markers", "quotes", "whitespace", "unclosed_fence"]


class Rules(Strict):
    """Cheap rules before the judge; each drop is counted under the rule's name."""

    language: Literal["en", "any"] = Field(
        "en", description="'en': drop rows that are not English, unless the instruction speaks of a language, as translations do."
    )
    min_instruction_words: int = Field(2, ge=0, description="In scripts without spaces characters count as parts of words; docs/cleaning.md.")
    max_instruction_words: int = Field(600, ge=1)
    min_response_words: int = Field(2, ge=0)
    max_response_words: int = Field(1200, ge=1)
    drop_unfinished: bool = Field(True, description="Drop answers that were cut off by the token limit.")
    drop_refusals: bool = Field(True, description="Drop short apologies ('sorry' in under 80 words).")
    drop_echoes: bool = Field(True, description="Drop answers that repeat their instruction.")
    drop_repetition: float = Field(
        0.5, ge=0, le=1, description="Drop answers whose share of repeated 4-grams is above this, or whose end repeats one stretch again and again; 1: none."
    )
    decontaminate: bool = Field(
        False,
        description="Drop rows that share a run of words with the local rows of the recipe's evaluate and mt_bench steps. "
        "The filter then depends on those rows, and runs again when they change.",
    )
    decontaminate_words: int = Field(13, ge=4, description="Length of that run. GPT-3, appendix C: 13; shorter texts count whole from 8 words on.")
    drop_duplicates: bool = Field(True, description="Drop rows whose instruction equals an earlier one, case and spaces aside.")
    near_duplicates: float | None = Field(
        0.7, gt=0, le=1, description="Drop rows whose instruction is at least this like an earlier one (Jaccard index of word 3-grams); null: none."
    )


class Filter(Strict):
    """Keep the good rows: texts are cleaned, rules drop, a judge gives status, rating and reason, and 'openbezoar review' has the last word."""

    filter: DataRef
    clean: list[CleanerName] = Field(
        list(get_args(CleanerName)),
        description="What is put right in a row's texts before the rules; counted under these names. A recipe that keeps thoughts leaves 'thoughts' out.",
    )
    judge: str | None = Field(None, description="Name of a model; without one only the rules decide.")
    mode: Literal["text", "probability"] = Field(
        "text",
        description="'text': the judge writes status, rating and reason; 'probability': expected rating from the probabilities of the rating tokens (local judges, and servers that tell them).",
    )
    min_rating: float = Field(5.0, ge=1, le=10)
    retries: int = Field(2, ge=0, description="Further asks when a reply cannot be parsed.")
    max_new_tokens: int = Field(160, gt=0)
    judge_temperature: float = _judge_temperature()
    judge_top_p: float = _judge_top_p()
    batch: int = Field(32, ge=1)
    rules: Rules = Rules()
    prompts: dict[str, str] = {}
    budget: Budget | None = Field(None, description="What this step may spend on models.")
    max_refused: float = _max_refused()


class Lora(Strict):
    """The adapter. Defaults: [card], first version of OpenBezoar-SFT."""

    r: int = Field(16, ge=1, le=65_536)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj"],
        min_length=1,
        description="Linear layers by their names; 'lm_head' too, where it is not the embedding matrix as well.",
    )


class Training(Strict):
    """What sft and dpo have in common."""

    model: str = Field(description="A model's or a step's name: the whole model that is trained on.")
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
        description="'adamw8bit' keeps its state in 8 bits, 'paged_adamw8bit' may also move it out of a GPU's memory. (QLoRA's scripts page a state of 32 bits.)",
    )
    lora: Lora = Lora()
    quantize: Literal["nf4", "none"] = Field("nf4", description="NF4 with double quantisation through bitsandbytes [QLoRA], or none.")
    nf4: Literal["auto", "packed", "unpacked"] = Field(
        "auto",
        description="How NF4's values are held: packed in 4 bits, or unpacked to the arithmetic's dtype, which are the same numbers, faster on a CPU and four "
        "times the memory. 'auto' unpacks on a CPU where that takes at most a quarter of its free memory.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="Of the arithmetic; adapters are kept in fp32.")
    max_length: int = Field(1024, ge=8, description="Most tokens of prompt and answer.")
    too_long: Literal["drop", "truncate"] = Field(
        "drop", description="What happens to longer rows; counted either way. Truncation drops the oldest turns first."
    )
    heldout: DataRef | None = Field(None, description="Rows for the held-out loss; default: every 'heldout_every'-th row of the data.")
    heldout_every: int = Field(10, ge=2, description="Without 'heldout': each n-th row is held out.")
    heldout_rows: int = Field(64, ge=1, description="Most rows held out.")
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description="Optimiser steps between held-out measurements; default: only before and after. With it the adapter with the lowest held-out loss is kept.",
    )
    patience: int | None = Field(None, ge=1, description="Stop after this many measurements without a better held-out loss. Needs evaluate_every.")
    tokens: int = Field(1024, ge=64, description="Token budget of one forward pass; a longer row or pair is a pass by itself.")
    checkpointing: Literal["auto"] | bool = Field(
        "auto",
        description="Recompute activations in the backward pass: less memory, a third more arithmetic, the same bits. auto: where keeping them takes over 7.5 GB.",
    )
    save_every: int = Field(5, ge=1, description="Optimiser steps between checkpoints that a killed run goes on from.")

    @model_validator(mode="after")
    def _patience_has_measurements(self) -> Training:
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience counts held-out measurements; set evaluate_every too")
        return self


class Sft(Training):
    """QLoRA fine-tuning, loss on the answer only."""

    sft: DataRef
    adapter: Literal["continue", "new"] = Field(
        "continue", description="On top of an sft step: continue its adapter, with the lora settings that it has, or merge it and start a new one."
    )


class Merge(Strict):
    """Adapters into their base, in fp32 and then cast; the drift from the unmerged model is measured."""

    merge: str = Field(description="The step whose adapters are merged.")
    onto: Literal["best", "original", "dequantized"] = Field(
        "best",
        description="The base the adapter is added to: the original 16-bit weights, what NF4 made of them (which is what the adapter saw), "
        "or whichever of the two has the lower loss on the drift rows.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    drift: DataRef | None = Field(None, description="Rows on which the drift is measured; default: the training step's held-out rows.")
    drift_rows: int = Field(16, ge=1)
    max_drift: float | None = Field(
        1.0,
        gt=0,
        description="The run stops if the merged model lies further from the unmerged one, in nats a token of those rows: by KL divergence, or by a higher loss. "
        "1.0: rounding and NF4's error stay below 0.3 on a 135M model, weights that were misread make 10 or more. null: no limit.",
    )


# What each preference loss uses, with its default. Sources: [DPO] for sigmoid (and TRL's default for the losses beside it),
# arXiv 2411.15124 for sigmoid_norm, 2402.13228 section 5 for dpop, the authors' code of 2405.14734 (beta 2, gamma / beta 0.5)
# for simpo, 2403.07691 for orpo.
LOSS_SETTINGS: dict[str, dict[str, float]] = {
    "sigmoid": {"beta": 0.1, "label_smoothing": 0.0},
    "sigmoid_norm": {"beta": 5.0, "label_smoothing": 0.0},
    "ipo": {"beta": 0.1},
    "hinge": {"beta": 0.1},
    "dpop": {"beta": 0.3, "dpop_lambda": 50.0},
    "kto_pair": {"beta": 0.1},
    "simpo": {"beta": 2.0, "simpo_gamma": 1.0, "label_smoothing": 0.0},
    "orpo": {"orpo_lambda": 0.1},
}
WITHOUT_REFERENCE = ("simpo", "orpo")


class Dpo(Training):
    """Preference training with a new adapter; the reference is the model as given, the adapter off. Losses: docs/preference-losses.md."""

    dpo: DataRef
    loss: Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "dpop", "kto_pair", "simpo", "orpo"] = Field(
        "sigmoid", description="The preference loss; 'sigmoid' is DPO [DPO] equation 7, with label_smoothing conservative DPO."
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="Strength of the pull to the reference, or the scale of SimPO's rewards. Default by loss: 0.1 ([DPO] 0.1 to 0.5; 0.1 in the reference's example), "
        "dpop 0.3, simpo 2, sigmoid_norm 5; orpo has none.",
    )
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="Share of labels taken as flipped, 0 by default; for sigmoid (conservative DPO), sigmoid_norm and simpo."
    )
    simpo_gamma: float | None = Field(None, ge=0, description="SimPO's target margin; 1 by default (gamma / beta = 0.5 is the authors' starting point).")
    dpop_lambda: float | None = Field(None, ge=0, description="DPO-positive's weight on a chosen answer that lost likelihood; 50 by default, as in its paper.")
    orpo_lambda: float | None = Field(None, gt=0, description="ORPO's weight of the odds ratio beside the likelihood of the chosen answer; 0.1 by default.")
    reference: Literal["same pass", "cached"] = Field(
        "same pass",
        description="'same pass': the reference is computed beside the policy, adapter off; 'cached': once before training, and kept in the step's folder "
        "(worth it for more than one epoch, or for several losses on the same pairs).",
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
        if not isinstance(loss, str) or loss not in LOSS_SETTINGS:
            return data  # reported by the field's own check
        used = LOSS_SETTINGS[loss]
        for name in {name: None for settings in LOSS_SETTINGS.values() for name in settings}:
            if name not in used and data.get(name) is not None:
                others = ", ".join(other for other, settings in LOSS_SETTINGS.items() if name in settings)
                raise ValueError(f"{name}: the loss '{loss}' does not use it ({others} {'do' if ',' in others else 'does'}); remove it or name another loss")
        if loss in WITHOUT_REFERENCE and data.get("reference") is not None:
            raise ValueError(f"reference: the loss '{loss}' has none; remove it or name another loss")
        return {**data, **{name: default for name, default in used.items() if data.get(name) is None}}


class TaskSpec(Strict):
    """A benchmark whose rows or shots differ from the usual."""

    task: str = Field(description="An lm-eval task: its prompts and metrics are used.")
    name: str | None = Field(None, description="The name to report under; give one when the rows are not the task's own.")
    file: str | None = Field(None, description="Rows in the plain schema of docs/data.md; default: DATA/TASK.jsonl.gz.")
    fewshot: int | None = Field(None, ge=0, description="Default: the step's 'fewshot'.")
    limit: int | None = Field(None, ge=1)


class Gate(Strict):
    """What must not get worse: the run fails, or warns, where it is sure that it did."""

    measure: str = Field(description="A task, loss or set of pairs of the step, by the name it is reported under.")
    fall: float = Field(ge=0, description="By how much it may get worse: points (hundredths) of a task or pairs, nats of a loss.")
    before: str | None = Field(None, description="The checkpoint it is compared with; default: the first of the list.")
    after: str | None = Field(None, description="The checkpoint it is asked of; default: the last of the list.")
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Of the paired interval. The gate is broken if all of the interval is beyond 'fall', and open if some is."
    )
    broken: Literal["fail", "warn"] = Field("fail", description="What a broken gate does; an open one warns.")


class Evaluate(Strict):
    """LM-Eval tasks, held-out losses and preference accuracies of several checkpoints."""

    evaluate: list[str] = Field(min_length=1, description="Names of models and steps, in the order of the table.")
    tasks: list[str | TaskSpec] = []
    data: str | None = Field(None, description="Folder of local task rows; default: the hub.")
    fewshot: int | None = Field(None, ge=0, description="Default: 0.")
    limit: int | None = Field(None, ge=1, description="Questions a task.")
    losses: dict[str, DataRef] = Field(default={}, description="Held-out loss on these rows, by the name to report.")
    pairs: dict[str, DataRef] = Field(default={}, description="Share of these pairs in which the chosen answer is the likelier one.")
    loss_rows: int = Field(64, ge=1, description="Rows a loss or pair set.")
    reference: str | None = Field(
        None,
        description="A checkpoint of the list, such as the one that DPO began with: on each pair set the others get implicit rewards and a KL divergence from it.",
    )
    kl_rows: int = Field(16, ge=0, description="Prompts of each pair set that a checkpoint answers for its KL divergence from the reference.")
    kl_tokens: int = Field(64, ge=1, description="Most new tokens of such an answer.")
    gate: list[Gate] = Field(default=[], description="What must hold before the run goes on.")
    tokens: int = Field(2048, ge=64)

    @model_validator(mode="after")
    def _reference_is_scored(self) -> Evaluate:
        if self.reference is not None and self.reference not in self.evaluate:
            raise ValueError(f"reference: '{self.reference}' is not in the list that is evaluated; add it there")
        if self.reference is not None and not self.pairs:
            raise ValueError("reference: there is no pair set to see the checkpoints on; add 'pairs'")
        return self


class MtBench(Strict):
    """Two-turn answers, graded by a judge: each from 1 to 10, or every two against each other."""

    mt_bench: list[str] = Field(description="Names of models and steps; may be empty where 'answers' brings others.")
    questions: DataRef
    judge: str
    answers: DataRef | None = Field(
        None, description="Published answers of other models to set beside: rows with question_id, model_id and turns (docs/data.md)."
    )
    grading: Literal["single", "pairwise", "both"] = Field(
        "single", description="A rating for each answer, a verdict on each two (asked in both orders), or both."
    )
    against: str | None = Field(None, description="Compare every model with this one only; default: every two models.")
    mode: Literal["text", "probability"] = Field(
        "text", description="'text': the judge writes and is parsed; 'probability': ratings or verdicts are weighed (local judges)."
    )
    max_new_tokens: int = Field(1024, gt=0, description="FastChat: 1024.")
    judge_max_new_tokens: int = Field(512, gt=0)
    judge_temperature: float = _judge_temperature()
    judge_top_p: float = _judge_top_p()
    judge_prompts: DataRef | None = Field(None, description="Rows of FastChat's judge_prompts.jsonl, used word for word; default: the project's own texts.")
    judge_check: str | None = Field(None, description="An agreement step that the judge must have passed before it grades.")
    batch: int = Field(16, ge=1)
    prompts: dict[str, str] = {}
    budget: Budget | None = Field(None, description="What this step may spend on models.")
    max_refused: float = _max_refused()

    @model_validator(mode="after")
    def _something_to_grade(self) -> MtBench:
        if not self.mt_bench and self.answers is None:
            raise ValueError("mt_bench: no model to grade; name one, or 'answers' of others")
        if self.judge_prompts is not None and self.prompts:
            raise ValueError("prompts: judge_prompts brings all texts already; remove one of the two")
        if self.against is not None and self.grading == "single":
            raise ValueError("against: graded one at a time nothing is compared; set grading: pairwise")
        return self


class Agreement(Strict):
    """A judge on pairs of answers that people have compared, in both orders, so that it earns its number before it grades."""

    agreement: str = Field(description="The judge: name of a model or a step.")
    pairs: DataRef = Field(description="Rows with instruction, output_1, output_2 and human_majority: 1, 2, or 0 for a tie (docs/data.md).")
    mode: Literal["text", "probability"] = Field("text", description="As in mt_bench.")
    min_agreement: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The run stops if the judge and the people agree on a smaller share of the pairs (ties count, a verdict that changed on swapped order is one).",
    )
    judge_max_new_tokens: int = Field(512, gt=0)
    judge_temperature: float = _judge_temperature()
    judge_top_p: float = _judge_top_p()
    judge_prompts: DataRef | None = Field(None, description="As in mt_bench.")
    batch: int = Field(16, ge=1)
    prompts: dict[str, str] = {}
    budget: Budget | None = Field(None, description="What this step may spend on models.")
    max_refused: float = _max_refused()


class Failures(Strict):
    """What checkpoints get wrong: loops, empty and endless answers, refusals, what the system prompt changes, unsafe and unsupported answers."""

    failures: list[str] = Field(min_length=1, description="Names of models and steps.")
    instructions: DataRef = Field(description="Rows whose prompts every checkpoint answers, greedily.")
    harmless: DataRef | None = Field(None, description="Prompts whose answers the judge checks for harm, such as HH-RLHF's harmless-base.")
    grounded: DataRef | None = Field(None, description="Rows with instruction and context; the judge checks whether the context supports the answer.")
    judge: str | None = Field(None, description="Needed with 'harmless' and 'grounded'.")
    mode: Literal["text", "probability"] = Field("text", description="As in mt_bench.")
    systems: dict[str, str] = Field(
        default={"none": "", "wrong": "You are a weather station. You report temperatures and nothing else."},
        description="System messages that take the place of the trained one, by the name to report.",
    )
    rows: int = Field(64, ge=1, description="Most rows of each set.")
    max_new_tokens: int = Field(256, gt=0)
    judge_max_new_tokens: int = Field(256, gt=0)
    judge_temperature: float = _judge_temperature()
    judge_top_p: float = _judge_top_p()
    batch: int = Field(16, ge=1)
    prompts: dict[str, str] = {}
    budget: Budget | None = Field(None, description="What this step may spend on models.")
    max_refused: float = _max_refused()

    @model_validator(mode="after")
    def _checks_have_a_judge(self) -> Failures:
        if (self.harmless is not None or self.grounded is not None) and self.judge is None:
            raise ValueError("judge: 'harmless' and 'grounded' are checked by a judge; name one")
        if "trained" in self.systems:
            raise ValueError("systems: 'trained' is always asked; give yours another name")
        return self


class Report(Strict):
    """One page about the run."""

    report: Literal["all"] | list[str] = "all"


GgufForm = Literal["f16", "q8_0"]


class Release(Strict):
    """Merged weights, tokenizer with template, GGUF, data sets and cards, ready to publish."""

    release: list[str] = Field(min_length=1, description="Names of merge steps.")
    gguf: list[GgufForm] = Field(
        ["q8_0"],
        description="Forms of GGUF to make of each model, for llama.cpp and Ollama: f16 is as large as the safetensors, q8_0 about half; [] makes none.",
    )
    title: str | None = Field(None, description="Family name on the cards; default: the recipe's name.")


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
    data: str | None = Field(None, description="A folder of data; paths that begin with $data/ lie in it. Relative to the recipe's own file.")
    seed: int = Field(0, ge=0, description="All randomness comes from it and the step's name.")
    policy: Literal["any", "open"] = Field(
        "any", description="'open': teachers, judges, seeds and training rows must have an open licence that is stated and is not non-commercial."
    )
    prompt: PromptSpec = PromptSpec()
    budget: Budget | None = Field(None, description="What all steps together may spend on models, over all tries of the run.")
    models: dict[str, Annotated[ServerModel | LocalModel, Field(union_mode="left_to_right")]]
    defaults: dict[str, dict[str, Any]] = Field(default={}, description="Settings by verb, for all steps of that verb that do not set them.")
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


# ------------------------------------------------------------------------------ reading


def verb_of(step: BaseModel | Mapping[str, Any]) -> str:
    """The verb of a step."""
    if isinstance(step, BaseModel):
        return next(verb for verb, kind in VERBS.items() if type(step) is kind)
    found = [verb for verb in VERBS if verb in step]
    # 'model: x' steps may carry only one verb; two verbs are a mistake the caller reports.
    return found[0] if len(found) == 1 else ""


def references(step: Step) -> Iterator[tuple[str, str, str]]:
    """What a step names: (key, kind, name) with kind 'model' (a model or a step), 'data' or 'step'."""
    for key, value in (("teacher", getattr(step, "teacher", None)), ("judge", getattr(step, "judge", None)), ("model", getattr(step, "model", None))):
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
    for key in ("filter", "sft", "dpo", "seeds", "heldout", "drift", "questions", "answers", "judge_prompts", "instructions", "harmless", "grounded"):
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
