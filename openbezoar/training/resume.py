"""What a killed training goes on from: adapter, optimiser, loss scale and the best adapter so far, in one file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from openbezoar.errors import ModelError
from openbezoar.recipe import Training


def make_optimizer(settings: Training, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a step. Raises ModelError where bitsandbytes does not offer it on the parameters' device."""
    given = list(parameters)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(given, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    import bitsandbytes

    if settings.optimizer == "paged_adamw8bit" and given[0].device.type == "cpu":
        raise ModelError("optimizer: paged_adamw8bit moves its state between GPU and main memory and there is no GPU; choose adamw or adamw8bit")
    kind = {"adamw8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw8bit": bitsandbytes.optim.PagedAdamW8bit}[settings.optimizer]
    made: torch.optim.Optimizer = kind(given, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return made


@dataclass
class State:
    """Where a training stands: ``step`` optimiser steps are done, ``best`` has copies of the best values so far, if any."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def keep(self) -> None:
        """Remember the values as they are as the best."""
        self.best = {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def take_best(self) -> None:
        """Put the best values back into the model."""
        for name, value in self.best.items():
            self.parameters[name].copy_(value)

    def checksum(self) -> float:
        """One number that differs where the adapters do."""
        return float(sum(p.detach().double().abs().sum() for p in self.parameters.values()))

    def save(self, path: Path) -> None:
        """Write everything, whole or not at all."""
        tensors = {f"best:{name}": value for name, value in self.best.items()}
        for name, parameter in self.parameters.items():
            tensors[f"value:{name}"] = parameter.detach().cpu().contiguous()
            for key, value in self.optimizer.state[parameter].items():
                # Optimisers of bitsandbytes share their tables between parameters, which safetensors takes for a mistake.
                tensors[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu().clone().contiguous()
        temporary = path.with_name(path.name + ".tmp")
        save_file(tensors, temporary, metadata={"step": str(self.step), "scaler": json.dumps(self.scaler.state_dict())})
        temporary.replace(path)

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Take up what ``save`` wrote; without a file nothing changes."""
        if not path.is_file():
            return
        with safe_open(path, framework="pt") as stored:  # type: ignore[no-untyped-call]
            found: dict[str, dict[str, Tensor]] = {}
            for full in stored.keys():  # noqa: SIM118  not a mapping
                key, name = full.split(":", 1)
                found.setdefault(name, {})[key] = stored.get_tensor(full)
            metadata: dict[str, str] = stored.metadata()
        for name, parameter in self.parameters.items():
            parts = found[name]
            parameter.copy_(parts.pop("value"))
            if "best" in parts:
                self.best[name] = parts.pop("best")
            self._restore_optimizer(parameter, parts)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(json.loads(metadata["scaler"]))
        self.step = int(metadata["step"])

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
