"""The command ``doctor``: what this machine has for runs, and what is wrong with it. No torch at import."""

from __future__ import annotations

from dataclasses import asdict

import typer

from openbezoar.cli.arguments import RUNS, AsJson, Runs, print_json
from openbezoar.progress import visible

WIDTH = len("track-tensorboard")


def doctor(runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Check what this machine has, and what is wrong with it.

    Packages, torch, devices, disk, caches, logins, engines, network. A line a finding:
    ok, note (slower, or missing for some uses) or bad (runs would fail), what was found,
    and a remedy. Nothing is changed or downloaded, and no token is read. Exits with 2 if
    anything is bad.

    Example: openbezoar doctor --json
    """
    from openbezoar.plan.doctor import findings

    found = []
    for one in findings(runs):  # told at once, since torch takes its time
        found.append(one)
        if not as_json:
            remedy = f"; remedy: {one.remedy}" if one.remedy else ""
            print(visible(f"{one.state:4}  {one.about:{WIDTH}}  {one.found}{remedy}"), flush=True)
    counts = {state: sum(one.state == state for one in found) for state in ("bad", "note", "ok")}
    if as_json:
        print_json({**counts, "findings": [asdict(one) for one in found]})
    else:
        print(f"{counts['bad'] or 'nothing'} bad, {counts['note'] or 'nothing'} to note, {counts['ok']} ok")
    if counts["bad"]:
        raise typer.Exit(2)
