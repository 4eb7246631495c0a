"""The one training loop: batches of trees, a loss over their scores, AdamW on the adapter or on all weights.

The order of the data is a pure function of (seed, epoch), dropout of (seed, step, rank), and
when to stop of the held-out losses so far; so a run that was killed goes on from its last
checkpoint and ends with the same adapter, bit for bit on the CPU. With several processes each
takes a share of every step's trees (``distributed``). Writes ``metrics.jsonl`` (a line a
step), ``heldout.jsonl``, with a sampler ``samples.jsonl`` and, while it runs, ``.resume.safetensors``.
"""

from __future__ import annotations

import json
import math
import random
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from openbezoar.errors import ModelError
from openbezoar.forest import Tree
from openbezoar.forest.layout import weight
from openbezoar.forest.trunk import Trunk
from openbezoar.machine import distributed, shares, stops
from openbezoar.models.fitting import settled
from openbezoar.models.load import DTYPES, arithmetic
from openbezoar.progress import Progress
from openbezoar.recipe.train_steps import Training
from openbezoar.stats.seeds import step_seed
from openbezoar.store.files import write_text
from openbezoar.training.masters import Masters
from openbezoar.training.resume import State, make_optimizer
from openbezoar.training.speed import Throughput, matmul_rate, work, work_of

RESUME = ".resume.safetensors"
SAMPLES = "samples.jsonl"
LEAST_SCALE = 2.0**-10
OF_A_LINE = ("step", "rows")  # of a line of heldout.jsonl, beside its numbers
Name = TypeVar("Name")
STOP = "stop:"  # before the number of a signal, among the sums over the processes


Metrics = dict[str, Tensor | float]
"""Scalars by name; those that are on the device are read once a step."""

PassLoss = Callable[[Sequence[Tree], float], tuple[Tensor, Metrics]]
"""Trees of one pass, the step's whole weight → (loss to be summed over the step's passes, metrics likewise summed)."""


def numbers(named: Mapping[Name, Tensor | float]) -> dict[Name, float]:
    """Scalars as Python's numbers, by one wait for the device."""
    told = [value for value in named.values() if isinstance(value, Tensor)]
    read = iter(torch.stack([value.double() for value in told]).tolist() if told else ())
    return {name: next(read) if isinstance(value, Tensor) else value for name, value in named.items()}


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    weight: of one tree in the step's normaliser (supervised tokens for SFT, 1 for a pair).
    loss: of a pass.
    heldout: → numbers of the held-out rows, 'loss' among them; and 'rows', by the name of a number the value of
    each row, in the rows' order, whose mean that number is.
    check_first: called with the first step's metrics.
    begin: for a loss with a number that is taken over the whole batch, without gradient: called in
    every process with all of a step's trees before its passes; gives what then stands in for ``loss``.
    """

    weight: Callable[[Tree], float]
    loss: PassLoss
    heldout: Callable[[], dict[str, Any]]
    check_first: Callable[[dict[str, float]], None]
    begin: Callable[[Sequence[Tree]], PassLoss] | None = None


@dataclass(frozen=True)
class Sampler:
    """Answers of the model while it is trained. every: optimiser steps between them. ask: → a line of
    ``samples.jsonl`` without its step; leaves no trace in the model. Called in process 0 alone.
    """

    every: int
    ask: Callable[[], dict[str, Any]]


Tell = Callable[[str, Mapping[str, Any]], None]
"""Is told each line of a log: which log ('metrics', 'heldout'), and the line."""


def tell_nobody(log: str, line: Mapping[str, Any]) -> None:
    """For a training whose lines go to its own logs only."""


def plan_steps(rows: int, settings: Training) -> int:
    """Optimiser steps of a run: whole batches of each epoch, the last one perhaps smaller."""
    steps = math.ceil(round(math.ceil(rows / settings.batch) * settings.epochs, 6))  # 10 × 1.1 is a little over 11
    return max(1, min(steps, settings.max_steps or steps))


def batch_of(step: int, rows: int, settings: Training, *, seed: int) -> list[int]:
    """Row numbers of optimiser step ``step`` (0-based)."""
    per_epoch = math.ceil(rows / settings.batch)
    epoch, place = divmod(step, per_epoch)
    return order_of(epoch, rows, seed)[place * settings.batch : (place + 1) * settings.batch].tolist()


@lru_cache(maxsize=1)
def order_of(epoch: int, rows: int, seed: int) -> array[int]:
    """Row numbers in the order of an epoch; kept until the next epoch, since a shuffle costs as
    much as there are rows.
    """
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


def best_of(heldout: Sequence[dict[str, Any]]) -> int | None:
    """The step of the lowest held-out loss since training began, the earliest of equals; None before the first."""
    lines = [line for line in heldout if line["step"] > 0]
    if not lines:
        return None
    return int(min(lines, key=lambda line: line["loss"] if math.isfinite(line["loss"]) else math.inf)["step"])


def out_of_patience(heldout: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether the last ``patience`` measurements brought no better held-out loss."""
    best = best_of(heldout)
    return patience is not None and best is not None and sum(line["step"] > best for line in heldout) >= patience


@dataclass(frozen=True)
class _Job:
    """What does not change during a training."""

    model: nn.Module
    scorer: Trunk
    objective: Objective
    settings: Training
    out: Path
    seed: int
    steps: int
    work: tuple[float, float]
    tell: Tell
    sampler: Sampler | None
    sampled: set[int] = field(default_factory=set)  # steps whose answers are in the log


def train(
    model: Any,
    scorer: Trunk,
    trees: Sequence[Tree],
    *,
    objective: Objective,
    settings: Training,
    out: Path,
    progress: Progress,
    seed: int,
    sampler: Sampler | None = None,
    tell: Tell = tell_nobody,
) -> dict[str, Any]:
    """Train what is trainable of the model on ``trees``; returns the manifest's numbers. The model keeps the trained
    values, with ``evaluate_every`` the best ones.

    tell: is told of every line of the logs in process 0, those of an earlier try first.
    """
    settings = settled(settings, None)  # of which nothing but the arithmetic matters from here on
    masters = Masters(model)
    parameters = masters.values
    scaler = torch.amp.GradScaler(scorer.device.type, enabled=settings.dtype == "float16")
    state = State(parameters, make_optimizer(settings, parameters.values()), scaler, push=masters.push)
    steps = plan_steps(len(trees), settings)
    job = _Job(model, scorer, objective, settings, out, seed, steps, work(scorer), tell, sampler)
    state.restore(out / RESUME)
    distributed.agree(steps_done=state.step, rows=len(trees), sum_of_the_adapter=state.checksum())
    log, heldout = distributed.from_first(
        lambda: (_truncated(out / "metrics.jsonl", state.step), _truncated(out / "heldout.jsonl", state.step))
    )
    _take_up(job, state.step, {"metrics": log, "heldout": heldout})
    if settings.evaluate_every and best_of(heldout) == state.step:  # measured after the checkpoint was written
        state.keep()
    pace = _loop(job, state, trees, log, heldout, progress)
    last = heldout[-1]
    if settings.evaluate_every:
        state.take_best()
        last = next(line for line in heldout if line["step"] == best_of(heldout))
        _sample(job, last["step"])
    if not math.isfinite(last["loss"]):
        raise ModelError(
            f"the held-out loss after step {last['step']} is not finite; lower learning_rate or weight_decay, or use"
            " dtype float32"
        )
    return {
        "rows": len(trees),
        "steps": state.step,
        "tokens": int(sum(line["tokens"] for line in log)),
        "tokens_per_second": round(pace.tokens_per_second, 1) if pace.tokens_per_second else None,
        "matmul_fraction": round(pace.fraction, 4) if pace.fraction else None,
        "first_loss": log[0]["loss"],
        "last_loss": log[-1]["loss"],
        "trainable_parameters": sum(p.numel() for p in parameters.values()),
        **({"kept_step": last["step"]} if settings.evaluate_every else {}),
        **({"processes": distributed.world()} if distributed.world() > 1 else {}),
        **{f"heldout_{k}_before": v for k, v in heldout[0].items() if k not in OF_A_LINE},
        **{f"heldout_{k}_after": v for k, v in last.items() if k not in OF_A_LINE},
    }


def _loop(
    job: _Job,
    state: State,
    trees: Sequence[Tree],
    log: list[dict[str, Any]],
    heldout: list[dict[str, Any]],
    progress: Progress,
) -> Throughput:
    """Optimiser steps, held-out measurements and checkpoints, until the end or until patience is
    out. Extends ``log`` and ``heldout``.
    """
    settings, steps = job.settings, job.steps
    rate = matmul_rate(job.scorer.device.type, arithmetic(DTYPES[settings.dtype]))
    pace = Throughput(distributed.sum_scalars({"rate": rate})["rate"])
    saved = state.step
    with (
        progress.bar("training", steps, "steps", state.step) as bar,
        stops.finishing(progress.warn, "this optimiser step") as stop,
    ):
        while True:
            due = state.step in (0, steps) or (settings.evaluate_every and state.step % settings.evaluate_every == 0)
            if due and not (heldout and heldout[-1]["step"] == state.step):
                measured = _measured(job, state.step, stop)
                if isinstance(measured, int):
                    if saved != state.step:
                        _save(job, state)
                    stops.ask(measured)
                    raise stops.Stop
                heldout.append(measured)
                _log(job, "heldout", heldout[-1])
                if settings.evaluate_every and best_of(heldout) == state.step:
                    state.keep()
            if job.sampler is not None and (state.step in (0, steps) or state.step % job.sampler.every == 0):
                _sample(job, state.step)
            if state.step == steps or out_of_patience(heldout, settings.patience):
                return pace
            begun = time.monotonic()
            chosen = [trees[i] for i in batch_of(state.step, len(trees), settings, seed=job.seed)]
            metrics, done, asked = _step(job, state, chosen, stop)
            if state.step == 0:
                job.objective.check_first(metrics)
            state.step += 1
            pace.count(metrics["tokens"], done, time.monotonic() - begun)
            log.append({"step": state.step, **metrics})
            _log(job, "metrics", log[-1])
            stops.takes("an optimiser step", time.monotonic() - begun)
            if distributed.world() == 1:  # it may have come since
                asked = stop.requested
            if state.step % settings.save_every == 0 or state.step == steps or asked:
                _save(job, state)
                saved = state.step
            if asked:
                stops.ask(asked)
                raise stops.Stop
            bar.advance(
                1,
                **{
                    "loss": metrics["loss"],
                    "tokens/s": pace.tokens_per_second or 0.0,
                    "of matmul rate": pace.fraction or 0.0,
                },
            )


def _save(job: _Job, state: State) -> None:
    """Write what a killed training goes on from; the first process does."""
    if distributed.rank() == 0:
        begun = time.monotonic()
        logs = ("metrics.jsonl", "heldout.jsonl", *([SAMPLES] if job.sampled else []))
        state.save(job.out / RESUME, [job.out / log for log in logs])
        stops.takes("saving", time.monotonic() - begun)


def _measured(job: _Job, step: int, stop: stops.Finishing) -> dict[str, Any] | int:
    """A line of the held-out rows, of which each process scores a share, or the signal that did not wait for it:
    between two steps nothing has to be finished. Of several processes all stop, between two passes.
    """
    try:
        with stop.interruptible() if distributed.world() == 1 else nullcontext():
            line = {"step": step, **job.objective.heldout()}
    except stops.Stop:
        return stop.requested
    return distributed.from_first(lambda: line)  # all decide by the same bits


def _step(job: _Job, state: State, chosen: list[Tree], stop: stops.Finishing) -> tuple[dict[str, float], float, int]:
    """One optimiser step over all passes of a batch: (its metrics, floating-point operations, the signal that
    asked to stop), of all processes together.
    """
    rank = distributed.rank()
    job.model.train()
    torch.manual_seed(step_seed(job.seed, "dropout", state.step, *([rank] if rank else [])))
    whole = sum(job.objective.weight(tree) for tree in chosen)
    mine = [chosen[i] for i in shares.share(chosen, weight, rank, distributed.world())]
    loss_of = job.objective.loss if job.objective.begin is None else job.objective.begin(chosen)

    def passes() -> dict[str, float]:
        """Gradients of this process's share; its sums, with the operations under no name."""
        told: list[Metrics] = []
        done = 0.0
        for group in job.scorer.batches(mine):
            trees = [mine[i] for i in group]
            loss, metrics = loss_of(trees, whole)
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            told.append({"loss": loss.detach(), **metrics})
            done += work_of(trees, job.scorer, job.work)
        sums = {"": done}
        for (_, name), value in numbers({(n, name): v for n, of in enumerate(told) for name, v in of.items()}).items():
            sums[name] = sums.get(name, 0.0) + value
        without = [name for name, p in state.parameters.items() if p.grad is None]
        if mine and without:
            raise ModelError(
                f"{len(without)} of {len(state.parameters)} trainable tensors have no gradient, '{without[0]}' first;"
                " the layer's backward does not work on this device"
            )
        asked = {f"{STOP}{stop.requested}": 1.0} if stop.requested else {}  # others can stop only where all of them do
        return {**sums, **asked}

    totals = distributed.added(shares.agreed(passes))
    distributed.sum_gradients(state.parameters.values())
    done = totals.pop("")
    signals = [name for name in totals if name.startswith(STOP)]
    for name in signals:
        del totals[name]
    update = _update(job, state)
    tokens = sum(len(path.ids) for tree in chosen for path in tree)
    return {**totals, "tokens": tokens, **update}, done, max((int(n.removeprefix(STOP)) for n in signals), default=0)


def _update(job: _Job, state: State) -> dict[str, float]:
    """Clip and apply the gradients; learning rate and gradient norm, with loss scaling also the scale.

    With loss scaling a step whose gradients overflow is skipped, and counted as 'skipped'.
    """
    rate = rate_at(state.step, job.steps, job.settings)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    scaler = state.scaler
    scaler.unscale_(state.optimizer)
    norm = float(nn.utils.clip_grad_norm_(state.parameters.values(), job.settings.clip))
    if not math.isfinite(norm) and (not scaler.is_enabled() or scaler.get_scale() < LEAST_SCALE):
        raise ModelError(
            f"the gradient of step {state.step + 1} is not finite; lower learning_rate, or use dtype float32"
        )
    scale = {"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {}
    scaler.step(state.optimizer)
    scaler.update()
    state.push()
    state.optimizer.zero_grad(set_to_none=True)
    return {"learning_rate": rate, **({"gradient_norm": norm} if math.isfinite(norm) else {"skipped": 1.0}), **scale}


def _take_up(job: _Job, done: int, logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """What an earlier try of the training left: its lines are told, its answers are not asked for again."""
    if distributed.rank() == 0:
        job.sampled.update(line["step"] for line in _truncated(job.out / SAMPLES, done))
        lines = [(line["step"], log, line) for log, of in logs.items() for line in of]
        for _, log, line in sorted(lines, key=lambda one: one[0]):  # of one step in the order of the logs
            job.tell(log, line)


def _sample(job: _Job, step: int) -> None:
    """The answers of the model as it is, unless those of this step are there; the other processes wait for them."""
    if job.sampler is None:
        return
    sampler = job.sampler

    def asked() -> None:
        if step not in job.sampled:
            _append(job.out / SAMPLES, {"step": step, **sampler.ask()})
            job.sampled.add(step)

    distributed.from_first(asked)


def _log(job: _Job, log: str, line: dict[str, Any]) -> None:
    """A line more in a log of process 0, and told."""
    _append(job.out / f"{log}.jsonl", line)
    if distributed.rank() == 0:
        job.tell(log, line)


def _append(path: Path, line: dict[str, Any]) -> None:
    if distributed.rank() == 0:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


def _truncated(path: Path, done: int) -> list[dict[str, Any]]:
    """The lines up to step ``done``; later ones, of steps that will be made again, and those that a
    kill or a power cut spoilt are dropped from the file too.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    records = [line for text in lines if (line := _whole(text)) is not None and line["step"] <= done]
    write_text(path, "".join(json.dumps(line) + "\n" for line in records))
    return records


def _whole(text: str) -> dict[str, Any] | None:
    """A line of a log, None if it is not whole. Those that a checkpoint vouches for are:
    ``State.restore`` saw to it.
    """
    try:
        line = json.loads(text) if text.endswith("\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
