"""What runs on this machine have taught: arithmetic a second by device and verb, and how wordy each teacher is.

Reads and writes ``rates.json`` in the cache folder. ``plan`` divides by them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from openbezoar.engine.graph import Graph
from openbezoar.machine.devices import this_device
from openbezoar.models.references import cache_folder
from openbezoar.store.files import write_json
from openbezoar.verbs.book import Estimate, rate_name

# FLOPs of a step below which its time is loading and starting, which says nothing of the machine's
# rate
LEARNT_FROM = 1.0e12
WHOLE = 0.8  # of the seconds that a step's tokens take at its own rate; with fewer, part of them were there before
LEARNT_TOKENS = 1000  # of a generate step, below which its ratio is chance


def _file() -> Path:
    return cache_folder() / "rates.json"


def learnt_rates() -> dict[str, float]:
    """FLOP/s by ``rate_name``, and ratios of tokens by ``Estimate.ratio``, as ``learn`` kept them on this machine."""
    try:
        return {
            str(name): float(rate) for name, rate in json.loads(_file().read_text(encoding="utf-8")).items() if rate > 0
        }
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def _whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a step's seconds are those of all its work: not of a try that went on from a
    checkpoint, or read its answers from the call cache.
    """
    numbers = manifest.get("numbers", {})
    if "tokens_per_second" not in numbers:
        return True
    rate = numbers["tokens_per_second"]
    return bool(rate) and manifest["seconds"] >= WHOLE * numbers["tokens"] / rate


def learn(graph: Graph, ran: list[str], estimates: Mapping[str, Estimate]) -> None:
    """Keep the rates that the steps which just ran reached (the estimate of their work over the
    time it took), and tokens against those estimated.
    """
    work: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}
    known, device = learnt_rates(), this_device()
    for name, made in estimates.items():
        manifest = graph.run.manifest(name) if name in ran else None
        numbers = (manifest or {}).get("numbers", {})
        if (
            made.ratio
            and numbers.get("tokens")
            and made.tokens_in
            and made.tokens_out
            and made.tokens_in + made.tokens_out >= LEARNT_TOKENS
        ):
            for side, real, thought in (
                ("in", numbers["prompt_tokens"], made.tokens_in),
                ("out", numbers["tokens"], made.tokens_out),
            ):
                key = f"{made.ratio}.{side}"
                ratios[key] = known.get(key, 1.0) * real / thought
        if (
            manifest
            and made.flops
            and made.flops >= LEARNT_FROM
            and manifest.get("seconds", 0) > 1
            and _whole(manifest)
        ):
            flops_seconds = work.setdefault(rate_name(device, graph.nodes[name].verb), [0.0, 0.0])
            flops_seconds[0] += made.flops
            flops_seconds[1] += manifest["seconds"]
    if not work and not ratios:
        return
    with suppress(OSError):  # a cache folder that cannot be written to; the run is done all the same
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), known | ratios | {name: flops / seconds for name, (flops, seconds) in work.items()})
