"""Models into memory: for inference as they were trained, for training with a fresh or continued adapter.

A checkpoint's older adapters are merged into the base in fp32 and cast; only its last one
stays an adapter. The base is then held as it was when that adapter was trained (NF4 or not).
"""

from __future__ import annotations

import gc
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openbezoar.errors import ModelError
from openbezoar.models import Checkpoint
from openbezoar.recipe import Lora
from openbezoar.training.lora import fast_lora

# bitsandbytes advises an optional kernel package on every CPU; PEFT calls a name that transformers renamed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model folder.

    Raises ModelError if there is none, or if a SentencePiece model beside it disagrees with it
    (OpenLLaMA's automatically converted fast tokenizer is known to give other ids).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no usable tokenizer ({' '.join(str(error).split())[:120]}); copy the base model's tokenizer files into it") from None
    if (folder / "tokenizer.model").is_file():
        _check_sentencepiece(tokenizer, folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


PROBE = "Give three tips:\n  1. Eat well; 2. sleep 8 hours \u2014 don't smoke.\n\n### Response:\nna\u00efve caf\u00e9"


def _check_sentencepiece(tokenizer: Any, folder: Path) -> None:
    try:
        import sentencepiece
    except ImportError:
        return
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    wanted, got = model.encode(PROBE), tokenizer(PROBE, add_special_tokens=False).input_ids
    if wanted != got:
        first = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
        raise ModelError(
            f"{folder}: tokenizer.json and tokenizer.model disagree from token {first} of a probe text; remove tokenizer.json so that the SentencePiece model is used"
        )


def _from_pretrained(folder: Path, dtype: torch.dtype, quantize: Literal["nf4", "none"]) -> nn.Module:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    if quantize == "nf4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        settings["device_map"] = {"": str(device())}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = AutoModelForCausalLM.from_pretrained(str(folder), **settings)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:160]})") from None
    keep_4bit_layout(model)
    model.requires_grad_(False)  # only adapters are ever trained
    return model if quantize == "nf4" else model.to(device())


def keep_4bit_layout(model: nn.Module) -> None:
    """Forbid bitsandbytes to repack 4-bit weights on the CPU.

    In an evaluation-mode pass without gradients, bitsandbytes 0.50 repacks a CPU layer's
    weights for a faster kernel; ``train()`` does not undo it, and from then on gradients
    through the layer are None. The flag is what it asks before it repacks.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010  no such attribute is declared


def adapter_deltas(folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A PEFT LoRA folder as {module name: (A, B, scale)}; the update is scale * B @ A, in fp32."""
    import json

    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for unknown in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
        if config.get(unknown):
            raise ModelError(f"{folder}: adapters with {unknown} cannot be merged here; merge with PEFT first")
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    deltas = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
            deltas[module] = (a.float(), tensors[name.replace(".lora_A.", ".lora_B.")].float(), scale)
    if not deltas:
        raise ModelError(f"{folder}: no LoRA weights in adapter_model.safetensors")
    return deltas


@torch.no_grad()
def merge_into(model: nn.Module, adapter: Path) -> None:
    """Add an adapter to a 16- or 32-bit model's weights: W + scale * B A in fp32, then the weight's own dtype."""
    modules = dict(model.named_modules())
    for name, (a, b, scale) in adapter_deltas(adapter).items():
        if name not in modules:
            raise ModelError(f"{adapter}: the model has no module '{name}'; the adapter belongs to another model")
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        weight.copy_((weight.float() + scale * (b.to(weight.device) @ a.to(weight.device))).to(weight.dtype))


def dequantize_nf4(model: nn.Module) -> None:
    """Replace every linear layer's weight by what NF4 with double quantisation makes of it, in place.

    The output head and embeddings stay, as bitsandbytes leaves them.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    head = model.get_output_embeddings()  # type: ignore[operator]
    for layer in model.modules():
        if type(layer) is nn.Linear and layer is not head:
            packed, state = quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True)
            layer.weight.data = dequantize_4bit(packed, state).to(layer.weight.dtype)


def load_base(checkpoint: Checkpoint, adapters: tuple[Path, ...], quantize: Literal["nf4", "none"], dtype: str) -> nn.Module:
    """The base with ``adapters`` merged in, held as asked for.

    Merging before quantising needs the merged weights as a folder, so they pass through a
    temporary one when both are wanted.
    """
    folder = checkpoint.folder()
    if not adapters:
        return _from_pretrained(folder, DTYPES[dtype], quantize)
    model = _from_pretrained(folder, DTYPES[dtype], "none")
    for adapter in adapters:
        merge_into(model, adapter)
    if quantize == "none":
        return model
    import tempfile

    with tempfile.TemporaryDirectory(prefix="openbezoar-") as scratch:
        model.should_save_on_this_rank = lambda is_main_process: True  # type: ignore[assignment]  # each process reads its own folder
        model.save_pretrained(scratch)  # type: ignore[operator]
        del model
        gc.collect()
        return _from_pretrained(Path(scratch), DTYPES[dtype], quantize)


def load_for_inference(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """(model, tokenizer), the model in evaluation mode and without gradients.

    The base is held in 16 bits with the values that NF4 gave it where the last adapter was
    trained on NF4, which is the same model and faster; that adapter stays unmerged.
    """
    tokenizer = load_tokenizer(checkpoint.folder())
    older, last = checkpoint.adapters[:-1], checkpoint.adapters[-1:]
    model: Any = load_base(checkpoint, older, "none", checkpoint.dtype)
    if last:
        if checkpoint.quantize == "nf4":
            dequantize_nf4(model)
        model = wrap(model, last[0], trainable=False)
    model.eval()
    model.requires_grad_(False)
    return model, tokenizer


def _unpacked_fits(checkpoint: Checkpoint, dtype: str) -> bool:
    """On a CPU, whether the weights at the dtype's width take at most a quarter of the memory that is free now."""
    if device().type != "cpu":
        return False
    stored = sum(path.stat().st_size for path in checkpoint.folder().glob("*.safetensors"))  # in 16 bits
    free = _free_memory()
    return stored * (2 if dtype == "float32" else 1) <= free / 4


def _free_memory() -> int:
    """Bytes that can be allocated without swapping; without Linux's /proc, half of all memory."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def wrap(model: nn.Module, adapter: Path, trainable: bool) -> Any:
    """The model with a saved adapter on it."""
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable, autocast_adapter_dtype=trainable)
    keep_4bit_layout(wrapped)
    fast_lora(wrapped)
    return wrapped


def load_for_training(
    checkpoint: Checkpoint,
    lora: Lora,
    quantize: Literal["nf4", "none"],
    dtype: str,
    continues: bool,
    seed: int,
    nf4: Literal["auto", "packed", "unpacked"] = "auto",
) -> Any:
    """PEFT model with one trainable fp32 adapter.

    continues: train the checkpoint's last adapter further rather than put a new one on top
    of it. seed: for the new adapter's initial values. nf4: how a quantised base is held.
    """
    from peft import LoraConfig, get_peft_model

    older = checkpoint.adapters[:-1] if continues else checkpoint.adapters
    if quantize == "nf4" and (nf4 == "unpacked" or (nf4 == "auto" and _unpacked_fits(checkpoint, dtype))):
        model = load_base(checkpoint, older, "none", dtype)
        dequantize_nf4(model)
    else:
        model = load_base(checkpoint, older, quantize, dtype)
    if continues:
        peft = wrap(model, checkpoint.adapters[-1], trainable=True)
    else:
        missing = [t for t in lora.targets if not any(name.endswith(f".{t}") for name, _ in model.named_modules())]
        if missing:
            raise ModelError(f"{checkpoint.name}: the model has no module '{missing[0]}' for lora.targets; look at its layers' names")
        torch.manual_seed(seed)  # PEFT draws A from the global generator
        config = LoraConfig(
            r=lora.r,
            lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets),
            task_type="CAUSAL_LM",
        )  # type: ignore[arg-type]
        peft = get_peft_model(model, config)  # type: ignore[arg-type]
        keep_4bit_layout(peft)
        fast_lora(peft)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft


def free() -> None:
    """Give freed models' memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
