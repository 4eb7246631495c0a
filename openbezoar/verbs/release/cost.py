"""What a release writes."""

from __future__ import annotations

from collections.abc import Mapping

from openbezoar.models.memory import parameters
from openbezoar.recipe.tell_steps import GgufForm, Release
from openbezoar.verbs.book import Book, Estimate

GGUF_WIDTHS: Mapping[GgufForm, float] = {"f16": 2.0, "q8_0": 34 / 32}
"""Bytes a weight in GGUF; q8_0 holds 32 weights in 32 bytes and a 16-bit scale."""


def cost(step: Release, book: Book) -> Estimate:
    """Copies of the models; the safetensors are links to the merge step's."""
    shapes = [shape for name in step.release if (shape := book.shape(name))]
    widths = [GGUF_WIDTHS[form] for form in step.gguf]
    return Estimate(written_bytes=sum(int(width * sum(parameters(shape))) for shape in shapes for width in widths))
