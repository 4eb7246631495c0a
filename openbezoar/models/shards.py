"""A model's weights one tensor at a time: read, adapters merged in, cast, written as shards.

Reads folders of safetensors and PEFT's adapter folders; ``write`` makes 16-bit shards with
their index. What is read here is never held whole: a ``Weight`` opens its file when it is
asked for, and the file is closed again before the next.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from openbezoar.errors import ModelError
from openbezoar.machine.foreign import foreign_file
from openbezoar.models.adapters import Update, adapter_deltas
from openbezoar.models.files.stored import INDEX, WHOLE, tensors_of
from openbezoar.store.files import write_json

SHARD_BYTES = 1 << 30  # a shard in the making is what ``write`` holds
# transformers asks from several threads, and each would hold its own intermediate values
_one_at_a_time = threading.Lock()


class TensorSource(Protocol):
    """A tensor that is made when it is indexed with ``[...]``; its shape and dtype are known before."""

    @property
    def dtype(self) -> torch.dtype: ...

    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, everything: Any) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor of a checkpoint; indexing it with ``[...]`` reads and makes it, as with safetensors' own slices.

    The stored value is cast to ``base_dtype``, each update of ``older`` added in float32 and
    rounded to ``base_dtype``, made what NF4 makes of it where ``nf4`` is set, ``last`` added in
    float32, and the result cast to ``dtype``. Tensors that are not floating stay as they are.
    """

    file: Path
    name: str
    base_dtype: torch.dtype
    dtype: torch.dtype
    device: torch.device
    older: tuple[Update, ...] = ()
    nf4: bool = False
    last: Update | None = None

    def shape(self) -> tuple[int, ...]:
        with safe_open(self.file, framework="pt") as stored:  # type: ignore[no-untyped-call]
            return tuple(stored.get_slice(self.name).get_shape())

    def __getitem__(self, everything: Any) -> Tensor:
        with _one_at_a_time, torch.no_grad():
            return self._make()

    def _make(self) -> Tensor:
        with safe_open(self.file, framework="pt") as stored:  # type: ignore[no-untyped-call]
            # A copy: a view would keep the file mapped, and its pages would count as this process's memory.
            value: Tensor = stored.get_tensor(self.name).to(self.device, copy=True)
        if not value.is_floating_point():
            return value
        value = value.to(self.base_dtype)
        for update in self.older:
            value = update.onto(value).to(self.base_dtype)
        if self.nf4:
            value = nf4_values(value, self.dtype if self.last is None else value.dtype)
        if self.last is not None:
            value = self.last.onto(value)
        return value.to(self.dtype)


def nf4_values(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """What NF4 with double quantisation makes of a weight [out, in], in the dtype that it is multiplied in."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    state.dtype = dtype
    return dequantize_4bit(packed, state).to(dtype)  # type: ignore[no-any-return]


def files_of(folder: Path) -> dict[str, Path]:
    """{tensor name: its file} of a model folder.

    Raises ModelError where there are no safetensors, or an index names a shard that is not there.
    """
    return {name: tensor.file for name, tensor in tensors_of(folder).items()}


def count_values(folder: Path) -> int:
    """How many values a model folder's tensors have; only the files' headers are read."""
    return sum(math.prod(tensor.shape) for tensor in tensors_of(folder).values())


def weights_of(
    folder: Path,
    base_dtype: torch.dtype,
    device: torch.device,
    *,
    older: Iterable[Path] = (),
    last: Path | None = None,
    dtype: torch.dtype | None = None,
    nf4: bool = False,
) -> dict[str, Weight]:
    """A model folder's tensors by name, with adapters merged in as each is read.

    base_dtype: that of the base. older, last: adapters, the oldest first; dtype: the one to come
    out (default: ``base_dtype``); nf4: linear layers get the values of NF4 before ``last`` is added.
    Raises ModelError for an adapter of another model.
    """
    files = files_of(folder)
    updates = [(adapter, adapter_deltas(adapter)) for adapter in older]
    final = adapter_deltas(last) if last is not None else {}
    shapes = {name: tensor.shape for name, tensor in tensors_of(folder).items()}
    of: dict[str, list[Update]] = {}
    for adapter, deltas in updates:
        for module, update in deltas.items():
            of.setdefault(_fitting(module, files, adapter, update, shapes), []).append(update)
    ends = (
        {_fitting(module, files, last, update, shapes): update for module, update in final.items()}
        if last is not None
        else {}
    )
    linear = {_stored(module, files, folder) for module in quantised_layers(skeleton(folder))} if nf4 else set()
    return {
        name: Weight(
            file, name, base_dtype, dtype or base_dtype, device, tuple(of.get(name, ())), name in linear, ends.get(name)
        )
        for name, file in files.items()
    }


def _stored(module: str, files: Mapping[str, Path], source: Path) -> str:
    """The name under which a module's weight is stored; some checkpoints have a prefix more or less than the model."""
    expected = f"{module}.weight"
    if expected in files:
        return expected
    alike = [name for name in files if expected.endswith(f".{name}") or name.endswith(f".{expected}")]
    if len(alike) != 1:
        raise ModelError(
            f"{source}: the model has no weight '{expected}'; the adapter belongs to another model, or its weights are"
            " stored under other names"
        )
    return alike[0]


def check_stored(modules: Iterable[str], folder: Path) -> None:
    """Raises ModelError for a module whose weight a merge would not find: some kinds are stored
    under other names than they are loaded with.
    """
    files = files_of(folder)
    for module in modules:
        try:
            _stored(module, files, folder)
        except ModelError:
            raise ModelError(
                f"{folder}: the weight of '{module}', which lora.targets names, is stored under another name or"
                " together with others; an adapter on it could not be merged: leave it out of lora.targets"
            ) from None


def _fitting(
    module: str, files: Mapping[str, Path], source: Path, update: Update, shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """As ``_stored``; raises ModelError for an update of another shape than the weight's."""
    name = _stored(module, files, source)
    if (shape := (update.b.shape[0], update.a.shape[1])) != shapes[name]:
        raise ModelError(
            f"{source}: an update of {list(shape)} for '{name}', which is {list(shapes[name])}; the adapter belongs to"
            " another model"
        )
    return name


def skeleton(folder: Path) -> Any:
    """The folder's model without its weights (on torch's meta device)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with (
        foreign_file(folder, "a model that transformers knows", "fetch its config.json again, or take another model"),
        torch.device("meta"),
    ):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))


def quantised_layers(model: Any) -> list[str]:
    """Names of the modules that NF4 covers: each linear layer but the output head."""
    head = model.get_output_embeddings()
    return [name for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head]


def of_model(weights: Mapping[str, Weight], model: Any) -> dict[str, Weight]:
    """The weights that a model of that kind has; all of them where it renames what is stored.

    Old Llama checkpoints carry rotary tables, which are computed today. A head that could be the
    embeddings is one of its own where the config says so; GPT-NeoX's is stored under another name.
    """
    known = set(model.state_dict())
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ())
        if getattr(model.config, "tie_word_embeddings", True)
        else set()
    )
    return (
        {name: weight for name, weight in weights.items() if name in known}
        if known - tied <= set(weights)
        else dict(weights)
    )


def write(weights: Mapping[str, TensorSource], folder: Path, most: int = SHARD_BYTES) -> None:
    """Write weights as safetensors, one file or shards of at most ``most`` bytes (or one tensor) with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = list(_groups(weights, most))
    names = (
        [WHOLE]
        if len(groups) == 1
        else [f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1)]
    )
    total = 0
    for file, group in zip(names, groups, strict=True):
        tensors = {name: weights[name][...].cpu().contiguous() for name in group}
        total += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors
    if len(groups) > 1:
        where = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _groups(weights: Mapping[str, TensorSource], most: int) -> Iterator[list[str]]:
    """Names in order, cut where the next tensor would pass ``most`` bytes."""
    group: list[str] = []
    size = 0
    for name, weight in weights.items():
        bytes_ = weight.dtype.itemsize * torch.Size(weight.shape()).numel()
        if group and size + bytes_ > most:
            yield group
            group, size = [], 0
        group.append(name)
        size += bytes_
    if group:
        yield group
