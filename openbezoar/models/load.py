"""Models into memory: for inference as they were trained, for training with a fresh or continued adapter.

A checkpoint's older adapters are merged into the base in fp32 and cast; only its last one stays an
adapter. The base is then held as it was when that adapter was trained (NF4 or not). Where the
process is the command line's, its heap is told what to do with freed blocks (``heap``): large ones
go back while models are loaded; then a small model's passes keep theirs.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from openbezoar.errors import ModelError, brief
from openbezoar.machine import extras
from openbezoar.machine.devices import Dtype, cpu_has_bfloat16
from openbezoar.machine.foreign import foreign_file
from openbezoar.machine.heap import give_back_large_blocks, keep_freed_blocks
from openbezoar.models import driving, needs
from openbezoar.models.adapters import adapter_deltas, check_covered
from openbezoar.models.files.checks import KindCheck, check_ids
from openbezoar.models.files.quantised import BUFFER
from openbezoar.models.files.towers import check_kind
from openbezoar.models.layers import lean_layers
from openbezoar.models.lora import fast_lora
from openbezoar.models.memory import stays_packed, unpacks
from openbezoar.models.packing import pack
from openbezoar.models.references import Checkpoint
from openbezoar.models.shards import Weight, check_stored, count_values, skeleton, weights_of
from openbezoar.recipe.train_steps import ALL_LINEAR, Lora

before_loading: list[Callable[[], object]] = []
"""Called before weights are loaded into this process: by whom memory can be given back that nobody uses."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What weights of a type are held and multiplied in here: the type, or fp32 in place of bfloat16 on a
    CPU that cannot multiply it.
    """
    on_cpu = device().type == "cpu" and dtype == torch.bfloat16
    return torch.float32 if on_cpu and not cpu_has_bfloat16() else dtype


def hold(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold a model's bfloat16 values in ``dtype``, in place, one after another; what NF4 packed is unpacked to it."""
    for parts in (model.parameters(), model.buffers()):
        for tensor in parts:
            if tensor.dtype == torch.bfloat16 != dtype:
                tensor.data = tensor.data.to(dtype)
    for tensor in model.parameters():
        if state := getattr(tensor, "quant_state", None):
            state.dtype = dtype


def load_tokenizer(folder: Path, kind: KindCheck = check_kind) -> Any:
    """The tokenizer in a model folder. kind: what the model is expected to be.

    Raises ModelError if there is none, or if a SentencePiece model beside it disagrees with it
    (OpenLLaMA's automatically converted fast tokenizer is known to give other ids).
    """
    from transformers import AutoTokenizer

    extras.require(*needs.of_tokenizer(folder))  # without them transformers tells of a damaged file
    with foreign_file(folder, "a tokenizer that transformers reads", "copy the base model's tokenizer files into it"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if (folder / "tokenizer.model").is_file():
        if not (folder / "tokenizer.json").is_file():
            tokenizer = _normalising(tokenizer, folder)
        _check_sentencepiece(tokenizer, folder)
    check_ids(folder, tokenizer.get_vocab(), kind)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def window_of(model: Any, tokenizer: Any) -> int:
    """Most tokens that a model reads."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)


LARGE = 2 << 30  # bytes of a model in 16 bits, from which memory freed by a pass is given back to the system
PROBE = "Give three tips:\n  1. Eat well; 2. sleep 8 hours \u2014 don't smoke.\n\n### Response:\nna\u00efve caf\u00e9"


def _normalising(tokenizer: Any, folder: Path) -> Any:
    """A tokenizer that transformers has just converted, with the SentencePiece model's own way of
    normalising text, which the conversion leaves out.
    """
    from sentencepiece import sentencepiece_model_pb2  # type: ignore[attr-defined]
    from tokenizers import Regex, normalizers
    from transformers import PreTrainedTokenizerFast

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    rules, converted = model.normalizer_spec, tokenizer.backend_tokenizer
    steps: list[Any] = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if not steps:
        return tokenizer
    converted.normalizer = normalizers.Sequence([*steps, *([converted.normalizer] if converted.normalizer else [])])
    # The general class: the model's own would make the tokenizer again from its words, without
    # this, when a copy is loaded.
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=converted,
        model_max_length=tokenizer.model_max_length,
        chat_template=tokenizer.chat_template,
        **special,
    )


def _check_sentencepiece(tokenizer: Any, folder: Path) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    expected, actual = model.encode(PROBE), tokenizer(PROBE, add_special_tokens=False).input_ids
    if expected != actual:
        first = next(
            (i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b),
            min(len(expected), len(actual)),
        )
        remedy = "remove tokenizer.json so that the SentencePiece model is used"
        if not (folder / "tokenizer.json").is_file():
            remedy = "bring a tokenizer.json that gives the SentencePiece model's ids"
        raise ModelError(
            f"{folder}: the tokenizer and tokenizer.model disagree from token {first} of a probe text; {remedy}"
        )


def _from_pretrained(
    folder: Path, dtype: torch.dtype, quantize: Literal["nf4", "none"], weights: Mapping[str, Weight] | None = None
) -> nn.Module:
    """The model in a folder; with ``weights``, these instead of the folder's own, each made when it is its turn.

    From here on a process of ours gives freed blocks back: those that are let go while tensors are
    made and packed, and another model's, would stay as holes, gigabytes of them at the paper's size.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

    for give_back in before_loading:
        give_back()
    # smaller ones, of which a small model is made, cost more time than they leave holes
    give_back_large_blocks(8 << 20)
    settings: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    if quantize == "nf4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=arithmetic(dtype),
        )
        settings["device_map"] = {"": str(device())}
    with (
        foreign_file(folder, "a model that transformers loads", "fetch its files again, or take another model"),
        warnings.catch_warnings(),
        without_bars(),
    ):
        warnings.simplefilter("ignore")
        if weights is None:
            model, info = AutoModelForCausalLM.from_pretrained(str(folder), **settings)
        else:
            blank = skeleton(folder)
            model, info = type(blank).from_pretrained(None, config=blank.config, state_dict=weights, **settings)
            with contextlib.suppress(OSError):  # a base may have none; the model's config gave it one then
                model.generation_config = GenerationConfig.from_pretrained(str(folder))
    check_loaded(folder, info, model.state_dict().keys())
    keep_4bit_layout(model)
    lean_layers(model)
    model.requires_grad_(False)  # only adapters are ever trained
    hold(model, arithmetic(dtype))
    held: nn.Module = model if quantize == "nf4" else model.to(device())
    return held


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws none over the tensors that it loads."""
    from transformers.utils import logging as hf_logging

    if not hf_logging.is_progress_bar_enabled():
        yield
        return
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()


_reported: set[Path] = set()  # folders whose unused tensors were told of


def check_loaded(folder: Path, info: Mapping[str, Any], weights: Collection[str]) -> None:
    """What transformers passes over with a log line: tensors that it drew at random, and those that nothing uses."""
    if odd := sorted(info["mismatched_keys"], key=str):
        name, stored, expected = odd[0]
        raise ModelError(
            f"{folder}: '{name}' has the shape {list(stored)}, its config makes it {list(expected)}; config.json and"
            " weights are of different models"
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{folder}: the weights lack {len(missing)} tensor{'s' * (len(missing) > 1)} of the model, '{missing[0]}'"
            " first, which would be drawn at random; fetch the weights again, or take the config that belongs to them"
        )
    unused = sorted(name for name in info["unexpected_keys"] if not BUFFER.search(name))
    if biases := [
        name for name in unused if name.endswith(".bias") and name.removesuffix("bias") + "weight" in weights
    ]:
        raise ModelError(
            f"{folder}: '{biases[0]}' is stored, and by its config the model has no such bias, without which it is"
            " another one; take the config that belongs to the weights"
        )
    if unused and folder not in _reported:
        _reported.add(folder)
        print(
            f"  {folder.name}: {len(unused)} tensor{'s' * (len(unused) > 1)} that the model does not use, '{unused[0]}'"
            " first; left out",
            file=sys.stderr,
            flush=True,
        )


def keep_4bit_layout(model: nn.Module) -> None:
    """Forbid bitsandbytes to repack 4-bit weights on the CPU.

    In an evaluation-mode pass without gradients, bitsandbytes 0.50 repacks a CPU layer's
    weights for a faster kernel; ``train()`` does not undo it, and from then on gradients
    through the layer are None. The flag is what it asks before it repacks.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010  no such attribute is declared


def load_base(
    checkpoint: Checkpoint, adapters: tuple[Path, ...], quantize: Literal["nf4", "none"], *, dtype: str
) -> nn.Module:
    """The base with ``adapters`` merged in, held as asked for.

    Each tensor is read, merged, cast and quantised before the next one is read, so an NF4
    base is never whole in 16 bits.
    """
    folder = checkpoint.folder()
    if quantize == "none" and not adapters:
        return _from_pretrained(folder, DTYPES[dtype], quantize)
    return _from_pretrained(
        folder, DTYPES[dtype], quantize, weights_of(folder, DTYPES[dtype], device(), older=adapters)
    )


def load_unpacked(checkpoint: Checkpoint, adapters: tuple[Path, ...], dtype: str) -> nn.Module:
    """The base with ``adapters`` merged in and the values that NF4 gives it, held in ``dtype`` (or what the
    device multiplies it in), tensor by tensor.
    """
    folder, held = checkpoint.folder(), arithmetic(DTYPES[dtype])
    weights = weights_of(folder, DTYPES[dtype], device(), older=adapters, dtype=held, nf4=True)
    return _from_pretrained(folder, held, "none", weights)


def _in_16_bits(folder: Path) -> int:
    """Bytes of a model's weights in 16 bits, whatever they are stored in."""
    return 2 * count_values(folder)


def _settle(folder: Path) -> None:
    """What passes free, once the model is there: a small model's next pass takes the same pages, a large one's go back.

    Mapped afresh they cost 7 % of a training step of SmolLM2-135M; kept, a step at the
    paper's size holds twice what its tensors take.
    """
    (give_back_large_blocks if _in_16_bits(folder) > LARGE else keep_freed_blocks)()


@driving.in_all_processes(Checkpoint.folder)
def load_for_inference(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """(model, tokenizer), the model in evaluation mode and without gradients.

    The base is held in 16 bits with the values that NF4 gave it where the last adapter was
    trained on NF4, which is the same model and faster, or stays packed on a GPU that cannot
    hold those; that adapter stays unmerged.
    """
    tokenizer = load_tokenizer(checkpoint.folder())
    older, last = checkpoint.adapters[:-1], checkpoint.adapters[-1:]
    if last and checkpoint.quantize == "nf4" and stays_packed(_in_16_bits(checkpoint.folder()), checkpoint.dtype):
        model: Any = load_base(checkpoint, older, "nf4", dtype=checkpoint.dtype)
    elif last and checkpoint.quantize == "nf4":
        model = load_unpacked(checkpoint, older, checkpoint.dtype)
    else:
        model = load_base(checkpoint, older, "none", dtype=checkpoint.dtype)
    if last:
        model = wrap(model, last[0], trainable=False)
    model.eval()
    model.requires_grad_(False)
    pack(model)
    _settle(checkpoint.folder())
    return model, tokenizer


@contextlib.contextmanager
def _peft_s_old_name() -> Iterator[None]:
    """PEFT up to 0.21 asks a model for ``is_gradient_checkpointing``, which transformers 5.24 renamed; the
    warning is for PEFT, and nobody here could heed it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def wrap(model: nn.Module, adapter: Path, trainable: bool) -> Any:
    """The model with a saved adapter on it. Raises ModelError for one that is damaged."""
    from peft import PeftModel
    from peft.tuners.lora.layer import LoraLayer

    deltas = adapter_deltas(adapter)  # first, since PEFT also takes what merging refuses
    try:
        with _peft_s_old_name():
            wrapped = PeftModel.from_pretrained(
                model, str(adapter), is_trainable=trainable, autocast_adapter_dtype=trainable
            )
    except (RuntimeError, ValueError) as error:  # shapes, targets
        raise ModelError(f"{adapter}: the adapter belongs to another model ({brief(error)})") from None
    carrying = [name for name, layer in wrapped.get_base_model().named_modules() if isinstance(layer, LoraLayer)]
    check_covered(adapter, carrying, deltas)
    keep_4bit_layout(wrapped)
    fast_lora(wrapped)
    return wrapped


def load_for_training(
    checkpoint: Checkpoint,
    lora: Lora,
    quantize: Literal["nf4", "none"],
    *,
    dtype: Dtype,
    continues: bool,
    seed: int,
    nf4: Literal["auto", "packed", "unpacked"] = "auto",
) -> Any:
    """PEFT model with one trainable fp32 adapter.

    continues: train the checkpoint's last adapter further rather than put a new one on top
    of it. seed: for the new adapter's initial values. nf4: how a quantised base is held.
    """
    older = checkpoint.adapters[:-1] if continues else checkpoint.adapters
    if quantize == "nf4" and unpacks(_in_16_bits(checkpoint.folder()), nf4, dtype):
        model = load_unpacked(checkpoint, older, dtype)
    else:
        model = load_base(checkpoint, older, quantize, dtype=dtype)
    if continues:
        peft = wrap(model, checkpoint.adapters[-1], trainable=True)
        _in_32_bits(peft)
    else:
        targets = targets_of(model, lora, checkpoint.name)
        check_stored(_check_targets(model, targets, checkpoint.name), checkpoint.folder())
        peft = adapted(model, lora, seed, checkpoint.name)
    _settle(checkpoint.folder())
    return peft


def load_whole(checkpoint: Checkpoint, *, dtype: str, trained: bool) -> Any:
    """The model with all its adapters merged in, in ``dtype``; trained: with every weight trainable."""
    model = load_base(checkpoint, checkpoint.adapters, "none", dtype=dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(trained and parameter.is_floating_point())
    _settle(checkpoint.folder())
    return model


def adapted(model: Any, lora: Lora, seed: int, name: str) -> Any:
    """The model, wrapped in place, with a new trainable fp32 adapter on it.

    seed: of its initial values, drawn from torch's global generator. name: the model's, for
    messages. Raises ModelError for targets that are none of the model's linear layers.
    """
    from peft import LoraConfig, get_peft_model

    targets = targets_of(model, lora, name)
    _check_targets(model, targets, name)
    torch.manual_seed(seed)  # PEFT draws A from the global generator
    config = LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        task_type="CAUSAL_LM",
    )  # type: ignore[arg-type]
    try:
        with _peft_s_old_name():
            peft = get_peft_model(model, config)  # type: ignore[arg-type]
    except ValueError as error:  # kinds of layers that PEFT has adapters for under conditions, or none
        raise ModelError(
            f"{name}: no adapter can be put on the model ({brief(error)}); choose other layers with lora.targets"
        ) from None
    keep_4bit_layout(peft)
    fast_lora(peft)
    _in_32_bits(peft)
    return peft


def _in_32_bits(model: nn.Module) -> None:
    """Trainable parameters in fp32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def targets_of(model: Any, lora: Lora, name: str) -> list[str]:
    """The names of the layers that an adapter goes on: the recipe's, or for 'all-linear' those of every linear layer
    but the head, each by its last part where that is no other layer's. Raises ModelError where there are none.
    """
    if lora.targets != ALL_LINEAR:
        return list(lora.targets)
    head = model.get_output_embeddings()
    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]
    if not paths:
        raise ModelError(f"{name}: the model has no linear layers, on which adapters go; take another model")
    lasts = {path.rpartition(".")[2] for path in paths}
    others = {path.rpartition(".")[2] for path, _ in model.named_modules() if path not in paths}
    return sorted(lasts) if not lasts & others else sorted(paths)


def _check_targets(model: Any, targets: Sequence[str], name: str) -> list[str]:
    """The modules' names. Raises ModelError for a target that the model has not, and for one that
    is no linear layer: merging knows those only.
    """
    names: list[str] = []
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    for target in targets:
        layers = {path: layer for path, layer in model.named_modules() if path == target or path.endswith(f".{target}")}
        if not layers:
            linear = sorted(
                {
                    path.rpartition(".")[2]
                    for path, layer in model.named_modules()
                    if isinstance(layer, nn.Linear) and layer is not head
                }
            )
            has = (
                f"its linear layers are {', '.join(linear)}"
                if linear
                else "it has no linear layers, on which adapters go"
            )
            raise ModelError(f"{name}: the model has no module '{target}' for lora.targets; {has}")
        names += layers
        for layer in layers.values():
            if (layer is head and tied) or not isinstance(layer, nn.Linear):
                what = (
                    "the output head, whose weight is the embeddings' too"
                    if layer is head
                    else f"of kind {type(layer).__name__}"
                )
                raise ModelError(
                    f"{name}: '{target}' of lora.targets is {what}; adapters go on linear layers with a weight of"
                    " their own"
                )
    return names


def free() -> None:
    """Give freed models' memory back, in all processes that are driven."""
    driving.collect()
    driving.release()
