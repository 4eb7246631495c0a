"""The one training loop: batches of trees, a loss over their scores, AdamW on the adapter.

The order of the data is a pure function of (seed, epoch), dropout of (seed, step), so a run
that was killed goes on from its last checkpoint and ends with the same adapter, bit for bit
on the CPU. Writes ``metrics.jsonl`` (a line a step), ``heldout.jsonl`` and, while it runs,
``.resume.safetensors``.
"""

from __future__ import annotations

import json
import math
import random
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from openbezoar.errors import ModelError
from openbezoar.forest import Scorer, Tree
from openbezoar.progress import Progress
from openbezoar.recipe import Training
from openbezoar.runs import step_seed

RESUME = ".resume.safetensors"


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    weight: of one tree in the step's normaliser (supervised tokens for SFT, 1 for a pair).
    loss: trees of one pass, the step's whole weight → (loss to be summed over the step's
    passes, metrics likewise summed).
    heldout: → numbers of the held-out rows, 'loss' among them.
    check_first: called with the first step's metrics.
    """

    weight: Callable[[Tree], float]
    loss: Callable[[Sequence[Tree], float], tuple[Tensor, dict[str, float]]]
    heldout: Callable[[], dict[str, float]]
    check_first: Callable[[dict[str, float]], None]


def plan_steps(rows: int, settings: Training) -> int:
    """Optimiser steps of a run: whole batches of each epoch, the last one perhaps smaller."""
    steps = math.ceil(math.ceil(rows / settings.batch) * settings.epochs)
    return max(1, min(steps, settings.max_steps or steps))


def batch_of(step: int, rows: int, settings: Training, seed: int) -> list[int]:
    """Row numbers of optimiser step ``step`` (0-based)."""
    per_epoch = math.ceil(rows / settings.batch)
    epoch, place = divmod(step, per_epoch)
    return order_of(epoch, rows, seed)[place * settings.batch : (place + 1) * settings.batch].tolist()


@lru_cache(maxsize=1)
def order_of(epoch: int, rows: int, seed: int) -> array[int]:
    """Row numbers in the order of an epoch; kept until the next epoch, since a shuffle costs as much as there are rows."""
    order = array("q", range(rows))
    random.Random(step_seed(seed, "order", epoch)).shuffle(order)
    return order


def rate_at(step: int, steps: int, settings: Training) -> float:
    """Learning rate of step ``step``: linear warm-up, then constant, linear or cosine to zero."""
    warm = math.ceil(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    left = (steps - step) / max(1, steps - warm)
    factor = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[settings.schedule]
    return settings.learning_rate * factor


def train(
    model: Any, scorer: Scorer, trees: Sequence[Tree], objective: Objective, settings: Training, out: FilePath, progress: Progress, seed: int
) -> dict[str, Any]:
    """Train the adapter on ``trees``; returns the manifest's numbers. The model keeps the trained values."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    scaler = torch.amp.GradScaler(enabled=settings.dtype == "float16" and scorer.device.type == "cuda")
    steps = plan_steps(len(trees), settings)
    done = _resume(out / RESUME, parameters, optimizer)
    log = _truncated(out / "metrics.jsonl", done)
    heldout = _read(out / "heldout.jsonl")
    if not heldout:
        heldout.append(_measure(objective, 0, out))
    begun, tokens_here = time.monotonic(), 0
    with progress.bar("training", steps, "steps") as bar:
        bar.advance(done)
        for step in range(done, steps):
            chosen = [trees[i] for i in batch_of(step, len(trees), settings, seed)]
            metrics = _step(model, scorer, chosen, objective, settings, parameters, optimizer, scaler, step, steps, seed)
            if step == 0:
                objective.check_first(metrics)
            tokens_here += int(metrics["tokens"])
            log.append({"step": step + 1, **metrics})
            with (out / "metrics.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(log[-1]) + "\n")
            if (step + 1) % settings.save_every == 0 or step + 1 == steps:
                _save(out / RESUME, parameters, optimizer, step + 1)
            bar.advance(1, loss=metrics["loss"], **{"tokens/s": tokens_here / (time.monotonic() - begun)})
    seconds = time.monotonic() - begun
    if heldout[-1]["step"] != steps:
        heldout.append(_measure(objective, steps, out))
    return {
        "rows": len(trees),
        "steps": steps,
        "tokens": int(sum(line["tokens"] for line in log)),
        "tokens_per_second": round(tokens_here / seconds, 1) if tokens_here else None,
        "first_loss": log[0]["loss"],
        "last_loss": log[-1]["loss"],
        "trainable_parameters": sum(p.numel() for p in parameters.values()),
        **{f"heldout_{k}_before": v for k, v in heldout[0].items() if k != "step"},
        **{f"heldout_{k}_after": v for k, v in heldout[-1].items() if k != "step"},
    }


def _step(
    model: nn.Module, scorer: Scorer, chosen: list[Tree], objective: Objective, settings: Training,
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, step: int, steps: int, seed: int,
) -> dict[str, float]:  # fmt: skip
    """One optimiser step over all passes of a batch; its metrics."""
    model.train()
    torch.manual_seed(step_seed(seed, "dropout", step))
    whole = sum(objective.weight(tree) for tree in chosen)
    totals: dict[str, float] = {}
    for group in scorer.batches(chosen):
        loss, metrics = objective.loss([chosen[i] for i in group], whole)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": float(loss.detach()), **metrics}.items():
            totals[name] = totals.get(name, 0.0) + value
    without = [name for name, p in parameters.items() if p.grad is None]
    if without:
        raise ModelError(
            f"{len(without)} of {len(parameters)} trainable tensors have no gradient, '{without[0]}' first; the layer's backward does not work on this device"
        )
    rate = rate_at(step, steps, settings)
    for group_settings in optimizer.param_groups:
        group_settings["lr"] = rate
    scaler.unscale_(optimizer)
    norm = float(nn.utils.clip_grad_norm_(parameters.values(), settings.clip))
    if not math.isfinite(norm) and not scaler.is_enabled():
        raise ModelError(f"the gradient of step {step + 1} is not finite; lower learning_rate, or use dtype float32")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    tokens = sum(len(path.ids) for tree in chosen for path in tree)
    return {**totals, "tokens": tokens, "learning_rate": rate, "gradient_norm": norm}


def _measure(objective: Objective, step: int, out: FilePath) -> dict[str, float]:
    line = {"step": step, **objective.heldout()}
    with (out / "heldout.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
    return line


def _read(path: FilePath) -> list[dict[str, Any]]:
    """Whole lines of a JSONL file; a last line that a kill cut short is dropped from the file too."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) != len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


def _truncated(path: FilePath, done: int) -> list[dict[str, Any]]:
    """The log up to step ``done``; later lines, of steps that will be made again, are dropped."""
    lines = [line for line in _read(path) if line["step"] <= done]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return lines


def _save(path: FilePath, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Adapter and optimiser state, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"value:{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={"step": str(step)})
    temporary.replace(path)


def _resume(path: FilePath, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Restore what ``_save`` wrote; the number of steps done (0 without a file)."""
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as stored:  # type: ignore[no-untyped-call]
        names = set(stored.keys())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored.get_tensor(f"value:{name}"))
                state = {n.split(":", 1)[0]: stored.get_tensor(n) for n in names if n.endswith(f":{name}") and not n.startswith("value:")}
                optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
        return int(stored.metadata()["step"])
