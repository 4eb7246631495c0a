"""A saved LoRA adapter as the updates that it stands for: w + s B A, on linear layers, with s = alpha / r
(arXiv 2106.09685, section 4.1), or alpha / sqrt(r) where it is rank-stabilised (arXiv 2312.03732, theorem 3.2).

Merging computes this sum itself, so whatever of PEFT's settings would make it another sum is
refused by name, the ones that do not exist yet too. Reads PEFT's folder (``adapter_file``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from openbezoar.errors import ModelError
from openbezoar.models.files.adapter_file import CONFIG, WEIGHTS, A, B, read_adapter

HEAD = "base_model.model."
# Settings that say where an adapter is or how it was trained, not what its update is; any other one has to be off.
_NO_PART = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "use_rslora",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "qalora_group_size",
    "init_lora_weights",
}
_OFF: tuple[object, ...] = (None, False, 0, "", "none", [], {})
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")  # others (PiSSA, OLoRA, LoftQ, …) change the base's weights too


@dataclass(frozen=True, eq=False)
class Update:
    """A LoRA update of one weight: scale * b @ a, float32 a [r, in], b [out, r]."""

    a: Tensor
    b: Tensor
    scale: float

    def onto(self, weight: Tensor) -> Tensor:
        """The weight [out, in] with the update added, in float32."""
        return weight.float() + self.scale * (self.b.to(weight.device) @ self.a.to(weight.device))


def adapter_deltas(folder: Path) -> dict[str, Update]:
    """A PEFT LoRA folder as {module name: its update}.

    Raises ModelError for one that is damaged, or that is more than updates of linear layers.
    """
    from peft import LoraConfig

    config, tensors = read_adapter(folder)
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise ModelError(f"{folder}: an adapter of kind {kind}; expected LoRA: merge it with PEFT first")
    usual = LoraConfig().to_dict()  # what a newer PEFT writes by itself is no choice of anybody's
    for key, value in config.items():
        if (key not in _NO_PART and value not in _OFF and (key not in usual or value != usual[key])) or (
            key == "init_lora_weights" and value not in _PLAIN_STARTS and value is not None
        ):
            raise ModelError(f"{folder}: adapters with {key} cannot be merged here; merge with PEFT first")
    if others := [name for name in tensors if not name.endswith((A, B))]:
        raise ModelError(
            f"{folder}: '{others[0]}' is no LoRA weight of a linear layer and cannot be merged here; merge with PEFT"
            " first"
        )
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    modules = [name.removesuffix(A) for name in tensors if name.endswith(A)]
    if not modules:
        raise ModelError(f"{folder}: no LoRA weights in {WEIGHTS}")
    return {
        name.removeprefix(HEAD): Update(tensors[name + A].float(), tensors[name + B].float(), scale) for name in modules
    }


def check_covered(folder: Path, layers: Iterable[str], deltas: dict[str, Update]) -> None:
    """Raises ModelError unless a file has an update for every layer that carries the adapter, and
    for no other: PEFT leaves the rest as they begin.
    """
    layers = set(layers)
    if absent := sorted(layers - set(deltas)):
        raise ModelError(
            f"{folder}: {WEIGHTS} has no update of '{absent[0]}', which {CONFIG} names; it would be left untrained: run"
            " the step again"
        )
    if beyond := sorted(set(deltas) - layers):
        raise ModelError(
            f"{folder}: {WEIGHTS} has an update of '{beyond[0]}', which the model with {CONFIG} has no place for; the"
            " adapter belongs to another model"
        )
