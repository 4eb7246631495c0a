"""What several commands take: their arguments and options, and the recipe's graph they stand for.
No torch at import.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbezoar.errors import shown
from openbezoar.recipe.shipped import recipe_file

if TYPE_CHECKING:
    from openbezoar.engine.graph import Graph

RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A recipe's file, or the name of a shipped one, such as demo.", callback=recipe_file
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as steps.dpo.beta=0.2. Repeatable."
    ),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of runs.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A step's folder, a release, a model folder, org/name, pypi:NAME or a .gguf file."
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

RUNS = Path("runs")
_TIME = re.compile("".join(rf"(?:([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?){unit})?" for unit in "dhms"))


def named(path: Path) -> Path:
    """The path with the folder's own name at its end, which '.' and '..' do not have."""
    return path if path.name not in ("", "..") else path.resolve()


def seconds(text: str) -> float:
    """A time such as 11h30m, 90m or 45s in seconds. Raises BadParameter for anything else."""
    match = _TIME.fullmatch(text.strip())
    number = (
        sum(float(n) * size for n, size in zip(match.groups("0"), (86400, 3600, 60, 1), strict=True)) if match else 0
    )
    if not number:
        raise typer.BadParameter(f"expected a time such as 11h30m, 90m or 45s (it is {shown(text)})")
    return number


def print_json(value: Any) -> None:
    """One JSON document on stdout; what might be a command to a terminal stands in it as JSON's own escapes."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def graph_of(recipe: Path, overrides: list[str] | None, runs: Path) -> Graph:
    """The graph of a recipe file with its overrides."""
    from openbezoar.engine import graph
    from openbezoar.recipe.file import load

    return graph.build(load(recipe, overrides or []), recipe, runs)
