"""What will go wrong with a run, said before any work: packages, memory, disk, budgets, what is odd about models,
and training on what is measured on.

Reads the estimates, the device, the disks' free space and what the run has spent; writes
nothing. These are warnings, since the estimates behind them are estimates; only for a missing
package does a run not begin.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openbezoar.engine import needs
from openbezoar.engine.graph import Graph, Node
from openbezoar.llm.calls import FILE, CallStore, Spent
from openbezoar.llm.engines.opened import engine_of
from openbezoar.llm.engines.programs import PROGRAMS, share_of
from openbezoar.machine.devices import Device
from openbezoar.models.files.checks import check
from openbezoar.models.memory import SURE, parameters
from openbezoar.models.references import cache_folder, folder_here, is_here
from openbezoar.models.shapes import model_of
from openbezoar.plan.prompts_seen import prompts_seen
from openbezoar.recipe.blocks import Budget, LocalModel, RewardModel, ServerModel
from openbezoar.recipe.refs import references
from openbezoar.rows.sources import model_reference
from openbezoar.verbs.book import Estimate


@dataclass(frozen=True)
class Concern:
    """One warning. step: the step it is about, None for the whole run."""

    kind: Literal["packages", "memory", "disk", "budget", "device", "model", "rows"]
    step: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.step}: {self.text}" if self.step else self.text


def concerns(graph: Graph, estimates: Mapping[str, Estimate], device: Device, to: str | None = None) -> list[Concern]:
    """Everything to be said before the steps that are not done, up to ``to``, are run."""
    todo = [node for node in graph.upto(to) if node.state != "done"]
    about_models = [*_packages(graph, todo), *_models_here(graph, todo)]
    return [
        *about_models,
        *_rows(graph, todo),
        *_memory(todo, estimates, device),
        *_beside(graph, todo, estimates, device),
        *_arithmetic(todo, estimates, device),
        *_disk(graph, todo, estimates),
        *_budgets(graph, todo, estimates),
    ]


def _packages(graph: Graph, todo: list[Node]) -> Iterator[Concern]:
    if error := needs.lacking(todo, graph.recipe, graph.recipe_path.parent):
        yield Concern("packages", None, str(error))


def _memory(todo: list[Node], estimates: Mapping[str, Estimate], device: Device) -> Iterator[Concern]:
    for node in todo:
        need, have = estimates[node.name].memory_bytes, device.bytes
        if need is None or have is None or need <= SURE * have:
            continue
        room = f"{have / 1e9:.1f} GB{' free' if device.kind == 'cpu' else ''}"
        verdict = (
            f"does not fit: about {need / 1e9:.1f} GB, {device.name} has {room}"
            if need > have
            else f"may not fit: about {need / 1e9:.1f} GB of {room}"
        )
        yield Concern("memory", node.name, f"{verdict}; {estimates[node.name].remedy}")


def _beside(graph: Graph, todo: list[Node], estimates: Mapping[str, Estimate], device: Device) -> Iterator[Concern]:
    """Models that a step holds at once, where one's engine takes a share of the GPU, whatever it needs."""
    for node in todo if device.kind == "cuda" and device.bytes else ():
        sizes = dict(estimates[node.name].beside)
        for name in sizes:
            if (by := engine_of(graph.recipe, name, True)) is None:
                continue
            engine, spec = by
            share = share_of(PROGRAMS[engine], spec.args)
            others = {other: size for other, size in sizes.items() if other != name and size}
            free = (1 - share) * (device.bytes or 0)
            if share and sum(others.values()) > free:
                listed = " and ".join(f"'{other}' {size / 1e9:.1f} GB" for other, size in others.items())
                yield Concern(
                    "memory",
                    node.name,
                    f"{engine} takes {share:.0%} of {device.name} for '{name}', and beside it there is no room for"
                    f" {listed}: give it less, as args: [{PROGRAMS[engine].share[0]}, '0.5'] of models.{name}",
                )


def _arithmetic(todo: list[Node], estimates: Mapping[str, Estimate], device: Device) -> Iterator[Concern]:
    slow = [node.name for node in todo if estimates[node.name].dtype == "bfloat16"]
    if slow and device.kind == "cuda" and not device.bfloat16:
        yield Concern(
            "device",
            None,
            f"{device.name} has no bfloat16 arithmetic, it is slow there: set dtype: float16 for {', '.join(slow)}",
        )


def _models_here(graph: Graph, todo: list[Node]) -> Iterator[Concern]:
    """What the checks of a model's parts noticed, and the run goes on with."""
    place = graph.recipe_path.parent
    for name in {name: None for node in todo for name in _models(graph, node)}:
        spec = graph.recipe.models.get(name)
        folder = (
            folder_here(model_reference(spec.model, place, graph.recipe.data), place)
            if isinstance(spec, LocalModel) and not isinstance(spec, RewardModel)
            else None
        )
        for notice in check(folder) if folder is not None else ():
            yield Concern("model", None, f"models.{name}: {notice}")


def _rows(graph: Graph, todo: list[Node]) -> Iterator[Concern]:
    """Training on prompts that the recipe measures on."""
    for seen in prompts_seen(graph.recipe, graph.recipe_path.parent, {node.name for node in todo}):
        yield Concern(
            "rows",
            seen.step,
            f"trains on rows with {seen.prompts} of the {seen.of} prompts of {seen.by}, so what is measured there may"
            " flatter it: take other rows for one of the two ('where', 'offset' and 'limit' part a file)",
        )


# ---------------------------------------------------------------------------- disk


def _disk(graph: Graph, todo: list[Node], estimates: Mapping[str, Estimate]) -> Iterator[Concern]:
    """What the steps will write, and what has to be fetched first, against the free space of the disks they go to."""
    by_disk: dict[int, list[tuple[int, str, Path]]] = {}
    for where, bytes_, what in (
        (graph.run.path, written_bytes(estimates[node.name] for node in todo), "the run's files"),
        (cache_folder(), _fetched_bytes(graph, todo), "models to fetch"),
    ):
        place = _existing(where)
        if bytes_:
            by_disk.setdefault(place.stat().st_dev, []).append((bytes_, what, place))
    for parts in by_disk.values():
        need, free = sum(bytes_ for bytes_, _, _ in parts), shutil.disk_usage(parts[0][2]).free
        if need > SURE * free:
            what = " and ".join(f"{what} {bytes_ / 1e9:.1f} GB" for bytes_, what, _ in parts)
            yield Concern(
                "disk",
                None,
                f"{parts[0][2]}: {what}, {free / 1e9:.1f} GB are free; make room, or use --runs with a folder on"
                " another disk",
            )


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def written_bytes(estimates: Iterable[Estimate]) -> int:
    """Bytes of weights that steps write, with the most that one of them holds for a while. Rows are
    small beside them.
    """
    leaves = [(cost.written_bytes, cost.passing_bytes) for cost in estimates]
    return sum(stays for stays, _ in leaves) + max((passing for _, passing in leaves), default=0)


def _fetched_bytes(graph: Graph, todo: list[Node]) -> int:
    """Bytes of models that are not on disk and whose shape the recipe tells."""
    named = {name for node in todo for name in _models(graph, node)}
    specs = {spec.model: spec for name in named if isinstance(spec := graph.recipe.models.get(name), LocalModel)}
    return sum(
        2 * sum(parameters(spec.shape))
        for spec in specs.values()
        if spec.shape is not None and not is_here(spec.model, graph.recipe_path.parent)
    )


def _models(graph: Graph, node: Node) -> Collection[str]:
    return list(node.parts.get("models", ()))  # by their names in the recipe


# --------------------------------------------------------------------------- budgets


def _budgets(graph: Graph, todo: list[Node], estimates: Mapping[str, Estimate]) -> Iterator[Concern]:
    """Budgets that the estimates overshoot, what the run has already spent counted."""
    limits: list[tuple[str | None, Budget]] = [
        (node.name, budget) for node in todo if (budget := getattr(node.step, "budget", None)) is not None
    ]
    if graph.recipe.budget is not None:
        limits.append((None, graph.recipe.budget))
    if not limits:
        return
    spent = _spent(graph)
    for step, budget in limits:
        costs = [estimates[node.name] for node in todo if step in (None, node.name) and _asks(node)]
        if not costs:
            continue
        accounts = [(model, cost) for (name, model), cost in spent.items() if step in (None, name)]
        tokens = sum((made.tokens_in or 0) + (made.tokens_out or 0) for made in costs)
        money = sum(made.money or 0.0 for made in costs)
        gone = sum(cost.prompt_tokens + cost.tokens for _, cost in accounts)
        paid = sum(_money(graph, model, cost) for model, cost in accounts)
        where = f"steps.{step}.budget" if step else "budget"
        if budget.tokens is not None and gone + tokens > budget.tokens:
            yield Concern(
                "budget",
                step,
                f"about {tokens:,} tokens to ask for, {where} has {budget.tokens - gone:,} left: the run will stop"
                " there; raise it or ask for less",
            )
        if budget.money is not None and paid + money > budget.money:
            yield Concern(
                "budget",
                step,
                f"about {money:.2f} to pay, {where} has {budget.money - paid:.2f} left: the run will stop there; raise"
                " it or ask for less",
            )


def _asks(node: Node) -> bool:
    """Whether a step asks a model, on the budget's account."""
    return hasattr(node.step, "budget") and any(one.ref.kind == "model" for one in references(node.step))


def _spent(graph: Graph) -> dict[tuple[str, str], Spent]:
    """By step and model, what the run has paid for."""
    runs = graph.run.path.parent
    if not (runs / FILE).is_file():
        return {}
    return {
        (step, model): cost for (run, step, model), cost in CallStore(runs).accounts().items() if run == graph.run.name
    }


def _money(graph: Graph, model: str, cost: Spent) -> float:
    spec = model_of(graph.recipe, model)
    return spec.price.of(cost.prompt_tokens, cost.tokens) if isinstance(spec, ServerModel) else 0.0
