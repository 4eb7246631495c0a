"""What a merge takes: memory for the weights, disk for one or two models."""

from __future__ import annotations

from openbezoar.models.memory import merge_memory, parameters
from openbezoar.recipe.train_steps import Merge
from openbezoar.verbs.book import Book, Estimate


def cost(step: Merge, book: Book) -> Estimate:
    """Its drift rows, memory and files."""
    shape = book.shape(step.merge)
    estimate = Estimate(rows=step.drift_rows)
    if shape is not None:
        estimate.memory_bytes = merge_memory(shape, book.device)
        estimate.written_bytes = (4 if step.dtype == "float32" else 2) * sum(parameters(shape))
        estimate.passing_bytes = estimate.written_bytes if step.onto == "best" else 0  # both bases are tried
    return estimate
