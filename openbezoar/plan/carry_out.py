"""A plan carried out: what will go wrong is told, the steps run, and what they taught of this machine is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from openbezoar.engine import execution
from openbezoar.engine.graph import Graph, build
from openbezoar.machine import distributed, stops
from openbezoar.machine.devices import this_device
from openbezoar.plan.concerns import concerns
from openbezoar.plan.estimates import safe_estimate
from openbezoar.plan.rates import learn
from openbezoar.plan.table import what_is_left
from openbezoar.progress import Progress, duration


def carry_out(
    make: Callable[[], Graph], progress: Progress, *, to: str | None = None, overrides: Sequence[str] = ()
) -> Graph:
    """Run what is not done of a graph, which ``make`` builds; gives the graph as it is then.

    to: the last step that is wanted. overrides: what the graph was built with, kept in
    ``run.json``. Of processes that train together all but the first follow it and write nothing.
    """
    if distributed.rank() > 0:
        execution.follow(make)
        return make()
    graph = make()
    if any(node.state != "done" for node in graph.upto(to)):
        device = this_device()
        for concern in concerns(graph, safe_estimate(graph, device), device, to):
            if concern.kind != "packages":  # which ends the run in the same words
                progress.warn(f"warning: {concern}")
    graph.run.path.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    ran: list[str] = []

    def taught() -> Graph:
        # not from the file, which may have been edited since
        done = build(graph.recipe, graph.recipe_path, graph.run.path.parent)
        learn(done, ran, safe_estimate(done))
        return done

    try:
        execution.execute(graph, progress, to, overrides=overrides, ran=ran)
    except stops.Stop:
        if stops.code() == stops.TIME_IS_UP:  # such runs may never come to their end, and there is time
            progress.warn(f"left, by plan's estimate: {what_is_left(taught(), to)}")
        raise
    done = taught()
    progress.say(
        f"{len(ran)} step{'s' * (len(ran) != 1)} done in {duration(time.monotonic() - begun)}"
        if ran
        else "Nothing to do: every step is done."
    )
    return done
