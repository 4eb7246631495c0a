"""The commands that look into runs: ``show``, ``verify``, ``review`` and ``cache``. Arguments in,
one call, words out; no torch at import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from openbezoar.cli.arguments import RUNS, AsJson, RunPath, Runs, print_json
from openbezoar.errors import RunError
from openbezoar.progress import duration, visible


def show(
    run_path: RunPath,
    step: Annotated[str | None, typer.Argument(metavar="[STEP]", help="Only this step, in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run: its steps, their numbers, where the files are.

    Example: openbezoar show runs/demo dpo
    """
    from openbezoar.recipe.origins import origins
    from openbezoar.store.runs import open_run

    folder = open_run(run_path)
    names = sorted(p.parent.name for p in folder.path.glob("*/manifest.json"))
    manifests = {name: folder.manifest(name) for name in names}
    if step is not None:
        if step not in manifests:
            raise RunError(f"{run_path}: no finished step '{step}'; it has {', '.join(names)}")
        found = manifests[step] or {}
        known = origins(str(found.get("verb")), (found.get("parts") or {}).get("settings") or {})
        about = [{"setting": one.text(), "whose": one.whose, "source": one.source} for one in known]
        content = {"folder": str(folder.step(step)), **found, **({"origins": about} if about else {})}
        print_json(content)
        return
    ordered = sorted(manifests.items(), key=lambda item: str((item[1] or {}).get("finished")))
    if as_json:
        print_json({"run": str(run_path), "steps": [{"folder": str(folder.step(n)), **(m or {})} for n, m in ordered]})
        return
    width = max(map(len, manifests))
    for name, manifest in ordered:
        assert manifest is not None
        print(
            visible(
                f"{name:{width}}  {manifest.get('verb', ''):9} {duration(manifest.get('seconds')) or '0.0 s':>8} "
                f" {manifest.get('summary', '')}"
            )
        )
    if (folder.step("report") / "report.html").is_file():
        print(f"report: {folder.step('report') / 'report.html'}")


def verify(run_path: RunPath, as_json: AsJson = False) -> None:
    """Read every file of a run again: is it what was made?

    Rows, adapters, weights, scores, releases and cached answers are held against the
    digests that were noted with them. Exits with 2 if anything differs.

    Example: openbezoar verify runs/demo
    """
    from openbezoar.engine.verify import verify as read_again
    from openbezoar.store.runs import open_run

    report = read_again(open_run(run_path))
    if as_json:
        print_json(asdict(report))
    else:
        for line in (*report.notes, *report.wrong):
            print(visible(line))
        print(
            f"{report.files} files, {report.bytes / 1e6:.1f} MB, and {report.answers} cached answers read;"
            f" {len(report.wrong) or 'no'} difference{'s' * (len(report.wrong) != 1)}"
        )
    if report.wrong:
        raise RunError(
            f"{run_path}: not what was made:"
            f" {report.wrong[0]}{f', and {len(report.wrong) - 1} more' * (len(report.wrong) > 1)}; {REMEDY}"
        )


REMEDY = "put the files back, or delete the steps' folders and run again"


def review(
    run_path: RunPath,
    step: Annotated[str, typer.Argument(metavar="STEP", help="A filter step.")],
    only: Annotated[str, typer.Option("--only", metavar="WHICH", help="kept, rejected, unscored or all.")] = "all",
    undo: Annotated[
        str | None,
        typer.Option("--undo", metavar="WHAT", help="Take decisions back: last, all, or a row's id or hash."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the decisions in force.")] = False,
) -> None:
    """Look at a filter's rows by hand: accept, reject or edit them.

    The next run lays the decisions over the verdicts.

    Example: openbezoar review runs/demo lamini-kept --only rejected
    """
    from openbezoar.cleaning.reviews import Reviews
    from openbezoar.people import review as reviewing
    from openbezoar.store.runs import open_run

    run = open_run(run_path)
    reviewing.entries(run, step, only)
    if undo is not None:
        with run.lock():
            for decision in reviewing.undo(run, step, undo):
                print(visible(f"taken back: {decision.verdict} {decision.id}"))
        return
    if not listed:
        session = reviewing.review(run, step, only, _typed("a r e u v n b g q ?> "), print)
        print(f"\n{len(session.decisions)} decisions made", file=sys.stderr)
    decisions = Reviews(run.path, step).in_force
    for decision in decisions.values() if listed else ():
        print(visible(f"{decision.verdict:7} {decision.row} {decision.id}"))
    print(f"{len(decisions)} in force for {step}; 'openbezoar run RECIPE' puts them to work", file=sys.stderr)


def _typed(prompt: str) -> Iterator[str]:
    """Lines from standard input, with a prompt if it is a terminal, until it ends."""
    while True:
        try:
            yield input(prompt if sys.stdin.isatty() else "")
        except EOFError:
            return


def cache(
    runs: Runs = RUNS,
    prune: Annotated[
        float | None,
        typer.Option("--prune", metavar="DAYS", min=0.0, help="Forget answers that are older; 0 forgets all."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="With --prune: only this model's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the call cache: what is kept, what each run has paid.

    Example: openbezoar cache --prune 30
    """
    from openbezoar.llm.calls import FILE, CallStore

    if not (runs / FILE).is_file():
        raise RunError(
            f"{runs / FILE}: no call cache; expected the folder of runs that 'openbezoar run' was given by --runs"
        )
    store = CallStore(runs)
    gone = None if prune is None else store.prune(prune, model)
    rows = store.size()
    spent = [
        {"run": run, "step": step, "model": name, **asdict(cost)}
        for (run, step, name), cost in store.accounts().items()
    ]
    if as_json:
        models = [{"model": name, "answers": n, "bytes": size} for name, n, size in rows]
        print_json(
            {
                "file": str(store.path),
                "bytes": store.path.stat().st_size,
                "forgotten": gone,
                "models": models,
                "spent": spent,
            }
        )
        return
    print(
        f"{store.path}  {store.path.stat().st_size / 1e6:.1f} MB" + (f"  {gone} forgotten" if gone is not None else "")
    )
    for name, n, size in rows:
        print(f"  {name:20} {n:8} kept  {size / 1e6:8.1f} MB")
    for cost in spent:
        lost = (
            f" ({cost['unanswered']:,} calls without an answer among them, at the most that they may have taken)"
            if cost["unanswered"]
            else ""
        )
        print(
            f"  {cost['run']}/{cost['step']}  {cost['model']}: {cost['calls']:,} answers paid,"
            f" {cost['prompt_tokens']:,} tokens in, {cost['tokens']:,} out{lost}"
        )
