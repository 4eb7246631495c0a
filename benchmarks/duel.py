"""The course of an sft or dpo benchmark: check, search the peers' best settings, measure in turn, compare.

Starts one worker process after another; computes nothing itself. The result's JSON says all
that was measured, tried and left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import common, searches
from benchmarks.common import Spec
from benchmarks.training import ARMS, CHECK_ROWS, Job, checkpoint


@dataclass(frozen=True)
class Plan:
    """A benchmark of training. settings: a peer's, by side; modes: TRL's, whose sameness is checked one by one."""

    name: str
    trl: list[Spec]
    plain: list[Spec]
    modes: list[Spec]


def run(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """All arms of a benchmark; the result's JSON."""
    common.require_peers("trl", "peft", "bitsandbytes")
    about = common.machine()
    base = Job(
        "time",
        "ours",
        str(checkpoint(options.model).folder()),
        str(options.data),
        options.n,
        options.batch,
        options.max_length,
        "none",
        "bfloat16",
        {},
    )
    kept = searches.Kept(options.json.with_name("searches.json"), about)
    work = call(plan, replace(base, what="work", warm=base.batch))
    result: dict[str, Any] = {}
    order: dict[str, list[Spec]] = {"trl": plan.trl, "plain": plan.plain}
    for arm in options.arms:
        job = replace(base, quantize=ARMS[arm])
        result[arm] = _arm(plan, job, order, options, kept)
        order = {side: searches.fastest_first(result[arm]["search"][side]) for side in order}
        for side in ("ours", "peer", "second_peer"):
            result[arm][side]["matmul_share"] = work["flops"] / result[arm][side]["seconds"]["median"] / work["rate"]
            result[arm][side][f"{work['unit']}_per_second"] = work["rows"] / result[arm][side]["seconds"]["median"]
    return {
        **common.headline(plan.name, result),
        "peer_name": "TRL",
        "second_peer_name": "plain PEFT loop",
        "model": options.model,
        "data": str(options.data.name),
        **work,
        "batch": options.batch,
        "max_length": options.max_length,
        "rounds": options.rounds,
        "arms": result,
        "machine": about,
    }


def parser(name: str, about: str, n: int, n_help: str) -> argparse.ArgumentParser:
    """The command line of a benchmark of training."""
    made = common.parser(name, about, n, n_help)
    made.add_argument("--batch", type=int, default=16, help="rows an optimiser step, of every side (default 16)")
    made.add_argument("--max-length", type=int, default=1024, help="rows with more tokens are left out (default 1024)")
    made.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="how the base is held (default: both)"
    )
    return made


def micros(options: argparse.Namespace) -> list[int]:
    """The micro-batches that divide the batch, middling ones first as they are likelier the
    fastest. Raises BenchmarkError without one.
    """
    fit = sorted((m for m in set(options.micro) if options.batch % m == 0), key=lambda m: (abs(math.log2(m) - 2), m))
    if not fit:
        raise common.BenchmarkError(
            f"--micro: none of {options.micro} divides --batch {options.batch}; give one that does, such as 1"
        )
    return fit


def call(plan: Plan, job: Job) -> dict[str, Any]:
    """Run one worker."""
    return common.run_worker(f"benchmarks.{plan.name}", vars(job))


def _arm(
    plan: Plan, job: Job, order: dict[str, list[Spec]], options: argparse.Namespace, kept: searches.Kept
) -> dict[str, Any]:
    common.say(f"{plan.name} {job.quantize}: checking that all sides compute the same")
    checks = _checks(plan, job)
    # with none the result says that it is not the same
    trusted = [mode for mode in plan.modes if checks["trl " + named(mode)]["same"]] or plan.modes
    found = {}
    for side in ("trl", "plain"):
        settings = [s for s in order[side] if side == "plain" or mode_of(plan, s) in trusted]
        pilot = replace(job, side=side, n=min(job.n, job.batch))
        common.say(f"{plan.name} {job.quantize}: searching {side}'s best of {len(settings)} settings")
        about = {"benchmark": plan.name} | {k: v for k, v in vars(pilot).items() if k not in ("setting", "limit")}
        about |= {"model": options.model, "data": searches.digest_of(options.data)}
        found[side] = searches.search(
            settings,
            lambda s, limit, pilot=pilot: call(plan, replace(pilot, setting=s, limit=limit)),  # type: ignore[misc]
            options.minutes / (2 * len(options.arms)),
            (kept, about),
            fewer_threads(kept.machine["threads"]),
        )
    rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": [], "plain": []}
    for number, side in common.alternate(list(rounds), options.rounds):
        setting = {} if side == "ours" else found[side]["best"]
        rounds[side].append(call(plan, replace(job, side=side, setting=setting, warm=job.batch)))
        common.say(
            f"{plan.name} {job.quantize}: round {number + 1} {side} {rounds[side][-1]['seconds']:.1f} s"
            f" {named(setting)}"
        )
    second = common.compare(rounds["ours"], rounds["plain"])
    first = common.compare(rounds["ours"], rounds["trl"])
    shares = [one["foreign_share"] for one in (first, second) if one["foreign_share"] is not None]
    return {
        **first,
        "foreign_share": max(shares, default=None),
        "second_peer": second["peer"],
        "second_ratio": second["ratio"],
        "same": all(
            checks[side]["same"] for side in ("trl " + named(mode_of(plan, found["trl"]["best"])), "plain micro 2")
        ),
        "finished": all(one["finished"] for one in found.values()),
        "checks": checks,
        "search": found,
        "rounds": rounds,
    }


def mode_of(plan: Plan, setting: Spec) -> Spec:
    """The checked mode that a setting belongs to."""
    return next(mode for mode in plan.modes if mode.get("mode") == setting.get("mode"))


def fewer_threads(threads: int) -> Callable[[Spec], list[Spec]]:
    """A refinement of a search: the best setting with half the threads."""
    return lambda best: [{**best, "threads": threads // 2}] if threads > 1 else []


def named(setting: Spec) -> str:
    """A setting in words."""
    return " ".join(str(v) if isinstance(v, str) else f"{k} {v}" for k, v in setting.items() if v is not False)


def _checks(plan: Plan, job: Job) -> dict[str, Any]:
    """First-step loss and gradient norm (and per-item log-probabilities, where a side gives them)
    in fp32, each peer against ours; and, of a base that is not quantised, both against the plain loop in fp64.
    """
    check = replace(job, what="check", n=CHECK_ROWS, batch=CHECK_ROWS, dtype="float32")
    ours = call(plan, check)
    exact = (
        call(plan, replace(check, side="plain", setting={"micro": 2}, dtype="float64"))
        if check.quantize == "none"
        else None
    )
    sides = [("trl", mode) for mode in plan.modes] + [("plain", {"micro": 2})]
    found = {}
    for side, setting in sides:
        try:
            theirs = call(plan, replace(check, side=side, setting=setting))
        except common.BenchmarkError as error:
            found[f"{side} {named(setting)}"] = {"same": False, "error": str(error)}
            continue
        found[f"{side} {named(setting)}"] = agreement(ours, theirs, exact)
    return found


def agreement(ours: dict[str, Any], theirs: dict[str, Any], exact: dict[str, Any] | None = None) -> dict[str, Any]:
    """One peer's first step against ours. exact: the same step in fp64, to tell which of the two is nearer to it."""
    same = common.close(ours["loss"], theirs["loss"]) and common.close(
        ours["gradient_norm"], theirs["gradient_norm"], relative=True
    )
    found: dict[str, Any] = {name: {"ours": ours[name], "peer": theirs[name]} for name in ("loss", "gradient_norm")}
    if exact:
        found["loss"]["fp64"] = exact["loss"]
    if items := theirs.get("logprobs"):
        compared = list(zip(ours["logprobs"], items, ours["lengths"], strict=True))
        found["logprobs"] = {
            "items": len(items),
            "largest_difference": max(abs(a - b) for a, b, _ in compared),
            "largest_difference_a_token": max(abs(a - b) / n for a, b, n in compared),
        }
        same = same and all(common.close_sums(*one) for one in compared)
        if exact:
            found["logprobs"]["fp64"] = common.nearer(ours["logprobs"], items, exact["logprobs"], ours["lengths"])
    return {"same": same, **found}
