"""What a killed training goes on from: adapter, optimiser, loss scale and the best adapter so far, in one file.

The file has a digest of all that it holds, and of the logs that lie beside it, as they were
when it was written: damage shows before anything is trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from openbezoar.errors import ModelError, RunError
from openbezoar.machine import disk
from openbezoar.machine.foreign import foreign_file
from openbezoar.recipe.train_steps import Training


def make_optimizer(settings: Training, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a step. Raises ModelError where bitsandbytes does not offer it on the parameters' device."""
    trained = list(parameters)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    import bitsandbytes

    if settings.optimizer == "paged_adamw8bit" and trained[0].device.type == "cpu":
        raise ModelError(
            "optimizer: paged_adamw8bit moves its state between GPU and main memory and there is no GPU; choose adamw"
            " or adamw8bit"
        )
    kind = {"adamw8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw8bit": bitsandbytes.optim.PagedAdamW8bit}[
        settings.optimizer
    ]
    optimizer: torch.optim.Optimizer = kind(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return optimizer


@dataclass
class State:
    """Where a training stands: ``step`` optimiser steps are done, ``best`` has copies of the best
    values so far, if any; ``push`` tells whoever holds copies of the values that they are others.
    """

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    push: Callable[[], None] = lambda: None

    def keep(self) -> None:
        """Remember the values as they are as the best."""
        self.best = {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def take_best(self) -> None:
        """Put the best values back into the model."""
        for name, value in self.best.items():
            self.parameters[name].copy_(value)
        self.push()

    def checksum(self) -> float:
        """One number that differs where the adapters do."""
        return float(sum(p.detach().double().abs().sum() for p in self.parameters.values()))

    def save(self, path: Path, logs: Iterable[Path] = ()) -> None:
        """Write everything, whole or not at all; ``logs`` are on the disk before."""
        tensors = {f"best:{name}": value for name, value in self.best.items()}
        for name, parameter in self.parameters.items():
            tensors[f"value:{name}"] = parameter.detach().cpu().contiguous()
            for key, value in self.optimizer.state[parameter].items():
                # Optimisers of bitsandbytes share their tables between parameters, which
                # safetensors takes for a mistake.
                tensors[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu().clone().contiguous()
        for log in logs:
            disk.sync(log)
        vouched = {log.name: [log.stat().st_size, hashlib.sha256(log.read_bytes()).hexdigest()] for log in logs}
        metadata = {"step": str(self.step), "scaler": json.dumps(self.scaler.state_dict()), "logs": json.dumps(vouched)}
        save_sealed(path, tensors, metadata)

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Take up what ``save`` wrote; without a file nothing changes. Raises RunError for a
        damaged one, or for logs that are.
        """
        if not path.is_file():
            return
        again = "delete it and run again: the training begins anew"
        tensors, metadata = read_sealed(path, again)
        for log, (size, then) in json.loads(metadata.get("logs", "{}")).items():
            beside = path.with_name(log)
            if not beside.is_file() or hashlib.sha256(beside.read_bytes()[:size]).hexdigest() != then:
                raise RunError(
                    f"{beside}: not the log that belongs to {path.name}; delete the folder and run again: the training"
                    " begins anew"
                )
        states: dict[str, dict[str, Tensor]] = {}
        for full, tensor in tensors.items():
            key, _, name = full.partition(":")
            states.setdefault(name, {})[key] = tensor
        for name, parameter in self.parameters.items():
            parts = states[name]
            parameter.copy_(parts.pop("value"))
            if "best" in parts:
                self.best[name] = parts.pop("best")
            self._restore_optimizer(parameter, parts)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(json.loads(metadata["scaler"]))
        self.step = int(metadata["step"])
        self.push()

    def _restore_optimizer(self, parameter: nn.Parameter, parts: dict[str, Tensor]) -> None:
        if not parts:  # every step so far was skipped for its overflow
            return
        state: dict[str, Any] = self.optimizer.state[parameter]
        if hasattr(self.optimizer, "init_state"):  # bitsandbytes, which lays out its own (perhaps paged) tensors
            group = self.optimizer.param_groups[0]
            index = next(i for i, p in enumerate(group["params"]) if p is parameter)
            self.optimizer.init_state(group, parameter, 0, index)
        for key, value in parts.items():
            if key not in state:
                state[key] = value if key == "step" else value.to(parameter.device)
            elif isinstance(state[key], Tensor):
                state[key].copy_(value)
            else:
                state[key] = type(state[key])(value.item())


def save_sealed(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and words about them as safetensors with a digest of both, whole or not at all."""
    temporary = disk.temporary_of(path)
    # One word only: safetensors writes several in no fixed order, and equal results shall be equal files.
    save_file(
        tensors,
        temporary,
        metadata={"sealed": json.dumps({**metadata, "digest": _digest(tensors, metadata)}, sort_keys=True)},
    )
    disk.replace(temporary, path)


def read_sealed(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What ``save_sealed`` wrote, on the CPU. Raises RunError if it is not as it was written."""
    with foreign_file(path, "what a killed run goes on from", remedy, kind=RunError):
        with safe_open(path, framework="pt") as stored:  # type: ignore[no-untyped-call]
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
            metadata: dict[str, str] = json.loads(stored.metadata()["sealed"])
        if metadata.pop("digest", None) != _digest(tensors, metadata):
            raise RunError(f"{path}: changed since it was written (its digest is another); {remedy}")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    sums = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sums.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sums.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sums.hexdigest()
