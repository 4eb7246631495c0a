"""Parts of ``benchmarks.gpu`` that ask whether numbers are right: the package's ways against plain ones."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_models import (
    EXACT,
    ROUGH,
    SMALL,
    CannotRun,
    Found,
    Place,
    adapter,
    base_model,
    drawn_pairs,
    drawn_rows,
    gradient,
    off,
    our_model,
    pack_nf4,
    plain_model,
    plain_scores,
    product_rate,
    recompute,
    row,
)
from openbezoar.forest import Scorer, TokenPath, Tree
from openbezoar.forest.layout import Layout, lay_out
from openbezoar.recipe.train_steps import Sft


def equal(place: Place) -> Found:
    """The package's ways against plain ones, in values and gradients."""
    from openbezoar.training.losses import PairScores, answer_sums, answer_tokens, sigmoid
    from openbezoar.training.objectives import same_pass_reference, sft_objective

    found, shape = Found(), place.compared
    small = Place(place.device, True)
    pairs = drawn_pairs(4, small)
    peer = plain_model(shape, place, torch.float32)
    paths = [path for tree in pairs for path in tree]
    scores = plain_scores(peer, paths, place.device)
    torch.stack([score.sum() for score in scores]).sum().backward()  # type: ignore[no-untyped-call]
    wanted, wanted_gradient = torch.cat(scores), gradient(peer)
    model = our_model(shape, place, torch.float32)
    scorer = Scorer(model)

    def passed(of: Scorer) -> tuple[Tensor, Tensor]:
        together = torch.cat([path for tree in of.score(pairs) for path in tree])
        together.sum().backward()  # type: ignore[no-untyped-call]
        return together, gradient(of.model)

    values, gradients = passed(scorer)
    # a GPU's products in fp32 may use TF32 for neither side; their order of summation differs
    found.at_most("forest: values", off(values, wanted), 20 * EXACT)
    found.at_most("forest: gradients", off(gradients, wanted_gradient), 100 * EXACT)
    with torch.no_grad(), model.disable_adapter():
        without = torch.cat([path for tree in scorer.score(pairs) for path in tree])
        bare = torch.cat(plain_scores(base_model(shape, place, torch.float32, ours=False), paths, place.device))
    found.at_most("adapter off: values of the base", off(without, bare), 20 * EXACT)
    found.holds("adapter on: other values", off(values, bare) > 20 * EXACT)
    _recomputed(place, pairs, found)
    # DPO before its first step: policy and reference are one model
    fresh = Scorer(our_model(shape, place, place.dtype, grown=False))
    reference = same_pass_reference(fresh)(pairs)
    scored = fresh.score(pairs)
    policy = PairScores.of(answer_sums(scored), answer_tokens(scored), reference)
    first = float(sigmoid(policy, beta=0.1, label_smoothing=0.0).mean().detach())
    found.at_most("DPO's first loss: off ln 2", abs(first - math.log(2)), 1e-3)
    # float16 with a scaled loss against fp32
    rough = Scorer(our_model(shape, place, torch.float16))
    scaler = torch.amp.GradScaler(place.device.type, init_scale=2.0**10)
    loss, _ = sft_objective(rough, pairs).loss(pairs, 1.0)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    halves = gradient(rough.model) / scaler.get_scale()
    found.at_most("float16 with scaling: gradients", off(halves, -gradients), 2 * ROUGH)
    return found


def _recomputed(place: Place, pairs: Sequence[Tree], found: Found) -> None:
    """Gradients with activations recomputed in no layer, in the first, and in all: dropout included."""
    from openbezoar.training.objectives import sft_objective

    layers = place.compared["layers"]
    seen: dict[int, Tensor] = {}
    for wanted in (0, 1, layers):
        model = our_model(place.compared, place, torch.float32, dropout=0.2)
        recompute(model, wanted)
        scorer = Scorer(model.train())
        scorer.checked = True
        torch.manual_seed(3)
        loss, _ = sft_objective(scorer, pairs).loss(pairs, 1.0)
        loss.backward()  # type: ignore[no-untyped-call]
        seen[wanted] = gradient(model)
    for wanted in (1, layers):
        # Exactly the same on a CPU; a GPU's attention adds up in an order that changes.
        found.at_most(f"recomputed in {wanted}: gradients", off(seen[wanted], seen[0]), 1e-5 if place.on_gpu else 0.0)


def dense(layout: Layout, window: int | None) -> Tensor:
    """Which key each query sees [n, n], from the layout's segments alone."""
    n = len(layout.ids)
    seen = torch.zeros(n, n, dtype=torch.bool)
    for segment in layout.segments:
        for start, end in segment.before:
            seen[segment.start : segment.end, start:end] = True
        size = segment.end - segment.start
        seen[segment.start : segment.end, segment.start : segment.end] = torch.ones(size, size).tril().bool()
    if window is not None:
        positions = layout.positions.cpu()
        seen &= positions[None] > positions[:, None] - window
    return seen


def attention(place: Place) -> Found:
    """Attention over trees, each way, against a dense computation in fp64."""
    from openbezoar.forest import flex
    from openbezoar.forest.attention import _segments

    found = Found()
    ways: dict[str, Any] = {"segments": _segments}
    if flex._able(place.device):
        ways["flex"] = flex.attend
    kinds = [(None, None, 4, 2, 64), (16, None, 4, 4, 100), (None, 30.0, 2, 1, 128)]
    lengths = [40] if place.tiny else [129, 384, 1000, 1500]
    dtypes = [torch.float32, torch.bfloat16] if place.dtype != torch.float16 else [torch.float32, torch.float16]
    begun = time.perf_counter()
    for longest in lengths:
        for window, cap, heads, kv_heads, d in kinds:
            stem = range(longest // 3)
            paths = (
                TokenPath.of((*stem, 1), range(longest)),
                TokenPath.of((*stem, 2), range(longest // 2)),
                TokenPath.of(stem, range(3, longest)),
                TokenPath.of((9,), range(7)),
            )
            layout = lay_out([paths], place.device)
            drawn = torch.Generator().manual_seed(longest)
            q, k, v, above = (
                torch.randn(1, h, len(layout.ids), d, generator=drawn, dtype=torch.float64)
                for h in (heads, kv_heads, kv_heads, heads)
            )
            wanted = _dense_attention(q, k, v, above, dense(layout, window), cap)
            for dtype in dtypes:
                # the rounding of what goes in is not the kernel's
                for name, way in ways.items():
                    if name == "flex" and dtype == torch.float32 and d > 64:
                        continue  # its fp32 tiles are larger than some GPUs' shared memory
                    leaves = [x.to(place.device, dtype).requires_grad_() for x in (q, k, v)]
                    out = way(layout, *leaves, None, window, cap)
                    grads = torch.autograd.grad(out, leaves, above.to(place.device, dtype))
                    gaps = [off(a, b) for a, b in zip((out, *grads), wanted, strict=True)]
                    kind = f"{name} {dtype} {longest} d={d} window={window} cap={cap}"
                    found.at_most(kind, max(gaps), ROUGH if dtype != torch.float32 else 3 * EXACT)
    found.numbers["ways"] = list(ways)
    found.numbers["seconds"] = time.perf_counter() - begun
    compiled = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    found.numbers["compilations"] = compiled
    found.target("compilations", compiled, compiled <= 8 * len(kinds), "at most 8 a kind of attention")
    return found


def _dense_attention(
    q: Tensor, k: Tensor, v: Tensor, above: Tensor, seen: Tensor, cap: float | None
) -> tuple[Tensor, ...]:
    """(output, gradients of q, k, v) by the definition."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    query, key, value = leaves
    times = q.shape[1] // k.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value
    return (out.detach(), *torch.autograd.grad(out, leaves, above))


def nf4(place: Place) -> Found:
    """bitsandbytes' products on packed weights against the same weights unpacked."""
    if find_spec("bitsandbytes") is None:
        raise CannotRun("bitsandbytes is not installed")
    from openbezoar.models.shards import nf4_values

    found, shape, dtype = Found(), place.timed, place.dtype
    limit = ROUGH if place.on_gpu else 20 * EXACT
    drawn = torch.Generator().manual_seed(0)
    holder = nn.ModuleDict({"one": nn.Linear(shape["hidden"], shape["mlp"], bias=False)})
    weight = 0.02 * torch.randn(shape["mlp"], shape["hidden"], generator=drawn)
    holder["one"].weight.data = weight.to(place.device, dtype)
    unpacked = nf4_values(holder["one"].weight.data.clone(), dtype).double().cpu()
    pack_nf4(holder, dtype)
    packed: Any = holder["one"]
    held = packed.weight
    found.numbers["bytes_a_weight"] = held.numel() * held.element_size() / weight.numel()
    found.at_most("bytes a weight", found.numbers["bytes_a_weight"], 0.5)
    for rows in (1, 16, 96) if place.tiny else (1, 16, 512, 2048):  # few rows go through kernels of their own
        x = torch.randn(rows, shape["hidden"], generator=drawn)
        given = x.to(place.device, dtype).requires_grad_(rows > 16)
        out = packed(given)
        wanted = given.detach().double().cpu() @ unpacked.T
        found.at_most(f"{rows} rows: values", off(out, wanted), limit)
        if rows > 16:
            out.sum().backward()
            assert given.grad is not None
            summed = unpacked.sum(0).expand(rows, -1)
            found.at_most(f"{rows} rows: gradients", off(given.grad, summed), limit)
            dense_weight = unpacked.to(place.device, dtype)
            products: dict[str, Callable[[], Tensor]] = {
                "packed": partial(packed, given),
                "unpacked": partial(torch.matmul, given, dense_weight.T),
            }
            for name, product in products.items():
                seconds = place.times(product)
                work = 2.0 * rows * weight.numel()
                found.rows.append(row({"rows": rows, "held": name}, seconds, rows, work, product_rate(place)))
    small = Place(place.device, True)
    pairs = drawn_pairs(2, small)
    scorer = Scorer(our_model(place.compared, place, dtype, nf4=True).train())
    torch.cat([path for tree in scorer.score(pairs) for path in tree]).sum().backward()  # type: ignore[no-untyped-call]
    whole = gradient(scorer.model)
    found.holds(
        "a model on packed weights has gradients", bool(whole.isfinite().all()) and float(whole.abs().max()) > 0
    )
    return found


STEPS = 4
KILLED = 3


def _trained(place: Place, out: Path, kill: bool) -> tuple[list[dict[str, Any]], Tensor]:
    """Optimiser steps over drawn rows: the lines of the log, the adapter's values. kill: SIGKILL in step 3."""
    from openbezoar.progress import Silent
    from openbezoar.training.loop import train
    from openbezoar.training.objectives import sft_objective

    small = Place(place.device, True)
    trees = drawn_rows(8, small, longest=60)
    settings = Sft(
        sft="x",
        model="base",
        quantize="none",
        dtype="float32",
        batch=4,
        epochs=4,
        max_steps=STEPS,
        learning_rate=1e-3,
        save_every=1,
        lora=adapter(0.1),
    )
    model = our_model(SMALL, place, torch.float32, dropout=0.1)
    scorer = Scorer(model, 256)

    def tell(log: str, line: Any) -> None:
        if kill and log == "metrics" and line["step"] == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    train(
        model,
        scorer,
        trees,
        objective=sft_objective(scorer, trees[:2]),
        settings=settings,
        out=out,
        progress=Silent(),
        seed=3,
        tell=tell,
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [p.detach().flatten().cpu() for _, p in sorted(model.named_parameters()) if p.requires_grad]
    return lines, torch.cat(values)


def resume(place: Place) -> Found:
    """A training killed in a step and begun again against one that ran through."""
    from openbezoar.training.resume import read_sealed, save_sealed

    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder, "killed"), Path(folder, "whole")
        for place_of_one in (killed, whole):
            place_of_one.mkdir()
        child = os.fork()  # before this process has used the device, which a fork could not share
        if child == 0:
            with contextlib.suppress(BaseException):
                _trained(place, killed, kill=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found.holds("the first try was killed", os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
        left = (killed / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found.numbers["lines_when_killed"] = len(left)
        lines, values = _trained(place, killed, kill=False)
        lines_whole, values_whole = _trained(place, whole, kill=False)
        found.holds("each step has one line", [line["step"] for line in lines] == list(range(1, STEPS + 1)))
        gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(lines, lines_whole, strict=True))
        found.at_most("losses", gap, 1e-3 if place.on_gpu else 0.0)
        if not place.on_gpu:
            found.holds("the adapter, bit for bit", torch.equal(values, values_whole))
        found.at_most("the adapter", off(values, values_whole), 1e-2 if place.on_gpu else 0.0)
        held = {"a": torch.randn(64, 3), "b": torch.randn(7).to(torch.bfloat16)}
        on_device = {name: value.to(place.device) for name, value in held.items()}
        file = Path(folder, "sealed.safetensors")
        save_sealed(file, {name: value.cpu() for name, value in on_device.items()}, {"x": "1"})
        again, _ = read_sealed(file, "")
        found.holds("a file, bit for bit", all(torch.equal(again[name], held[name]) for name in held))
    return found
