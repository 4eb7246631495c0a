"""The commands about recipes: ``plan``, ``run`` and ``schema``. Arguments in, one call, words out;
no torch at import.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from openbezoar.cli.arguments import RUNS, AsJson, RecipePath, Runs, Set, graph_of, print_json, seconds
from openbezoar.store.digests import MANIFEST

if TYPE_CHECKING:
    from openbezoar.engine.graph import Graph


def plan(
    recipe: RecipePath,
    overrides: Set = None,
    runs: Runs = RUNS,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="DEVICE", help="Would it fit there? cpu:16GB, cuda:24GB, t4, 2xt4, rtx3090, a100, h100."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what would run and why, and what it will cost.

    Tokens, money, memory and time are estimated from the data, the models' sizes and what
    runs on this machine have taught. Nothing is downloaded, nothing is run. Warnings tell
    what will not fit into memory or on the disk, or overshoots a budget.

    Example: openbezoar plan demo --device t4
    """
    from openbezoar.machine.devices import device_named, this_device
    from openbezoar.plan.table import plan_json, plan_of, print_plan

    planned = plan_of(graph_of(recipe, overrides, runs), this_device() if device is None else device_named(device))
    if as_json:
        print_json(plan_json(planned))
    else:
        print_plan(planned)


def run(
    recipe: RecipePath,
    to: Annotated[
        str | None, typer.Option("--to", "--until", metavar="STEP", help="Stop when this step is done.")
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit",
            metavar="TIME",
            parser=seconds,
            help="Stop before so much time has passed, with room to save: 11h30m, 90m, 45s. Exit code 75.",
        ),
    ] = None,
    overrides: Set = None,
    runs: Runs = RUNS,
    quiet: Annotated[bool, typer.Option("--quiet", help="One line a step, and warnings.")] = False,
) -> None:
    """Run what is not done. Safe to kill and to run again.

    Ctrl-C, SIGTERM and SIGHUP end it, too: a training finishes and saves its optimiser step, and
    the same command goes on from there. On several GPUs:
    torchrun --nproc-per-node 2 -m openbezoar run RECIPE

    Example: openbezoar run demo --set steps.dpo.beta=0.2
    """
    from openbezoar.machine import distributed, stops
    from openbezoar.plan.carry_out import carry_out
    from openbezoar.progress import for_terminal

    changes = overrides or []
    if time_limit is not None and distributed.rank() == 0:  # the others stop with it
        stops.limit(time_limit)
    done = carry_out(lambda: graph_of(recipe, changes, runs), for_terminal(quiet), to=to, overrides=changes)
    if distributed.rank() == 0:
        _print_results(done, to)


def _print_results(graph: Graph, to: str | None) -> None:
    """The table of checkpoints, where the report and the release are, and how to talk to the last model."""
    from openbezoar.recipe.verbs import products_of
    from openbezoar.reporting.scores_table import checkpoint_table

    table = checkpoint_table(graph.run)
    if table is not None:
        print(table.text(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    for node in graph.upto(to):
        folder = graph.run.step(node.name)
        if node.row.tells and (folder / MANIFEST).is_file():
            print(f"{node.verb}: {next(folder.glob('*.html'), folder)}")
    models = [node.name for node in graph.upto(to) if "model" in products_of(graph.recipe.steps, node.name)]
    if models and ((folder := graph.run.step(models[-1])) / MANIFEST).is_file():
        print(f"talk to it: openbezoar chat {shlex.quote(str(folder))}")


def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Example: openbezoar schema > recipe.schema.json
    """
    from openbezoar.recipe.schema import json_schema

    print(json.dumps(json_schema(), indent=1))
