"""A model folder as it is trained from: plain weights, the text model alone, a config that says what the tensors say.

Most folders are that already. Of the others a copy is made once in the cache: quantised weights
de-quantised by their own arithmetic, a text model taken out of its wrapper, ``tie_word_embeddings``
as the tensors have it, placeholders that have no embedding out of the tokenizer. What does not
change is a link. So whatever reads models here (training, merging, scores, GGUF) reads plain ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbezoar.models.files.checks import EMBEDDINGS, HEADS, Model, check, read, state_of
from openbezoar.models.files.gguf import SOURCE, making
from openbezoar.models.files.quantised import BESIDE, METHODS, Packed, settings_of, without_settings
from openbezoar.models.files.stored import INDEX, READ, TERMS, WEIGHTS, files, optional_json, same_bytes, tensors_of
from openbezoar.models.files.towers import is_wrapper, text_names
from openbezoar.store.digests import digest
from openbezoar.store.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

FORM = 1  # of the copies; raised when they would come out otherwise
SHARD_BYTES = 1 << 30  # what is held while a copy is written
_PICTURES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class Mends:
    """What a folder needs. Empty where it is read as it is."""

    weights: bool  # to be written anew
    tied: bool | None  # what the config has to say; None where it is right
    settings: bool  # a config that speaks of quantisation its tensors have not
    placeholders: tuple[str, ...]
    reasons: tuple[str, ...]


def plain(folder: Path, cache: Path) -> Path:
    """The folder itself, or its plain copy, made once. Raises ModelError where a check finds a fault."""
    check(folder)
    return _plain(folder, cache, state_of(folder))


@lru_cache(maxsize=64)
def _plain(folder: Path, cache: Path, state: str) -> Path:
    model = read(folder)
    mends = mends_of(model)
    if not mends.reasons:
        return folder
    out = cache / f"plain-{digest([FORM, str(folder.resolve()), state])[:16]}"
    with making(out) as work:
        if work is not None:
            print(f"  {folder.name}: {'; '.join(mends.reasons)} (once; kept in {out})", file=sys.stderr, flush=True)
            _copy(model, mends, work)
    return out


def mends_of(model: Model) -> Mends:
    """What a folder needs before it is what its config says."""
    reasons, weights = [], bool(model.packed) or is_wrapper(model.config)
    if model.packed:
        reasons.append(f"de-quantising {' and '.join(sorted({METHODS[one.kind] for one in model.packed.values()}))}")
    if is_wrapper(model.config):
        reasons.append("taking the text model out of its wrapper")
    if settings := bool(settings_of(model.config)) and not model.packed:
        reasons.append("its config says quantised, its tensors are plain")
    tied = tied_in(model)
    if tied is not None and not weights and tied == _tied_by_config(model):
        tied = None
    elif tied is not None and not weights:
        reasons.append(
            f"its tensors have {'one matrix for embeddings and head' if tied else 'a head of their own'}, its config"
            " says otherwise"
        )
    beyond = tuple(model.tokenizer.placeholders_from(model.rows)) if model.rows is not None else ()
    if beyond:
        reasons.append(f"leaving {', '.join(beyond)} out of the tokenizer, which has no embedding")
    return Mends(weights, tied, settings, beyond, tuple(reasons))


def tied_in(model: Model) -> bool | None:
    """Whether the head is the embedding matrix, by the tensors: it is not stored, or holds the same
    bytes. None where neither can be told by name.
    """
    embeddings = next((name for name in model.tensors if name.endswith(EMBEDDINGS)), None)
    head = next((name for name in model.tensors if name in HEADS), None)
    if embeddings is None:
        return None
    if head is None:
        return True
    return not {head, embeddings} & set(model.packed) and same_bytes(model.tensors[head], model.tensors[embeddings])


def _tied_by_config(model: Model) -> bool | None:
    """What transformers takes the config for; None where it cannot be asked, or the family has no such word."""
    if (stated := model.config.get("tie_word_embeddings")) is not None:
        return bool(stated)
    try:
        from transformers import AutoConfig

        return bool(AutoConfig.from_pretrained(str(model.folder)).tie_word_embeddings)
    except (ImportError, ValueError, KeyError, OSError, AttributeError):
        return tied_in(model)


# ------------------------------------------------------------------------------ the copy


def _copy(model: Model, mends: Mends, work: Path) -> None:
    config = without_settings({**model.text, **({} if mends.tied is None else {"tie_word_embeddings": mends.tied})})
    written = {"config.json", SOURCE, *(_PICTURES if mends.weights else ())}
    if mends.weights:
        dtype = _write_weights(model, work, _dtype(config))
        config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": dtype}
        written |= {INDEX, *(file.name for file in files(model.folder, WEIGHTS))}
    if mends.placeholders:
        written |= _write_tokenizer(model.folder, work, set(mends.placeholders))
    write_json(work / "config.json", config)
    for file in files(model.folder, (*READ, *TERMS)):
        if file.name not in written:
            (work / file.name).symlink_to(file.resolve())
    write_json(
        work / SOURCE,
        {**optional_json(model.folder / SOURCE), "from": model.folder.name, "changed": list(mends.reasons)},
    )


def _dtype(config: Mapping[str, Any]) -> str:
    """The 16 or 32 bits that de-quantised weights get: as the config says, else bfloat16."""
    stated = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return stated if stated in ("bfloat16", "float16", "float32") else "bfloat16"


def _write_weights(model: Model, work: Path, dtype: str) -> str:
    """Write the plain tensors as shards of a gigabyte at most, or one tensor; returns the config's dtype."""
    from safetensors.torch import save_file

    shards: list[tuple[Path, list[str]]] = []
    buffer: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        nonlocal buffer, size
        file = work / f"shard-{len(shards)}"
        save_file(buffer, file, metadata={"format": "pt"})
        shards.append((file, list(buffer)))
        buffer, size = {}, 0

    for name, value in _values(model, dtype):
        if buffer and size + value.nbytes > SHARD_BYTES:
            flush()
        buffer[name] = value
        size, total = size + value.nbytes, total + value.nbytes
    flush()
    where: dict[str, str] = {}
    for number, (file, names) in enumerate(shards, 1):
        final = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file.rename(work / final)
        where |= dict.fromkeys(names, final)
    if len(shards) > 1:
        write_json(work / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return dtype


def _values(model: Model, dtype: str) -> Iterator[tuple[str, Tensor]]:
    """The text model's tensors one after another, plain."""
    import torch
    from safetensors import safe_open

    stored = tensors_of(model.folder)
    theirs = text_names(stored) if is_wrapper(model.config) else dict(zip(stored, stored, strict=True))
    parts = {part for one in model.packed.values() for part in one.parts}

    def value(name: str) -> Tensor:
        with safe_open(stored[name].file, framework="pt") as opened:  # type: ignore[no-untyped-call]
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    make: Mapping[str, Callable[[Tensor, Packed, Callable[[str], Tensor]], Tensor]] = {
        "fp8": _from_fp8,
        "bnb8": _from_bnb8,
        "bnb4": _from_bnb4,
    }
    for ours, name in theirs.items():
        if name in parts or (model.packed and BESIDE.search(name)):  # plain weights have no scales of activations
            continue
        one = model.packed.get(ours)
        yield (
            ours,
            (
                value(name).contiguous()
                if one is None
                else make[one.kind](value(name), one, value).to(getattr(torch, dtype)).contiguous()
            ),
        )


def _from_fp8(codes: Tensor, one: Packed, value: Callable[[str], Tensor]) -> Tensor:
    """w [out, in] = q · s in float32; s is of one block [rows, columns] each. Scales of 8 bits are
    powers of two: 2^(byte - 127).
    """
    import torch

    assert one.scale is not None and one.block is not None
    scales = value(one.scale)
    scales = (scales.float() - 127.0).exp2() if scales.dtype == torch.uint8 else scales.float()
    rows, columns = codes.shape
    scales = scales.reshape(-(-rows // one.block[0]), -(-columns // one.block[1]))
    spread = scales.repeat_interleave(one.block[0], 0)[:rows].repeat_interleave(one.block[1], 1)[:, :columns]
    return codes.float() * spread


def _from_bnb8(codes: Tensor, one: Packed, value: Callable[[str], Tensor]) -> Tensor:
    from bitsandbytes import functional

    assert one.scale is not None
    weight: Tensor = functional.int8_vectorwise_dequant(codes, value(one.scale))
    return weight


def _from_bnb4(codes: Tensor, one: Packed, value: Callable[[str], Tensor]) -> Tensor:
    import torch
    from bitsandbytes import functional

    state = functional.QuantState.from_dict(
        {name.partition(".weight.")[2]: value(name) for name in one.parts}, device=torch.device("cpu")
    )
    weight: Tensor = functional.dequantize_4bit(codes.contiguous().view(torch.uint8).reshape(-1, 1), state)
    return weight


def _write_tokenizer(folder: Path, work: Path, texts: set[str]) -> set[str]:
    """The tokenizer's JSON files without some added tokens; returns the files' names."""
    written = set()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            (work / name).write_text(
                json.dumps(_without(optional_json(folder / name), texts), ensure_ascii=False), encoding="utf-8"
            )
            written.add(name)
    return written


def _without(value: Any, texts: set[str]) -> Any:
    """JSON without the entries that are one of the texts, or a token with such a content. A
    vocabulary's own lists are left alone.
    """
    if isinstance(value, dict):
        return {
            key: _without(inner, texts) for key, inner in value.items() if key not in texts and not _is(inner, texts)
        }
    if isinstance(value, list) and len(value) < 100_000:
        return [_without(inner, texts) for inner in value if not _is(inner, texts)]
    return value


def _is(value: Any, texts: set[str]) -> bool:
    return (isinstance(value, str) and value in texts) or (isinstance(value, dict) and value.get("content") in texts)
