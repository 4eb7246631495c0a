"""In which form a model folder's weights are stored: by its tensors, since a config may be silent or out of date.

A tensor that is packed with scales of its own stands for a weight only together with them.
Those that can be made plain are found here, with what belongs to each; any other sign of
quantisation is refused by name. Reads names, dtypes and shapes; no torch.

fp8:  w = q · s, a scale a tensor, a row, or a block (arXiv 2412.19437, section 3.3.2)
bnb8: w = q · s / 127, a scale a row (arXiv 2208.07339, section 2)
bnb4: blocks of codes with scales, perhaps quantised again (arXiv 2305.14314, section 3); bitsandbytes reads them
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openbezoar.errors import ModelError
from openbezoar.models.files.stored import Stored

PLAIN = {"F64", "F32", "F16", "BF16"}
CONFIG_KEYS = ("quantization_config", "compression_config")
BLOCK = 128  # of FP8 where neither config nor shapes say; what DeepSeek's and Qwen's checkpoints have
METHODS = {"fp8": "FP8", "bnb4": "bitsandbytes 4-bit", "bnb8": "bitsandbytes 8-bit"}
# Masks and tables that old checkpoints carry and no weight depends on.
BUFFER = re.compile(r"(^|\.)(masked_bias|position_ids|inv_freq|attn\.bias|attention\.bias|num_batches_tracked)$")
# Scales of activations and of the key/value cache: they say nothing about a weight.
BESIDE = re.compile(r"(^|\.)(input_scale|activation_scale|[qkv]_scale|kv_scale|output_scale|input_global_scale)$")
_SIGN = re.compile(
    r"(^|[._])(qweight|qzeros|g_idx|absmax|quant_map|quant_state|scb|weight_format"
    r"|scale_inv|weight_scale(_inv|_2)?|weight_packed|weight_shape"
    r"|weight_zero_point|weight_global_scale|w_q)$|:_weight|\._(data|scale)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Packed:
    """A weight stored with scales. parts: the names of the tensors that belong to it; scale: that
    of its scales; block: rows and columns of a scale.
    """

    kind: Literal["fp8", "bnb4", "bnb8"]
    parts: tuple[str, ...]
    scale: str | None = None
    block: tuple[int, int] | None = None


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of its quantisation, at the top or in the part of its language model;
    empty if it says nothing.
    """
    for place in (
        config,
        *(value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)),
    ):
        for key in CONFIG_KEYS:
            if isinstance(place.get(key), dict) and place[key]:
                return dict(place[key])
    return {}


def without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says nothing of quantisation, as that of plain weights."""
    rest = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
    return {
        key: without_settings(value) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in rest.items()
    }


def packed_weights(where: str, config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Packed]:
    """The weights that are stored with scales, by name. Empty where all are plain.

    Raises ModelError for weights in a form that cannot be made plain here.
    """
    settings = settings_of(config)
    packed: dict[str, Packed] = {}
    parts_of: dict[str, list[str]] = {}
    for name in tensors:
        if ".weight." in name:
            parts_of.setdefault(name[: name.index(".weight.") + len(".weight")], []).append(name)
    for name, tensor in tensors.items():
        if (one := _packed(where, name, tensor, tensors, parts_of.get(name, []), settings)) is not None:
            packed[name] = one
    accounted = {part for one in packed.values() for part in one.parts} | set(packed)
    for name, tensor in tensors.items():
        # one number, such as a count of steps, is no weight
        odd = tensor.dtype not in PLAIN and tensor.shape != () and not BUFFER.search(name)
        if name not in accounted and not BESIDE.search(name) and (odd or _SIGN.search(name)):
            raise _refused(where, settings, f"'{name}' is stored as {tensor.dtype}")
    if settings.get("transform_config"):
        raise _refused(where, settings, "its config has a transform_config, which changes what the weights stand for")
    return packed


def _packed(
    where: str, name: str, tensor: Stored, tensors: Mapping[str, Stored], inside: list[str], settings: Mapping[str, Any]
) -> Packed | None:
    if any(".quant_state.bitsandbytes__" in part for part in inside):
        return Packed("bnb4", tuple(inside))
    stem = name.removesuffix("weight")
    if tensor.dtype == "I8" and (scale := f"{stem}SCB") in tensors:
        return Packed("bnb8", tuple(part for part in (scale, f"{stem}weight_format") if part in tensors), scale)
    if tensor.dtype in ("F8_E4M3", "F8_E5M2") and name.endswith("weight"):
        for scale in (f"{name}_scale_inv", f"{name}_scale"):
            if scale in tensors:
                return Packed("fp8", (scale,), scale, _block(where, name, tensor.shape, tensors[scale].shape, settings))
        raise _refused(where, settings, f"'{name}' is stored as {tensor.dtype} without scales")
    return None


def _block(
    where: str, name: str, shape: tuple[int, ...], scales: tuple[int, ...], settings: Mapping[str, Any]
) -> tuple[int, int]:
    """Rows and columns that one scale is of: of a scale for all, a row, or a block."""
    if len(shape) != 2:
        raise _refused(where, settings, f"'{name}' has the shape {list(shape)}")
    rows, columns = shape
    if len(scales) < 2:
        number = scales[0] if scales else 1
        if number in (1, rows):
            return (rows if number == 1 else 1), columns
    elif len(scales) == 2:
        stated = settings.get("weight_block_size")
        blocks = [(stated[0], stated[1])] if isinstance(stated, (list, tuple)) and len(stated) == 2 else []
        if not blocks or scales in ((1, 1), (rows, 1)):
            even = rows % scales[0] == 0 and columns % scales[1] == 0 if all(scales) else False
            blocks += [(BLOCK, BLOCK), *([(rows // scales[0], columns // scales[1])] if even else [])]
        for block in blocks:
            if all(block) and (-(-rows // block[0]), -(-columns // block[1])) == scales:
                return block
    raise _refused(
        where, settings, f"the scales of '{name}' have the shape {list(scales)}, which fits no blocks of {list(shape)}"
    )


def _refused(where: str, settings: Mapping[str, Any], what: str) -> ModelError:
    method = settings.get("quant_method") or settings.get("quantization_method") or settings.get("format")
    hint = f" (its config says {method})" if method else ""
    return ModelError(
        f"{where}: its weights are quantised{hint}: {what}, which is not read here; expected 16 or 32 bits, FP8 with"
        " scales or bitsandbytes: name the model that was quantised, or save it de-quantised with its own package"
    )
