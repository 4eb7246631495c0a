"""The commands about recipes: ``plan``, ``run`` and ``schema``. Arguments in, one call, words out; no torch at import."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from openbezoar.cli_arguments import RUNS, AsJson, RecipePath, Runs, Set, graph_of


def plan(recipe: RecipePath, overrides: Set = None, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Show the steps: what is done, what would run and why, and what it will cost.

    Example: openbezoar plan recipes/demo.yaml
    """
    from openbezoar.estimates import safe_estimate
    from openbezoar.plan_table import print_plan

    graph = graph_of(recipe, overrides, runs)
    estimates = safe_estimate(graph)
    rows = [
        {"name": n.name, "verb": n.verb, "state": n.state, "why": n.why, "inputs": list(n.inputs), **asdict(estimates[n.name])} for n in graph.nodes.values()
    ]
    if as_json:
        print(json.dumps({"recipe": graph.recipe.name, "run": str(graph.run.path), "steps": rows}, indent=1))
        return
    print_plan(rows)


def run(
    recipe: RecipePath,
    to: Annotated[str | None, typer.Option("--to", metavar="STEP", help="Stop when this step is done.")] = None,
    overrides: Set = None,
    runs: Runs = RUNS,
    quiet: Annotated[bool, typer.Option("--quiet", help="One line a step.")] = False,
) -> None:
    """Run what is not done. Safe to kill and to run again.

    Example: openbezoar run recipes/demo.yaml --set steps.dpo.beta=0.2

    Training on several GPUs: torchrun --nproc-per-node 2 -m openbezoar run RECIPE
    """
    from openbezoar import graph as graphs
    from openbezoar.estimates import learn
    from openbezoar.progress import for_terminal
    from openbezoar.reporting.table import checkpoint_table
    from openbezoar.runs import write_json
    from openbezoar.training import distributed

    if distributed.rank() > 0:
        graphs.follow(lambda: graph_of(recipe, overrides, runs))
        return
    graph = graph_of(recipe, overrides, runs)
    graph.upto(to)
    graph.run.path.mkdir(parents=True, exist_ok=True)
    progress = for_terminal(quiet)
    ran = graphs.execute(graph, progress, to)
    learn(graph_of(recipe, overrides, runs), ran)
    write_json(graph.run.path / "run.json", {"recipe": str(recipe.resolve()), "overrides": overrides or []})
    if not ran:
        progress.say("Nothing to do: every step is done.")
    table = checkpoint_table(graph.run)
    if table is not None:
        print(table.text())
    for name, node in graph.nodes.items():
        if node.verb in ("report", "release") and (graph.run.step(name) / "manifest.json").is_file():
            print(f"{node.verb}: {graph.run.step(name) / 'report.html' if node.verb == 'report' else graph.run.step(name)}")


def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Example: openbezoar schema > recipe.schema.json
    """
    from openbezoar.recipe import json_schema

    print(json.dumps(json_schema(), indent=1))
