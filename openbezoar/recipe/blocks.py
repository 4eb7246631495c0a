"""What steps are made of: models, prompts, budgets, and references to data."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from openbezoar.recipe.addresses import checked

# of a setting: its square and its quotients with other settings still fit into 32-bit floats or
# Python's own
LARGEST = 1e30


class Plain(BaseModel):
    """Base of everything in a recipe: a number is a number that arithmetic has room for, and true or false is none."""

    @field_validator("*", mode="wrap")
    @classmethod
    def _is_a_number(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        kinds = kinds_of(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("expected a number")
        number = read(value)
        if isinstance(number, int | float) and abs(number) > LARGEST:
            raise ValueError(f"expected a number of at most {LARGEST:.0e}")
        return number


def kinds_of(annotation: Any) -> set[Any]:
    """The types that a value of a field may have, without those inside of lists and mappings."""
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    return (
        set().union(*map(kinds_of, get_args(annotation)))
        if get_origin(annotation) in (Union, UnionType)
        else {annotation}
    )


class Strict(Plain):
    """Base of every block: an unknown key is an error, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Step(Strict):
    """Base of every verb's settings."""


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
        description=(
            "'openbezoar': '### System / ### Instruction / ### Response' [card]; 'own': the model's own chat template; "
            "or the path of a Jinja chat template."
        ),
    )
    system: str | None = Field(None, description="System message when a row brings none; default: the template's own.")
    append_eos: bool = Field(
        True,
        description=(
            "Train the end-of-sequence token after the answer. Without it a model never learns to stop. (Whether the"
            " paper's targets had it is not known.)"
        ),
    )


Thoughts = Literal["drop", "keep"]


Engine = Literal["auto", "forest", "vllm", "sglang", "llama.cpp", "transformers"]


class LocalModel(Strict):
    """A model that runs on this machine: in this process, or in an engine that the run starts for it."""

    product: ClassVar[str] = "model"

    model: str = Field(description="A folder, 'org/name@revision' on the hub, 'pypi:NAME', or a .gguf file.")
    prompt: PromptSpec | None = Field(None, description="Default: the recipe's 'prompt'.")
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    shape: Shape | None = Field(None, description="For plan's estimates when the model is not on disk.")
    licence: str | None = Field(None, description="Licence name to carry on when the source states none.")
    thoughts: Thoughts = Field(
        "drop",
        description=(
            "What a reasoning model thinks before it answers: 'drop': left out of answers, and counted; 'keep': part of"
            " their text. The call cache holds it in either case, so that nothing is asked again."
        ),
    )
    engine: Engine = Field(
        "auto",
        description=(
            "Which program answers, where the model is asked for texts (a teacher, a judge by its text, answers that"
            " are measured); training, likelihoods and probabilities are the forest's. 'forest': this process. The"
            " others are started when they are needed and stopped before anything is trained ('openbezoar docs"
            " how-to/engines')."
            " 'auto': the forest; on a GPU vLLM, if it is found. Models that steps make of this one answer by the same."
        ),
    )
    args: list[str] = Field(
        default=[], description="More for the engine's command, such as [--quantization, awq]; engine must be named."
    )
    gpus: Literal["all"] | Annotated[int, Field(ge=1)] | None = Field(
        None, description="An engine a GPU, on all GPUs or so many. Default: one engine, which sees all of them."
    )

    @model_validator(mode="after")
    def _has_an_engine(self) -> LocalModel:
        if self.args and self.engine in ("auto", "forest"):
            raise ValueError("args are an engine's; name it as engine: vllm, sglang, llama.cpp or transformers")
        if self.gpus is not None and self.engine == "forest":
            raise ValueError("gpus is for engines; name one, or leave gpus out")
        return self

    def answers_by(self) -> dict[str, Any]:
        """What makes its answers another engine's, for keys; empty where the recipe leaves it to the machine."""
        return {} if self.engine in ("auto", "forest") else {"engine": self.engine, "args": list(self.args)}


class RewardModel(LocalModel):
    """A sequence classifier of transformers with one output, which gives an answer a number. It judges."""

    product: ClassVar[str] = "reward model"

    model: str = Field(alias="reward", description="A folder, or 'org/name@revision' on the hub; safetensors.")
    prompt: PromptSpec = Field(
        PromptSpec(template="own"), description="How it reads a conversation. Default: its own chat template."
    )

    @model_validator(mode="after")
    def _is_the_forest_s(self) -> RewardModel:
        if self.engine not in ("auto", "forest") or self.gpus is not None:
            raise ValueError("a reward model is read by the forest; leave engine and gpus out")
        return self


class Price(Strict):
    """Money per million tokens, in the currency of your bill."""

    input: float = Field(0.0, ge=0)
    output: float = Field(0.0, ge=0)

    def of(self, tokens_in: float, tokens_out: float) -> float:
        """The price of tokens that a model reads and writes."""
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


class ServerModel(Strict):
    """A model behind an OpenAI-compatible server, or behind several that serve the same one."""

    product: ClassVar[str] = "model"

    server: str | list[str] = Field(
        min_length=1, description="Base URL, such as http://localhost:8000/v1; or a list of them, used side by side."
    )
    model: str = Field(description="The name the server knows it by.")
    revision: str | None = Field(
        None,
        description=(
            "Any text; another one makes it another model for keys and the call cache, as when a server has new weights"
            " under an old name."
        ),
    )
    key: str | None = Field(
        None, description="Name of the environment variable that holds the key. Never the key itself."
    )
    price: Price = Price()
    concurrency: int = Field(
        32,
        ge=1,
        description="Most requests under way at once at each server; how many are is found by its 429s and latency.",
    )
    timeout: float = Field(
        600.0,
        gt=0,
        description="Seconds before a request counts as lost, from its connection to the last byte of its reply.",
    )
    retries: int = Field(8, ge=0, description="Further tries after 429, 5xx or a broken connection.")
    refused_settings: Literal["leave_out", "stop"] = Field(
        "leave_out",
        description=(
            "What becomes of a setting that the server refuses by its name, as judges that take temperature 1 only"
            " refuse 0: 'leave_out': the server is asked without it, which is said once and recorded with each answer;"
            " 'stop': the step ends."
        ),
    )
    wrapper: str | None = Field(
        None,
        description=(
            "For servers with raw completions only: text around a prompt, with {prompt}, such as '<human>:"
            " {prompt}\\n<bot>:'."
        ),
    )
    licence: str | None = Field(None, description="Terms of the model's outputs, for the data card.")
    thoughts: Thoughts = Field(
        "drop",
        description=(
            "What a reasoning model thinks before it answers: 'drop': left out of answers, and counted; 'keep': part of"
            " their text. The call cache holds it in either case, so that nothing is asked again."
        ),
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
    """What may be spent on models, answers from the call cache not counted; a run that reaches it
    stops and can be continued with more.
    """

    tokens: int | None = Field(None, gt=0, description="Tokens of prompts and answers together.")
    money: float | None = Field(None, gt=0, description="By the models' prices.")

    @model_validator(mode="after")
    def _limits_something(self) -> Budget:
        if self.tokens is None and self.money is None:
            raise ValueError("expected tokens, money or both")
        return self


class DataSpec(Strict):
    """Rows of a step, a file or a hub data set, perhaps only some of them."""

    data: str = Field(
        description=(
            "A step's name; a file of rows (.jsonl, .json, .csv or .tsv, also .gz or .zst; .parquet; .arrow), a folder"
            " of them or a pattern such as 'part-*.parquet', perhaps with a split or a slice, as in 'folder[train]' or"
            " 'rows.csv[:1000]'; or 'hub:org/name:config[split]@revision', of which config, split and revision may be"
            " left out."
        )
    )
    rename: dict[str, str] = Field(default={}, description="Fields under another name: {theirs: ours}.")
    add: dict[str, str] = Field(default={}, description="Fields that every row gets, such as {submix: cot}.")
    where: dict[str, str | int | bool | list[str]] = Field(
        default={}, description="Keep rows whose field has this value (or one of these)."
    )
    shuffle: bool = Field(False, description="Shuffle by the recipe's seed before offset and limit.")
    offset: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)
    licence: str | None = Field(None, description="The rows' licence, where no README.md beside the file states it.")
    unusable: Literal["drop", "refuse"] = Field(
        "drop",
        description=(
            "What becomes of a conversation that no template here renders, for it has tool calls, images or roles of"
            " other kinds: 'drop': it is left out and counted; 'refuse': the step stops and names the row."
        ),
    )

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As before there was ``unusable``, where it is left alone: keys of steps are made of this."""
        fields: dict[str, Any] = write(self)
        return fields if self.unusable == "refuse" else {k: v for k, v in fields.items() if k != "unusable"}


def name_or(block: str) -> Discriminator:
    """Tells which form of a value is meant, a name, a list, or a block, so that a mistake is told of that form alone.

    The forms' tags stand in the places of pydantic's errors, in parentheses, which no key of a recipe has.
    """

    def form(value: Any) -> str:
        return "(name)" if isinstance(value, str) else "(list)" if isinstance(value, list) else block

    return Discriminator(form)


Name = Annotated[str, Tag("(name)")]
Rows = Annotated[DataSpec, Tag("(DataSpec)")]
DataItem = Annotated[Name | Rows, name_or("(DataSpec)")]
DataRef = Annotated[Name | Rows | Annotated[list[DataItem], Tag("(list)")], name_or("(DataSpec)")]


def data_specs(ref: DataRef) -> list[DataSpec]:
    """A data reference in its long form."""
    items = ref if isinstance(ref, list) else [ref]
    return [DataSpec(data=item) if isinstance(item, str) else item for item in items]
