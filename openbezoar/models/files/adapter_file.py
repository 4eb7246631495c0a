"""An adapter in PEFT's format, held against its own description before it is used. Reads
``adapter_config.json`` and the weights beside it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from openbezoar.errors import ModelError
from openbezoar.machine.foreign import foreign_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A, B = ".lora_A.weight", ".lora_B.weight"
REMEDY = "run the step that trained it again, or take the adapter's two files from one place"


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what the config says, tensors by name): for each module an A [rank, in] and a B [out, rank],
    of the rank that the config states.

    Raises ModelError for files that cannot be read, that hold something else, or do not belong together.
    """
    with foreign_file(folder / CONFIG, "an adapter's config", REMEDY):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        rank, alpha = config["r"], config["lora_alpha"]
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise ModelError(
                f"{folder / CONFIG}: r {rank!r} and lora_alpha {alpha!r}, expected a whole number from 1 and a number;"
                f" {REMEDY}"
            )
    with foreign_file(folder / WEIGHTS, "an adapter's weights", REMEDY):
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if name.endswith((A, B)):
            if name.removesuffix(A if name.endswith(A) else B) + (B if name.endswith(A) else A) not in tensors:
                raise ModelError(f"{folder / WEIGHTS}: '{name}' has no other half; {REMEDY}")
            if tensor.dim() != 2 or (
                not config.get("rank_pattern") and tensor.shape[0 if name.endswith(A) else 1] != rank
            ):
                raise ModelError(
                    f"{folder / WEIGHTS}: '{name}' is {list(tensor.shape)}, but {CONFIG} beside it says rank {rank};"
                    f" {REMEDY}"
                )
    return config, tensors
