"""The peer at its fastest: a search over its settings, kept for the machine that it was made on.

A search that has not come to its end goes on the next time; only a finished one, made on an idle
machine, stands behind a headline. Starts what it is given; measures nothing itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError, Spec, disturbed

OF_A_PEER = ("torch", "transformers", "peft", "bitsandbytes", "trl", "lm_eval")


class Kept:
    """The trials of searches in a file, by what was searched and on which machine.

    path: JSON, made at the first trial. machine: as ``common.machine`` describes it.
    """

    def __init__(self, path: Path, machine: Mapping[str, Any]) -> None:
        self.path = path
        versions = {name: machine["versions"].get(name) for name in OF_A_PEER}
        where = {name: machine[name] for name in ("processor", "cores", "threads", "device")}
        self.machine = {**where, "versions": versions}

    def trials(self, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What was tried of this before; about: all that the times depend on beside the machine and the setting."""
        entry = self._entry(self._read(), about)
        return [] if entry is None else list(entry["trials"])

    def add(self, about: Mapping[str, Any], trial: Mapping[str, Any]) -> None:
        """Keep a trial, in place of an earlier one of its setting."""
        searches = self._read()
        entry = self._entry(searches, about)
        if entry is None:
            entry = {"machine": self.machine, "about": dict(about), "trials": []}
            searches.append(entry)
        entry["trials"] = [t for t in entry["trials"] if t["setting"] != trial["setting"]] + [dict(trial)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(searches, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(self.path)

    def _entry(self, searches: Sequence[dict[str, Any]], about: Mapping[str, Any]) -> dict[str, Any] | None:
        sought = {"machine": self.machine, "about": json.loads(json.dumps(about))}
        return next((s for s in searches if {"machine": s["machine"], "about": s["about"]} == sought), None)

    def _read(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise BenchmarkError(f"{self.path}: no JSON ({error}); delete it, and searches begin anew") from error
        return list(found)


def search(
    settings: Sequence[Spec],
    run: Callable[[Spec, float | None], dict[str, Any]],
    minutes: float = math.inf,
    kept: tuple[Kept, Mapping[str, Any]] | None = None,
    refine: Callable[[Spec], Sequence[Spec]] = lambda best: (),
) -> dict[str, Any]:
    """The fastest of some settings by one short pilot each: {best, tried, untried, finished}.

    run: setting, seconds after which it has lost → a result with ``seconds``, None if it was cut off
    there, ``foreign_share`` and perhaps ``by_task``, which are noted. kept: where trials of before are,
    and under what. refine: settings to try once the best of the others is known. The first setting that
    works is always measured; those that the time no longer allows are listed as ``untried``. A setting
    that fails (memory, say) is listed with its error. finished: every setting was tried, none beside
    other work. Raises BenchmarkError if none works.
    """
    deadline = time.monotonic() + 60 * minutes
    trials = [t for t in (kept[0].trials(kept[1]) if kept else []) if settled(t)]
    least = min((t["seconds"] for t in trials if t["seconds"] is not None and t["setting"] in settings), default=None)
    # One that was cut off has lost against what it was held to, which may be a setting that is not searched now.
    before = {
        json.dumps(t["setting"]): t
        for t in trials
        if t["seconds"] is not None or (least is not None and least <= t.get("limit", 0.0))
    }
    tried: list[dict[str, Any]] = []
    untried: list[Spec] = []

    def fastest() -> tuple[float, Spec] | None:
        return min(
            ((t["seconds"], t["setting"]) for t in tried if t["seconds"] is not None), key=lambda t: t[0], default=None
        )

    def go(some: Sequence[Spec]) -> None:
        tried.extend(before[key] for key in map(json.dumps, some) if key in before)
        for setting in (s for s in some if json.dumps(s) not in before):
            best = fastest()
            if best is not None and time.monotonic() > deadline:
                untried.append(setting)
                continue
            try:
                found = run(setting, None if best is None else best[0])
            except BenchmarkError as error:
                tried.append({"setting": setting, "seconds": None, "error": str(error)})
                continue
            noted = {name: found[name] for name in ("seconds", "foreign_share", "by_task") if name in found}
            limit = {} if best is None or found["seconds"] is not None else {"limit": best[0]}
            tried.append({"setting": setting, **noted, **limit})
            if kept and settled(tried[-1]):
                kept[0].add(kept[1], tried[-1])

    go(settings)
    first = fastest()
    if first is None:
        raise BenchmarkError("the peer ran with none of its settings: " + "; ".join(str(t.get("error")) for t in tried))
    go([setting for setting in refine(first[1]) if setting not in settings])
    best = fastest()
    assert best is not None
    return {
        "best": best[1],
        "tried": tried,
        "untried": untried,
        "finished": not untried and not any(disturbed(t) for t in tried),
    }


def settled(trial: Mapping[str, Any]) -> bool:
    """Whether a trial need not be made again: it ran, and on an idle machine."""
    return not trial.get("error") and not disturbed(trial)


def fastest_first(found: Mapping[str, Any]) -> list[Spec]:
    """A search's settings, the fastest first, for a search of something alike; what failed comes last."""
    tried = sorted(
        found["tried"], key=lambda t: (t.get("error") is not None, t["seconds"] is None, t["seconds"] or 0.0)
    )
    return [t["setting"] for t in tried] + list(found["untried"])


def finished(found: Mapping[str, Any]) -> bool:
    """Whether a search came to its end; those of results from before this was noted, by what they list as untried."""
    return bool(found.get("finished", not found["untried"]))


def digest_of(data: Path) -> str:
    """What tells a file of rows from another one of its name."""
    with data.open("rb") as file:
        return f"{data.name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
