"""What a recipe's steps will cost, before anything is spent or downloaded: rows, tokens, money, memory, time."""

from __future__ import annotations

from openbezoar.engine.graph import Graph
from openbezoar.errors import UserError
from openbezoar.machine.devices import Device, this_device
from openbezoar.plan.rates import learnt_rates
from openbezoar.verbs.book import Book, Estimate


def estimate(graph: Graph, device: Device | None = None) -> dict[str, Estimate]:
    """One estimate a step, in the graph's order; inputs' row counts are carried along. device: this
    machine's if none is given.
    """
    done = {node.name for node in graph.nodes.values() if node.state == "done"}
    book = Book(
        graph.recipe, graph.recipe_path, graph.run, done=done, device=device or this_device(), rates=learnt_rates()
    )
    for node in graph.nodes.values():
        cost = node.row.part("cost")
        book.estimates[node.name] = cost(node.step, book) if cost else Estimate()
    return book.estimates


def safe_estimate(graph: Graph, device: Device | None = None) -> dict[str, Estimate]:
    """``estimate``, with an empty one for each step if the data cannot be read."""
    try:
        return estimate(graph, device)
    except (UserError, OSError):
        return {name: Estimate() for name in graph.nodes}
