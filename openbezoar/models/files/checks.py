"""The one list of what is held against each other when a model is opened, and by ``plan`` where its files are here.

A model folder has four parts that were perhaps never together: a config, tensors, a tokenizer
and generation settings. Each check reads headers and JSON, so the whole list takes a moment and
needs no torch. A fault is a ModelError before anything runs; a notice is told and gone on with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError, shown
from openbezoar.models.files.quantised import METHODS, Packed, packed_weights, settings_of
from openbezoar.models.files.stored import READ, Stored, files, optional_json, read_json, tensors_of
from openbezoar.models.files.tokenizer_facts import TokenizerFacts, read_tokenizer
from openbezoar.models.files.towers import check_kind, is_wrapper, text_config, text_names

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
UNIFORM = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""Kinds whose layers all have the same matrices, under Llama's names."""
ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "su", "mrope")
SIZES = (
    *(
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ),
    *("vocab_size", "max_position_embeddings", "n_embd", "n_layer", "n_head", "n_positions"),
)
# of which some kinds have a list, one for each layer
BY_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
LAYER_KINDS = ("layer_types", "layers_block_type", "block_types")
STATES = (
    "mamba_",
    "ssm_",
    "lru_",
    "rwkv_",
    "linear_conv_",
    "linear_num_",
    "conv_kernel",
    "conv_L_cache",
    "state_size",
    "attention_hidden_size",
)
"""How the settings of recurrent layers begin, in the configs of Mamba, Jamba, RecurrentGemma, RWKV,
Qwen3-Next, LFM2 and their kin.
"""
LARGEST = 1 << 32  # of any size; more than any model has
_WRAPPED = re.compile(
    r"(?:_orig_mod|module|_forward_module|_fsdp_wrapped_module|base_model\.model|pretrained_model)\."
)  # torch.compile, DDP, Lightning, FSDP, PEFT, TRL
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.self_attn\.q_proj\.")
_ADAPTED = re.compile(
    r"\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|base_layer|modules_to_save|ia3_l)(?:\.|$)"
)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Model:
    """What a folder says. tensors: of the text model, by the names that it has alone; others: how
    many belong to other parts.
    """

    folder: Path
    config: Mapping[str, Any]
    text: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    packed: Mapping[str, Packed]
    others: int

    @cached_property
    def tokenizer(self) -> TokenizerFacts:
        return read_tokenizer(self.folder)

    @cached_property
    def generation(self) -> dict[str, Any]:
        return optional_json(self.folder / "generation_config.json")

    @cached_property
    def rows(self) -> int | None:
        """Embeddings: as many as their matrix has rows, or as the config says; None where neither tells."""
        for name, tensor in self.tensors.items():
            if name.endswith(EMBEDDINGS) and len(tensor.shape) == 2 and self.kind_of(name) != "bnb4":
                return tensor.shape[0]
        stated = self.text.get("vocab_size")
        return stated if isinstance(stated, int) else None

    def kind_of(self, name: str) -> str | None:
        """The packed form of a weight; None for a plain one."""
        return self.packed[name].kind if name in self.packed else None


KindCheck = Callable[[str, Mapping[str, Any]], None]
"""(where, config.json): raises ModelError for a kind of model that is not expected."""


def read(folder: Path, kind: KindCheck = check_kind) -> Model:
    """A folder's parts. Raises ModelError where one cannot be read, or is of a kind that is not."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: it holds an adapter (adapter_config.json), not a model by itself; merge it into its base with"
            " PEFT, and name that folder"
        )
    config = read_json(folder / "config.json")
    kind(str(folder), config)
    # old .bin weights have no header; they are converted first
    tensors = tensors_of(folder) if any(folder.glob("*.safetensors")) else {}
    packed = packed_weights(str(folder), config, tensors)
    if not is_wrapper(config):
        return Model(folder, config, config, tensors, packed, 0)
    names = text_names(tensors)
    parts = {part for one in packed.values() for part in one.parts}
    return Model(
        folder,
        config,
        text_config(config),
        {ours: tensors[theirs] for ours, theirs in names.items() if theirs not in parts},
        {ours: packed[theirs] for ours, theirs in names.items() if theirs in packed},
        len(tensors) - len(names),
    )


def _names(model: Model) -> Iterator[str]:
    """Tensors under the names that they have in a model that something is wrapped around."""
    for name in model.tensors:
        if match := _WRAPPED.match(name):
            yield (
                f"its tensors' names begin with '{match[0]}' ('{name}'), as of a model that was saved with what is"
                " wrapped around it; save the model itself"
            )
            return
    if inner := next((name for name in model.tensors if _ADAPTED.search(name)), None):
        yield f"its tensors have an adapter among them ('{inner}'); merge it with PEFT (merge_and_unload) and save that"


def _shapes(model: Model) -> Iterator[str]:
    """The config's sizes against each other and against the tensors, for families that are known well enough."""
    config = model.text
    heads, kv = (
        config.get("num_attention_heads"),
        config.get("num_key_value_heads") or config.get("num_attention_heads"),
    )
    hidden, layers = config.get("hidden_size"), config.get("num_hidden_layers")
    if isinstance(heads, int) and isinstance(kv, int) and kv > 0 and heads % kv:
        yield f"its config has {heads} attention heads on {kv} key/value heads; expected a multiple"
    if (
        isinstance(hidden, int)
        and isinstance(heads, int)
        and heads > 0
        and not config.get("head_dim")
        and hidden % heads
    ):
        yield f"its config has a hidden size of {hidden} with {heads} heads and no head_dim; expected a multiple"
    if not model.tensors or config.get("model_type") not in UNIFORM or not isinstance(layers, int):
        return
    expected = _expected(config)
    prefix = "" if any(name.startswith("layers.") for name in model.tensors) else "model."
    for number in range(layers):
        for part, shape in expected.items():
            name = f"{prefix}layers.{number}.{part}.weight"
            if name not in model.tensors:
                yield (
                    f"its tensors lack '{name}', which a {config['model_type']} model of {layers} layers has; it would"
                    " be drawn at random: fetch the weights again"
                )
                return
            actual = model.tensors[name].shape
            if shape and model.kind_of(name) != "bnb4" and actual != shape:
                yield (
                    f"'{name}' has the shape {list(actual)}, its config makes it {list(shape)}; config.json and weights"
                    " are of different models"
                )
                return
    beyond = [name for name in model.tensors if (match := _LAYER.search(name)) and int(match[1]) >= layers]
    if beyond and not config.get("num_nextn_predict_layers"):
        yield (
            f"its config says {layers} layers, its tensors have more ('{beyond[0]}'), which would be left out;"
            " config.json and weights are of different models"
        )
    embeddings = next((name for name in model.tensors if name.endswith("embed_tokens.weight")), None)
    if embeddings is None:
        yield f"its tensors lack the embeddings ('{prefix}embed_tokens.weight'): fetch the weights again"
    elif (
        (wide := (config.get("vocab_size"), hidden)) != model.tensors[embeddings].shape
        and None not in wide
        and model.kind_of(embeddings) != "bnb4"
    ):
        yield (
            f"'{embeddings}' has the shape {list(model.tensors[embeddings].shape)}, its config makes it {list(wide)};"
            " config.json and weights are of different models"
        )
    head, sizes = model.tensors.get("lm_head.weight"), (config.get("vocab_size"), hidden)
    if head is not None and None not in sizes and head.shape != sizes and model.kind_of("lm_head.weight") != "bnb4":
        yield (
            f"'lm_head.weight' has the shape {list(head.shape)}, its config makes it {list(sizes)}; config.json and"
            " weights are of different models"
        )


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """Each layer's matrices and their shapes; None where the config leaves a size to its class."""
    sizes = [config.get(key) for key in ("hidden_size", "intermediate_size", "num_attention_heads")]
    hidden, wide, heads = (size if isinstance(size, int) and size > 0 else None for size in sizes)
    head, kv = config.get("head_dim"), config.get("num_key_value_heads")
    # those have a default of their own
    if head is None and hidden and heads and not str(config.get("model_type")).startswith(("gemma", "qwen3")):
        head = hidden // heads
    q_size = heads * head if heads and head else None
    kv_size = kv * head if isinstance(kv, int) and head else None

    def shape(out: int | None, in_: int | None) -> tuple[int, ...] | None:
        return (out, in_) if out and in_ else None

    shapes = {
        "self_attn.q_proj": shape(q_size, hidden),
        "self_attn.o_proj": shape(hidden, q_size),
        "mlp.down_proj": shape(hidden, wide),
    }
    return (
        shapes
        | dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), shape(kv_size, hidden))
        | dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), shape(wide, hidden))
    )


def _ropes(model: Model) -> Iterator[str]:
    stated = model.text.get("rope_parameters") or model.text.get("rope_scaling")
    if not isinstance(stated, dict):
        return
    for one in [value for value in stated.values() if isinstance(value, dict)] or [stated]:
        kind = one.get("rope_type", one.get("type", "default"))
        if kind not in ROPES:
            yield f"its config has a rotary embedding of type '{kind}'; expected one of {', '.join(ROPES)}"
        if kind == "llama3" and (
            absent := [
                k
                for k in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
                if one.get(k) is None
            ]
        ):
            yield f"its config's rotary embedding of type llama3 lacks '{absent[0]}'"


def _tokens(model: Model) -> Iterator[str]:
    """Every id that the tokenizer can give, and those of special tokens, against the embeddings."""
    rows, tokenizer = model.rows, model.tokenizer
    if rows is None:
        return
    if (most := tokenizer.most()) is not None and most >= rows:
        yield _too_many(
            most, next((repr(token) for token, number in tokenizer.added.items() if number == most), "its last"), rows
        )
    for file, settings in (("config.json", model.text), ("generation_config.json", model.generation)):
        for key in SPECIAL:
            stated = settings.get(key)
            for number in stated if isinstance(stated, list) else [stated]:
                if number is not None and (not isinstance(number, int) or number >= rows):
                    yield (
                        f"{file} has {key}: {json.dumps(stated)}, the model {rows} embeddings; expected the id of one"
                        " of its tokens"
                    )
                    break


def _too_many(most: int, text: str, rows: int) -> str:
    return (
        f"its tokenizer has ids up to {most} ({text}), the model {rows} embeddings; "
        "resize the embeddings (resize_token_embeddings), or take the tokenizer that belongs to the model"
    )


def check_ids(folder: Path, words: Mapping[str, int], kind: KindCheck = check_kind) -> None:
    """Raises ModelError where a tokenizer, once loaded, can give an id that the folder's model has no embedding for.

    Its class may have added tokens that its files lack, as Qwen2's does. words: its whole vocabulary.
    """
    if not (folder / "config.json").is_file() or not words or (rows := read(folder, kind).rows) is None:
        return
    text, most = max(words.items(), key=lambda item: item[1])
    if most >= rows:
        raise ModelError(f"{folder}: {_too_many(most, repr(text), rows)}")


def _sizes(model: Model) -> Iterator[str]:
    """Sizes that are none: what transformers makes of them is another model, an endless loop or a traceback."""
    for key in SIZES:
        value = model.text.get(key)
        each = value if isinstance(value, list) and value and key in BY_LAYER else [value]
        if key in model.text and value is not None and not all(type(one) is int and 0 < one <= LARGEST for one in each):
            yield f"its config has {key}: {shown(value)}; expected a whole number from 1 on"


def _running_state(model: Model) -> Iterator[str]:
    """Layers that carry a state from token to token: rows that lie in one pass would leak into one
    another, and shared beginnings could not branch.
    """
    lists = [model.text[key] for key in LAYER_KINDS if isinstance(model.text.get(key), list)]
    kinds = [kind for kind in chain.from_iterable(lists) if isinstance(kind, str)]
    odd = [
        kind
        for kind in kinds
        if "linear" in kind
        or not any(word in kind for word in ("attention", "sliding", "dense", "sparse", "moe", "mlp"))
    ]
    odd += [key for key, value in model.text.items() if key.startswith(STATES) and value not in (None, False)]
    odd += ["xLSTM"] if model.text.get("model_type") == "xlstm" else []
    if odd:
        yield (
            f"a model of kind '{model.config.get('model_type')}' has layers that carry a state from token to token"
            f" ({odd[0]}), which rows that are read in one pass would share; expected attention in all layers, such as"
            " Llama, Qwen 3 or Gemma have"
        )


FAULTS: tuple[Callable[[Model], Iterator[str]], ...] = (_running_state, _names, _sizes, _shapes, _ropes, _tokens)


def _stored_otherwise(model: Model) -> Iterator[str]:
    kinds = sorted({METHODS[one.kind] for one in model.packed.values()})
    if kinds:
        yield (
            f"its weights are stored in {' and '.join(kinds)}; they are de-quantised once, and what is trained, merged"
            " and released is that model in 16 bits"
        )
    elif model.tensors and (method := settings_of(model.config).get("quant_method")):
        yield f"its config says that it is quantised ({method}), its tensors are plain; the tensors count"
    if model.others:
        yield (
            f"it is a '{model.config['model_type']}' with parts beside its text model: the text model alone is used and"
            f" released ({model.others} other tensors left out)"
        )


def _generation_settings(model: Model) -> Iterator[str]:
    if (odd := sampling_without_do_sample(model.generation)) is not None:
        yield (
            f"its generation settings have {odd} without do_sample, which transformers refuses to save; a merge and a"
            " release set do_sample: true"
        )


def _template(model: Model) -> Iterator[str]:
    """End and role marks that a chat template writes and the tokenizer does not know as one token."""
    unknown = [mark for mark in model.tokenizer.marks_of_template() if mark not in model.tokenizer.words]
    if unknown and model.tokenizer.words:
        yield (
            f"its chat template writes {', '.join(map(repr, unknown[:3]))}, which its tokenizer does not know as one"
            " token: a model cannot stop at it by itself"
        )


def _placeholders(model: Model) -> Iterator[str]:
    if model.rows is not None and (beyond := model.tokenizer.placeholders_from(model.rows)):
        yield (
            f"its tokenizer has {', '.join(map(repr, beyond))} for pictures or sound, beyond its {model.rows}"
            " embeddings; left out"
        )


NOTICES: tuple[Callable[[Model], Iterator[str]], ...] = (
    _stored_otherwise,
    _generation_settings,
    _template,
    _placeholders,
)

_SAMPLING: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
}
"""Settings of sampling, with the value that says nothing (transformers, GenerationConfig.validate)."""


def sampling_without_do_sample(settings: Mapping[str, Any]) -> str | None:
    """The first setting of sampling in generation settings that do not sample, as 'temperature:
    0.6'; None if there is none.
    """
    if settings.get("do_sample") is True:
        return None
    return next(
        (
            f"{key}: {settings[key]:g}"
            for key, nothing in _SAMPLING.items()
            if isinstance(settings.get(key), (int, float)) and settings[key] != nothing
        ),
        None,
    )


def check(folder: Path) -> tuple[str, ...]:
    """The notices about a model folder. Raises ModelError for its first fault."""
    return _checked(folder, state_of(folder))


@lru_cache(maxsize=64)
def _checked(folder: Path, state: str) -> tuple[str, ...]:
    model = read(folder)
    for fault in (fault for check in FAULTS for fault in check(model)):
        raise ModelError(f"{folder}: {fault}")
    return tuple(notice for check in NOTICES for notice in check(model))


def state_of(folder: Path) -> str:
    """A mark that is another one once a file that the model is read from has changed: names, sizes and times."""
    return " ".join(f"{file.name}:{(stat := file.stat()).st_size}:{stat.st_mtime_ns}" for file in files(folder, READ))
