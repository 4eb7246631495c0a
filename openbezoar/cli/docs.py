"""The command ``docs``: the pages and recipes that came with the package, for those who have no clone.

``openbezoar/docs`` is a link to the clone's ``docs/``, so that a wheel has them too. No torch at import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openbezoar.errors import UserError, did_you_mean
from openbezoar.recipe import shipped

FOLDER = Path(__file__).parent.parent / "docs"


def pages() -> dict[str, Path]:
    """The pages by what they are asked for: data, how-to/resume, …"""
    return {str(path.relative_to(FOLDER).with_suffix("")): path for path in sorted(FOLDER.rglob("*.md"))}


def docs(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A page, such as data or how-to/resume, or a shipped recipe.")
    ] = None,
) -> None:
    """Print a page of these docs, or a recipe to begin from.

    Without NAME: the index, and where all of it lies.

    Example: openbezoar docs data

    Example: openbezoar docs gemma3-270m > my.yaml
    """
    files = pages() | {name: shipped.FOLDER / f"{name}.yaml" for name in shipped.names()}
    if name is None:
        print(files["README"].read_text(encoding="utf-8"))
        print(f"Pages: {FOLDER}\nRecipes ({', '.join(shipped.names())}): {shipped.FOLDER}")
        return
    page = name.removeprefix("docs/").removesuffix(".md")
    if page not in files:
        hint = f" ({question})" if (question := did_you_mean(page, files)) else ""
        raise UserError(f"docs: no page or recipe '{name}'{hint}; there are {', '.join(files)}")
    print(files[page].read_text(encoding="utf-8"), end="")
