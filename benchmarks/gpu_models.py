"""What the parts of ``benchmarks.gpu`` share: where they run, what they find, random models and rows, times.

All models are random, of the paper's shape on a GPU and very small with ``tiny``; values do not change times.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.full_size import SHAPE as PAPER
from openbezoar.forest import TokenPath, Tree
from openbezoar.recipe.train_steps import Lora

MIDDLE = {"hidden": 512, "layers": 4, "heads": 8, "kv_heads": 4, "mlp": 1408, "vocabulary": 4096}
SMALL = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 128, "vocabulary": 512}
TARGETS = ["q_proj", "k_proj", "v_proj"]
SHARE = 0.6  # of the measured matmul rate that a pass is to reach on a GPU
EXACT = 1e-5  # relative, in fp32
ROUGH = 2e-2  # relative, in 16 bits
WITHIN = 0.15  # of the estimate of memory


class CannotRun(Exception):
    """The part needs what is not here."""


@dataclass
class Found:
    """What a part has found. checks: name → (passed, the number, its limit)."""

    numbers: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: dict[str, Any] = field(default_factory=dict)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """A number that is right up to a limit; not a number is wrong."""
        self.checks[name] = {"passed": bool(value <= limit), "value": value, "at_most": limit}

    def holds(self, name: str, passed: bool) -> None:
        """Something that is so or not."""
        self.checks[name] = {"passed": bool(passed)}

    def target(self, name: str, value: float, met: bool, aim: str) -> None:
        """A speed or count that is aimed at."""
        self.targets[name] = {"value": value, "met": bool(met), "aim": aim}

    def line(self) -> dict[str, Any]:
        """As JSON. ok: every check passed, and there was one."""
        failed = [name for name, check in self.checks.items() if not check["passed"]]
        why = f"wrong: {', '.join(failed)}" if failed else ""
        return {"ok": bool(self.checks) and not failed, "why": why, **vars(self)}


@dataclass(frozen=True)
class Place:
    """Where and on what a part runs."""

    device: torch.device
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic that is timed: what the device multiplies fast."""
        if not self.on_gpu:
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16

    @property
    def timed(self) -> dict[str, int]:
        """The shape of models that are timed."""
        return SMALL if self.tiny else PAPER if self.on_gpu else MIDDLE

    @property
    def compared(self) -> dict[str, int]:
        """The shape of models whose numbers are compared."""
        return SMALL if self.tiny else MIDDLE

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def times(self, what: Callable[[], object], n: int = 5, warm: int = 2) -> list[float]:
        """Seconds of n calls after some that warm up; with tiny of one after one."""
        if self.tiny:
            n = warm = 1
        seconds = []
        for i in range(warm + n):
            self.wait()
            begun = time.perf_counter()
            what()
            self.wait()
            if i >= warm:
                seconds.append(time.perf_counter() - begun)
        return seconds

    def peak(self, what: Callable[[], object]) -> int | None:
        """Most bytes allocated on a GPU during a call; None on a CPU."""
        if not self.on_gpu:
            what()
            return None
        torch.cuda.reset_peak_memory_stats()
        what()
        self.wait()
        return int(torch.cuda.max_memory_allocated())


# ------------------------------------------------------------------------ models and rows


def base_model(shape: dict[str, int], place: Place, dtype: torch.dtype, ours: bool = True) -> Any:
    """A random Llama on the device, the same for the same shape; ours: with the package's layers."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from openbezoar.models.layers import lean_layers

    config = LlamaConfig(
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape.get("kv_heads", shape["heads"]),
        intermediate_size=shape["mlp"],
        vocab_size=shape["vocabulary"],
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with place.device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if ours:
        lean_layers(model)
    model.requires_grad_(False)
    return model


def adapter(dropout: float = 0.0) -> Lora:
    """The adapter of all parts."""
    return Lora(r=16, dropout=dropout, targets=TARGETS)


def our_model(
    shape: dict[str, int], place: Place, dtype: torch.dtype, dropout: float = 0.0, nf4: bool = False, grown: bool = True
) -> Any:
    """The model with an adapter as the package trains it; nf4: packed; grown: with an adapter that does something."""
    from openbezoar.models.load import adapted

    base = base_model(shape, place, dtype)
    if nf4:
        pack_nf4(base, dtype)
    return _grown(adapted(base, adapter(dropout), 0, "random"), grown)


def plain_model(shape: dict[str, int], place: Place, dtype: torch.dtype) -> Any:
    """The same values in transformers' and PEFT's own layers."""
    from peft import LoraConfig, get_peft_model

    base = base_model(shape, place, dtype, ours=False)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
    return _grown(get_peft_model(base, config), True)


def _grown(model: Any, grown: bool) -> Any:
    """With B no longer zero, so that A has a gradient; the same values on every device."""
    for i, (name, value) in enumerate(sorted(model.named_parameters())):
        if grown and "lora_B" in name:
            drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(i))
            value.data.copy_(0.02 * drawn)
    return model


def pack_nf4(model: nn.Module, dtype: torch.dtype) -> None:
    """Put bitsandbytes' 4-bit layers in place of a model's linear ones, but for the head."""
    import bitsandbytes as bnb

    from openbezoar.models.load import keep_4bit_layout

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                packed = bnb.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    quant_type="nf4",
                    compress_statistics=True,
                )
                packed.weight = bnb.nn.Params4bit(
                    child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                setattr(parent, name, packed.to(child.weight.device))
    keep_4bit_layout(model)
    setattr(model, "is_loaded_in_4bit", True)  # noqa: B010  what PEFT asks for; no such attribute is declared


def drawn_rows(n: int, place: Place, longest: int = 512) -> list[Tree]:
    """Rows as instructions have them: lengths with a long tail, half of each prompt, half answer."""
    draw = random.Random(1)
    top = place.timed["vocabulary"]
    rows: list[Tree] = []
    for _ in range(n):
        length = max(16, min(longest, int(draw.lognormvariate(math.log(longest / 4), 0.8))))
        ids = [draw.randrange(3, top) for _ in range(length)]
        rows.append((TokenPath.of(ids[: length // 2], ids[length // 2 :]),))
    return rows


def drawn_pairs(n: int, place: Place, prompt: int = 120, reply: int = 80) -> list[Tree]:
    """Pairs with a long prompt in common and two answers of unlike lengths."""
    draw = random.Random(2)
    if place.tiny:
        prompt, reply = 12, 8
    top = place.timed["vocabulary"]

    def words(n: int) -> list[int]:
        return [draw.randrange(3, top) for _ in range(n)]

    pairs: list[Tree] = []
    for _ in range(n):
        stem = words(draw.randint(prompt // 2, 2 * prompt))
        pairs.append(
            tuple(TokenPath.of(stem, [3 + side, *words(draw.randint(reply // 2, 2 * reply))]) for side in (0, 1))
        )
    return pairs


def tokens_of(trees: Sequence[Tree]) -> int:
    """Tokens as they are written, each path's own."""
    return sum(len(path.ids) for tree in trees for path in tree)


def plain_scores(model: Any, paths: Sequence[TokenPath], device: torch.device) -> list[Tensor]:
    """The asked-for log-probabilities of padded rows by the model's own forward pass, as any loop would."""
    width = max(len(path.ids) for path in paths)
    ids, mask = (torch.zeros(len(paths), width, dtype=torch.long) for _ in range(2))
    for r, path in enumerate(paths):
        ids[r, : len(path.ids)], mask[r, : len(path.ids)] = torch.tensor(path.ids), 1
    ids = ids.to(device)
    logits = model(input_ids=ids, attention_mask=mask.to(device)).logits[:, :-1].float()
    every = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    places = [[c - 1 for c, scored in enumerate(path.scored) if scored] for path in paths]
    return [every[r, torch.tensor(columns, device=device)] for r, columns in enumerate(places)]


def gradient(model: nn.Module) -> Tensor:
    """All gradients as one fp32 vector, which are let go."""
    parts = [p.grad.detach().flatten().float() for _, p in sorted(model.named_parameters()) if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(parts)


def off(found: Tensor, wanted: Tensor) -> float:
    """Greatest difference over the greatest value."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).abs().max() / wanted.abs().max())


def free() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def row(setting: dict[str, Any], seconds: Sequence[float], tokens: int, work: float, rate: float) -> dict[str, Any]:
    """A line of a table of speeds. work: floating-point operations that are needed; rate: FLOP/s of a product."""
    middle = statistics.median(seconds)
    return {
        "setting": setting,
        "ms": {"median": 1e3 * middle, "min": 1e3 * min(seconds), "max": 1e3 * max(seconds)},
        "tokens_per_second": tokens / middle,
        "tflops": work / middle / 1e12,
        "share": work / middle / rate,
    }


def product_rate(place: Place, rows: int = 8192, dtype: torch.dtype | None = None) -> float:
    """FLOP/s of [rows, hidden] × [hidden, mlp], the product that a model's layers are made of."""
    shape, rows = place.timed, 64 if place.tiny else rows if place.on_gpu else 512
    dtype = dtype or place.dtype
    left = torch.randn(rows, shape["hidden"], device=place.device, dtype=dtype)
    right = torch.randn(shape["hidden"], shape["mlp"], device=place.device, dtype=dtype)
    best = min(place.times(lambda: left @ right, n=10))
    return 2 * rows * shape["hidden"] * shape["mlp"] / best


def recompute(model: Any, layers: int) -> None:
    """Switch activation checkpointing on in the first so many decoder layers."""
    base = model.get_base_model()
    if layers:
        # the second is its older name
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        base.disable_input_require_grads()
    for number, layer in enumerate(base.model.layers):
        layer.gradient_checkpointing = number < layers
