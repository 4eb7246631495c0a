"""The running of a graph: each step that is not done, in order, its files published with a manifest."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openbezoar import __version__
from openbezoar.context import StepContext
from openbezoar.engine import needs
from openbezoar.engine.graph import Graph, Node, build, state_of
from openbezoar.errors import UserError
from openbezoar.machine import extras, limits
from openbezoar.progress import Progress, Silent
from openbezoar.stats.seeds import step_seed
from openbezoar.store.digests import digest, moved, result_digest
from openbezoar.store.files import environment
from openbezoar.training import distributed


def execute(graph: Graph, progress: Progress, to: str | None = None) -> list[str]:
    """Run what is not done, in order; returns the names of the steps that ran.

    A step that fails leaves everything before it in place, and its own answered calls and
    training checkpoints for the next try.
    """
    ran = []
    distributed.start()
    with graph.run.lock():
        graph.run.recover()
        graph = build(graph.recipe, graph.recipe_path, graph.run.path.parent)
        nodes = graph.upto(to)
        if error := needs.lacking(
            [node for node in nodes if node.state != "done"], graph.recipe, graph.recipe_path.parent
        ):
            raise error
        for number, node in enumerate(nodes, 1):
            state, why = state_of(graph.run, node.name, node.key, node.parts)  # an input may just have been made again
            if state != "done":
                place = f"{number}/{len(nodes)}"
                with progress.step(place, node.name, f"{node.verb}; {why}"):
                    manifest = _run_step(graph, node, progress)
                ran.append(node.name)
                progress.ended(place, node.name, manifest["seconds"], manifest.get("summary", ""))
            elif moved(graph.run.step(node.name), (graph.run.manifest(node.name) or {}).get("files", {})):
                graph.run.vouch(node.name)  # a copied run; what was read once need not be read each time
            if gate := node.row.part("gate"):
                for warning in gate(node.name, node.step, graph.run.step(node.name), graph.recipe.seed):
                    progress.warn(warning)
    distributed.announce(None)
    return ran


def follow(make: Callable[[], Graph]) -> None:
    """Another process than the first, which executes: take part in each training step that it
    announces, until it announces none.
    """
    distributed.start()
    graph: Graph | None = None
    while (name := distributed.announced()) is not None:
        graph = graph or make()  # not earlier, so that a mistake in the recipe is reported once
        node = graph.nodes[name]
        node.row.part("work")(node.step, _context(graph, node, graph.run.work(name), Silent()))


def _context(graph: Graph, node: Node, out: Path, progress: Progress) -> StepContext:
    return StepContext(
        name=node.name,
        recipe=graph.recipe,
        recipe_folder=graph.recipe_path.parent,
        run=graph.run,
        out=out,
        seed=step_seed(graph.recipe.seed, getattr(node.step, "draws_as", None) or node.name),
        progress=progress,
        steps=tuple(graph.nodes),
    )


def _run_step(graph: Graph, node: Node, progress: Progress) -> dict[str, Any]:
    if node.row.reads_wholly:  # as what is published is
        for needed in graph.upto(node.name):
            if needed is not node:
                graph.run.checked(needed.name, wholly=True)
    used = {i: result for i in node.inputs if (result := result_digest(graph.run.manifest(i) or {}))}
    context = _context(graph, node, graph.run.begin(node.name, digest([node.key, used])), progress)
    if node.row.together:
        distributed.announce(node.name)
    begun = time.monotonic()
    try:
        numbers: dict[str, Any] = node.row.part("work")(node.step, context)
    except UserError as error:
        raise type(error)(f"step {node.name}: {error}") from error
    except Exception as error:
        if (refusal := limits.refusal(error, context.out) or extras.failed_import(error)) is None:
            raise
        raise type(refusal)(f"step {node.name}: {refusal}") from error
    manifest = {
        "step": node.name,
        "verb": node.verb,
        "place": list(graph.nodes).index(node.name),
        "key": node.key,
        "parts": node.parts,
        "seconds": round(time.monotonic() - begun, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "counts": context.counts.by_reason,
        "numbers": numbers,
        "summary": numbers.pop("summary", ""),
        "used": used,
        "environment": environment(),
        "recipe_version": __version__,
    }
    return graph.run.publish(node.name, manifest)
