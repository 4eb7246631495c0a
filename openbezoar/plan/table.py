"""What ``plan`` says of a recipe: the steps with what they will cost, the sums, the warnings. As a
table, or as plain data.

Reads the graph, its manifests and the estimates; writes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from openbezoar.engine.graph import Graph, Node
from openbezoar.machine.cards import SPEEDS, STREAM
from openbezoar.machine.devices import Device, this_device
from openbezoar.models.pace import Fit
from openbezoar.plan.concerns import Concern, concerns
from openbezoar.plan.estimates import safe_estimate
from openbezoar.plan.rates import learnt_rates
from openbezoar.progress import duration
from openbezoar.recipe.origins import told
from openbezoar.verbs.book import Estimate

WIDTH = 100  # where there is no terminal to ask
WHY, NAME = 24, 10  # least columns of the reason, and of a step's name
GAP = 2


@dataclass(frozen=True)
class Plan:
    """A recipe's steps with their estimates. took: seconds of steps that are done."""

    graph: Graph
    device: Device
    estimates: dict[str, Estimate]
    concerns: list[Concern]
    took: dict[str, float]
    rates: dict[str, float]

    @property
    def todo(self) -> list[Node]:
        """The steps that would run."""
        return [node for node in self.graph.nodes.values() if node.state != "done"]


def plan_of(graph: Graph, device: Device) -> Plan:
    """The plan of a recipe on a device."""
    estimates = safe_estimate(graph, device)
    manifests = {name: graph.run.manifest(name) for name, node in graph.nodes.items() if node.state == "done"}
    took = {
        name: float(manifest["seconds"]) for name, manifest in manifests.items() if manifest and "seconds" in manifest
    }
    rates = (
        {name: rate for name, rate in learnt_rates().items() if name.startswith(("tokens.", f"{device.kind}."))}
        if device.here
        else {}
    )
    return Plan(graph, device, estimates, concerns(graph, estimates, device), took, rates)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data. Bytes, seconds, tokens; money in the currency of the recipe's prices."""
    steps = [
        {
            "name": n.name,
            "verb": n.verb,
            "state": n.state,
            "why": n.why,
            "inputs": list(n.inputs),
            **asdict(plan.estimates[n.name]),
            "took": plan.took.get(n.name),
        }
        for n in plan.graph.nodes.values()
    ]
    return {
        "recipe": plan.graph.recipe.name,
        "run": str(plan.graph.run.path),
        "device": asdict(plan.device),
        "steps": steps,
        "total": _total(plan),
        "rates": plan.rates,
        "warnings": [{**asdict(concern), "text": concern.text} for concern in plan.concerns],
    }


def _total(plan: Plan) -> dict[str, Any]:
    """Sums over the steps that would run; None where nothing can be said."""
    estimates = [plan.estimates[node.name] for node in plan.todo]
    seconds = [e.seconds for e in estimates if e.seconds]
    return {
        "steps": len(plan.todo),
        "tokens": sum((e.tokens_in or 0) + (e.tokens_out or 0) for e in estimates),
        "money": sum(e.money or 0.0 for e in estimates),
        "seconds": sum(seconds) if seconds else None,
        "memory_bytes": max((e.memory_bytes for e in estimates if e.memory_bytes), default=None),
    }


# ------------------------------------------------------------------------- as a table


def print_plan(plan: Plan) -> None:
    """One line a step, the sums, where the numbers come from, and the warnings, to stdout."""
    from rich.console import Console
    from rich.table import Table

    class PlainConsole(Console):
        """Leaves a reader that went away to the command line; rich would end the program with an error."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isascii() and columns.isdigit() and len(columns) < 6 and int(columns) else WIDTH
    console = PlainConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else width)
    rows = [_cells(plan, node) for node in plan.graph.nodes.values()]
    listed = [name for name in COLUMNS if name in ALWAYS or any(row[name] for row in rows)]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name, width in zip(listed, _widths(listed, rows, console.width), strict=True):
        table.add_column(name, justify="left" if name in ALWAYS else "right", overflow="fold", width=width)
    for row in rows:
        table.add_row(*(row[name] for name in listed))
    console.print(table)
    console.print()
    for line in _words(plan):
        console.print(line)


def _widths(shown: Sequence[str], rows: Sequence[dict[str, str]], total: int) -> list[int]:
    """Columns as wide as their texts; the reason gets what is left, and names are folded where that is too little."""
    wide = {name: max(len(name), *(len(row[name]) for row in rows)) for name in shown}
    room = total - GAP * (len(shown) - 1) - sum(width for name, width in wide.items() if name not in ("step", "why"))
    step = max(min(wide["step"], room - min(WHY, wide["why"])), NAME)
    return [
        *(
            step if name == "step" else min(wide["why"], max(room - step, NAME)) if name == "why" else width
            for name, width in wide.items()
        )
    ]


COLUMNS = ("step", "verb", "state", "rows", "tokens", "money", "memory", "time", "why")
ALWAYS = ("step", "verb", "state", "why")


def _cells(plan: Plan, node: Node) -> dict[str, str]:
    cost, took = plan.estimates[node.name], plan.took.get(node.name)
    return {
        "step": node.name,
        "verb": node.verb,
        "state": node.state,
        "rows": count(cost.rows),
        "tokens": count((cost.tokens_in or 0) + (cost.tokens_out or 0)),
        "money": f"{cost.money:.2f}" if cost.money else "",
        "memory": f"{cost.memory_bytes / 1e9:.1f} GB" if cost.memory_bytes else "",
        "time": (
            duration(took)
            if took is not None
            else f"{'~' if cost.assumed else ''}{duration(cost.seconds)}"
            if cost.seconds
            else ""
        ),
        "why": node.why,
    }


def _words(plan: Plan) -> Sequence[str]:
    """What stands below the table."""
    total, open_steps = _total(plan), plan.todo
    if not open_steps:
        return [f"All {len(plan.graph.nodes)} steps are done; times are what they took.", *_origins(plan)]
    lines = [f"{len(open_steps)} of {len(plan.graph.nodes)} steps would run{_costs(total)}"]
    lines.append(_about_memory(plan.device))
    if plan.rates:
        speeds = [
            f"{name.partition('.')[2]} {rate / 1e9:.0f}"
            for name, rate in plan.rates.items()
            if not name.startswith("tokens.")
        ]
        lines += [f"Times by what runs on this machine reached, in GFLOP/s: {', '.join(speeds)}."] if speeds else []
    if plan.device.here and any(
        plan.estimates[node.name].assumed and plan.estimates[node.name].seconds for node in open_steps
    ):
        lines.append("Times with '~' are assumed; a finished run on this machine teaches better ones.")
    lines += _fits(plan)
    if not plan.device.here:
        lines.append(_about_times(plan))
    return [*lines, *_origins(plan), *(f"warning: {concern}" for concern in plan.concerns)]


def _costs(total: Mapping[str, Any]) -> str:
    """What steps will cost, as the rest of a line; nothing where nothing is known."""
    parts = [f"{count(total['tokens'])} tokens"] if total["tokens"] else []
    parts += [f"money {total['money']:.2f}"] if total["money"] else []
    parts += [f"about {duration(total['seconds'])}"] if total["seconds"] else []
    return f": {', '.join(parts)}" if parts else ""


def what_is_left(graph: Graph, to: str | None) -> str:
    """The steps up to ``to`` that are not done and what they will cost, in a line; one that was begun counts whole."""
    wanted = replace(graph, nodes={node.name: node for node in graph.upto(to)})
    plan = plan_of(wanted, this_device())
    names = ", ".join(node.name for node in plan.todo[:8]) + f" and {len(plan.todo) - 8} more" * (len(plan.todo) > 8)
    return f"{len(plan.todo)} of {len(wanted.nodes)} steps ({names}){_costs(_total(plan))}"


def _origins(plan: Plan) -> list[str]:
    """Which settings are the paper's and which later evidence supports, a line for the steps that are alike."""
    alike: dict[str, list[str]] = {}
    for node in plan.graph.nodes.values():
        if words := told(node.verb, node.parts["settings"]):
            alike.setdefault(words, []).append(node.name)
    return [f"Settings of {', '.join(names)}: {words}." for words, names in alike.items()]


def _fits(plan: Plan) -> list[str]:
    """What trainings come to on a GPU, a line for the steps that are alike."""
    alike: dict[Fit, list[str]] = {}
    for node in plan.todo if plan.device.kind == "cuda" else ():
        if fit := plan.estimates[node.name].fit:
            alike.setdefault(replace(fit, tokens_per_second=None), []).append(node.name)
    return [f"{', '.join(names)}: {_fit(fit)}." for fit, names in alike.items()]


def _fit(fit: Fit) -> str:
    """A fit in words."""
    terms = {
        "CUDA": fit.memory.process,
        "weights": fit.memory.weights,
        "reference": fit.memory.reference,
        "what is trained": fit.memory.adapter,
        "activations": fit.memory.activations,
        "a layer's way back": fit.memory.layer,
    }
    told = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in terms.items() if size)
    return (
        f"up to {fit.tokens:,} tokens a pass, {fit.dtype}, {fit.held}, {fit.recomputed} of {fit.layers} layers"
        f" recomputed; {fit.peak / 1e9:.1f} GB {'measured' if fit.measured else 'estimated'}: {told}"
    )


def _about_times(plan: Plan) -> str:
    """Where the times of another device than this machine's come from."""
    speed = SPEEDS.get(plan.device.card)
    if speed is None:
        return "No times: they are known for this machine only."
    return (
        f"Times are estimated, of training only, and nothing was measured on {plan.device.name}: {speed.source},"
        f" {speed.peak / 1e12:.0f} TFLOP/s of which {speed.large:.0%} are assumed to be reached,"
        f" {speed.bandwidth / 1e9:.0f} GB/s of which {STREAM:.0%}; prompts that rows share are not counted as shared."
    )


def _about_memory(device: Device) -> str:
    room = "" if device.bytes is None else f", {device.bytes / 1e9:.1f} GB{' free' if device.kind == 'cpu' else ''}"
    how = "counted, held against measurements on a CPU" if device.kind == "cpu" else "counted, not measured on this GPU"
    held = (
        ""
        if device.bfloat16 or device.kind == "cuda"
        else "\nIt has no bfloat16 products: such weights are held and multiplied in fp32."
    )
    return f"Memory: peak of a step on {device.name}{room}; {how}.{held}"


def count(n: float | None) -> str:
    """A number in five characters; nothing for none."""
    return "" if not n else f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n / 1e3:.0f}k" if n >= 1e4 else f"{n:.0f}"
