"""The table of ``docs/how-to/one-gpu.md``: what trainings come to on cards by the model's size, all estimated."""

from __future__ import annotations

from collections.abc import Iterator

from openbezoar.machine.devices import device_named
from openbezoar.models.memory import parameters
from openbezoar.models.pace import Fit, fit_of
from openbezoar.recipe.blocks import Shape
from openbezoar.recipe.train_steps import Sft

# The shapes in the published configs of SmolLM2-360M, TinyLlama 1.1B, OpenLLaMA 3B v2, and Llama 2 7B and 13B.
SHAPES = (
    Shape(hidden=960, layers=32, heads=15, kv_heads=5, mlp=2560, vocabulary=49_152, tied_head=True),
    Shape(hidden=2048, layers=22, heads=32, kv_heads=4, mlp=5632, vocabulary=32_000),
    Shape(hidden=3200, layers=26, heads=32, mlp=8640, vocabulary=32_000),
    Shape(hidden=4096, layers=32, heads=32, mlp=11_008, vocabulary=32_000),
    Shape(hidden=5120, layers=40, heads=40, mlp=13_824, vocabulary=32_000),
)
CARDS = ("t4", "2xt4", "rtx3090", "rtx4090", "a100", "h100")
ROW = 512  # tokens
STEP = Sft(sft="rows", model="base", quantize="auto", batch=32)


def gpu_table() -> Iterator[str]:
    """Its lines, in Markdown."""
    yield "| model | card | tokens a pass | arithmetic, base | layers recomputed | memory a card | tokens a second |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for shape in SHAPES:
        for name in CARDS:
            device = device_named(name)
            fit = fit_of(shape, STEP, device, length=ROW)
            fits = device.bytes is not None and fit.peak <= device.bytes
            yield _line(f"{sum(parameters(shape)) / 1e9:.1f}B", device.name, fit, fits)


def _line(model: str, card: str, fit: Fit, fits: bool) -> str:
    mark = "measured" if fit.measured else "estimated"
    speed = f"{fit.tokens_per_second:,.0f}, {mark}" if fit.tokens_per_second and fits else ""
    memory = f"{fit.peak / 1e9:.1f} GB, {mark}" + ("" if fits else ": does not fit")
    cells = (model, card, f"{fit.tokens:,}", f"{fit.dtype}, {fit.held}", f"{fit.recomputed} of {fit.layers}")
    return f"| {' | '.join((*cells, memory, speed))} |"
