"""The command that makes a release and takes it to a hub. Same rules as ``cli``: results to stdout,
chatter to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from openbezoar.cli.arguments import RunPath, graph_of, named
from openbezoar.errors import RunError
from openbezoar.recipe.tell_steps import GgufForm

FORMS = get_args(GgufForm)


def release(
    run_path: RunPath,
    gguf: Annotated[
        str | None,
        typer.Option("--gguf", metavar="FORMS", help="f16, q8_0, both with a comma, or none; default: the recipe's."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="ORG/NAME", help="List what would go to the hub; several folders go to ORG/NAME-FOLDER."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="With --push: only this model or data set. Repeatable."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: repositories that everybody can read.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --push: do it.")] = False,
) -> None:
    """Make or refresh a run's release; take it to the hub.

    Example: openbezoar release runs/demo --push my-name/demo --only OpenBezoar-HH-RLHF-DPO
    """
    from openbezoar.engine import execution
    from openbezoar.progress import for_terminal
    from openbezoar.recipe.file import load
    from openbezoar.store import runs

    folder = runs.open_run(named(run_path))
    if target is None and (only or public or yes):
        raise RunError("--only, --public and --yes belong to --push ORG/NAME")
    path, overrides = folder.maker()
    recipe = load(path, overrides)
    steps = [name for name, step in recipe.steps.items() if hasattr(step, "release")]
    if not steps:
        raise RunError(f"{path}: no release step; add one, such as release: {{release: [NAME OF A MERGE STEP]}}")
    if gguf is not None:
        overrides += [f"steps.{name}.gguf={json.dumps(_forms(gguf))}" for name in steps]
    if folder.name != recipe.name:  # a copy, or a folder that was given another name
        overrides.append(f"name={json.dumps(folder.name)}")
    graph = graph_of(path, overrides, folder.path.parent)
    for node in (node for name in steps for node in graph.upto(name)):
        if node.state != "done" and node.name not in steps:
            raise RunError(
                f"{run_path}: {node.name} is not what {path} asks for ({node.why}); 'openbezoar run' it first, or take"
                " the recipe's change back"
            )
    for name in steps:
        execution.execute(graph, for_terminal(), name)
        print(graph.run.step(name))
        if target is not None:
            manifest = graph.run.manifest(name)
            assert manifest is not None
            _push(graph.run.step(name), manifest, target, only or [], not public, yes)


def _forms(text: str) -> list[str]:
    named = [form.strip() for form in text.split(",") if form.strip()]
    if unknown := [form for form in named if form not in (*FORMS, "none")]:
        raise RunError(f"--gguf {unknown[0]}: expected {', '.join(FORMS)}, both with a comma, or none")
    return [form for form in named if form != "none"]


def _push(folder: Path, manifest: dict[str, Any], target: str, only: list[str], private: bool, yes: bool) -> None:
    from openbezoar.publishing import upload
    from openbezoar.reporting.wording import size

    uploads = upload.planned(folder, manifest, target, only=only)
    for one in uploads:
        print(
            f"\n{one.kind} {one.repository}: {size(one.bytes)}, {'private' if private else 'public'}, licence"
            f" {one.licence}"
        )
        for file in one.files:
            print(f"  {size(file.bytes):>10}  {file.name}")
    if not yes:
        print("\nNothing was uploaded; with --yes this is.", file=sys.stderr)
        return
    for address in upload.push(uploads, private):
        print(address)
