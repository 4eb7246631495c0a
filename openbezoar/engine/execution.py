"""The running of a graph: each step that is not done, in order, its files published with a manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from openbezoar import __version__
from openbezoar.context import StepContext
from openbezoar.engine import needs
from openbezoar.engine.graph import Graph, Node, build, state_of
from openbezoar.errors import UserError
from openbezoar.llm.engines.kept import ENGINES
from openbezoar.llm.owners import Process
from openbezoar.machine import distributed, extras, limits, stops
from openbezoar.machine.devices import memory_in_use
from openbezoar.models.driving import Helper, driving
from openbezoar.progress import Progress, Silent
from openbezoar.recipe.refs import references
from openbezoar.reporting.results import Scores, StepFacts
from openbezoar.stats.seeds import step_seed
from openbezoar.store.digests import digest, moved, result_digest
from openbezoar.store.files import environment
from openbezoar.store.live import Recorded
from openbezoar.tracking import StepTrack, Tracks


def execute(
    graph: Graph,
    progress: Progress,
    to: str | None = None,
    *,
    overrides: Sequence[str] | None = None,
    ran: list[str] | None = None,
) -> list[str]:
    """Run what is not done, in order; returns the names of the steps that ran, and puts each into ``ran`` at once.

    overrides: what the recipe was read with; then the run keeps which recipe makes it, in ``run.json``.

    A step that fails leaves everything before it in place, and its own answered calls and
    training checkpoints for the next try.
    """
    ran = [] if ran is None else ran
    distributed.start()
    with graph.run.lock(), ENGINES.keeping(graph.run.path):
        graph.run.recover()
        graph = build(graph.recipe, graph.recipe_path, graph.run.path.parent)
        nodes = graph.upto(to)
        if error := needs.lacking(
            [node for node in nodes if node.state != "done"], graph.recipe, graph.recipe_path.parent
        ):
            raise error
        if overrides is not None:
            graph.run.made_by(graph.recipe_path, overrides)
        tracks = Tracks(graph.run.path, graph.recipe.track, progress.warn)
        for number, node in enumerate(nodes, 1):
            stops.begin()
            state, why = state_of(graph.run, node.name, node.key, node.parts)  # an input may just have been made again
            if state != "done":
                asked = {one.name for one in references(node.step) if one.ref.kind == "model"}
                ENGINES.make_room(() if node.row.together else asked)  # before other processes load a model, too
                place = f"{number}/{len(nodes)}"
                with progress.step(place, node.name, f"{node.verb}; {why}"), tracks.step(node.name) as track:
                    manifest = _run_step(graph, node, progress, track, place)
                    track.ended(*_tracked(graph, node, manifest))
                ran.append(node.name)
                progress.ended(place, node.name, manifest["seconds"], manifest.get("summary", ""))
            else:
                _catch_up(graph, node, tracks)
            if state == "done" and moved(
                graph.run.step(node.name), (graph.run.manifest(node.name) or {}).get("files", {})
            ):
                graph.run.vouch(node.name)  # a copied run; what was read once need not be read each time
            if gate := node.row.part("gate"):
                for warning in gate(node.name, node.step, graph.run.step(node.name), graph.recipe.seed):
                    progress.warn(warning)
    distributed.order(None)
    return ran


def _catch_up(graph: Graph, node: Node, tracks: Tracks) -> None:
    """Tell trackers of a finished step that they have not seen."""
    if tracks.trackers and (manifest := graph.run.manifest(node.name)):
        mark, scores = _tracked(graph, node, manifest)
        tracks.catch_up(node.name, mark, graph.run.step(node.name), scores)


def _tracked(graph: Graph, node: Node, manifest: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """A mark of a step's result, and its scores with their intervals by name."""
    values: dict[str, float] = {}
    result = StepFacts(node.name, node.verb, graph.run.step(node.name), manifest).result
    for one in result.scores() if isinstance(result, Scores) else ():
        name = f"{one.checkpoint}/{one.kind}/{one.name}"
        bounds = {"": one.score.value, ".low": one.score.low, ".high": one.score.high}
        values |= {name + end: float(value) for end, value in bounds.items() if value is not None}
    return digest([manifest.get("key"), manifest.get("finished")]), values


def follow(make: Callable[[], Graph]) -> None:
    """Another process than the first, which executes: obey its orders, until there are none.

    They are the names of training steps, which all processes make together, and what ``models.driving`` has.
    """
    distributed.start()
    graph: Graph | None = None
    helper = Helper()
    while (order := distributed.ordered()) is not None:
        if not isinstance(order, str):
            helper.obey(order)
            continue
        graph = graph or make()  # not earlier, so that a mistake in the recipe is reported once
        node = graph.nodes[order]
        node.row.part("work")(node.step, _context(graph, node, graph.run.work(order), Silent()))


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


def _others(node: Node) -> AbstractContextManager[None]:
    """What the other processes do during a step: the same, or what it asks of models."""
    if not node.row.together:
        return driving()
    distributed.order(node.name)
    return nullcontext()


def _run_step(graph: Graph, node: Node, progress: Progress, track: StepTrack, place: str) -> dict[str, Any]:
    if node.row.reads_wholly:  # as what is published is
        for needed in graph.upto(node.name):
            if needed is not node:
                graph.run.checked(needed.name, wholly=True)
    used = {i: result for i in node.inputs if (result := result_digest(graph.run.manifest(i) or {}))}
    context = _context(graph, node, graph.run.begin(node.name, digest([node.key, used])), progress)
    context.tell = track.tell
    about = {"place": place, "verb": node.verb, "owner": Process.this().text()}
    context.progress = Recorded(progress, context.out, about, memory_in_use)
    begun = time.monotonic()
    try:
        with _others(node):
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
        **({"hub": context.commits.used} if context.commits.used else {}),
        "environment": environment(),
        "recipe_version": __version__,
    }
    return graph.run.publish(node.name, manifest)
