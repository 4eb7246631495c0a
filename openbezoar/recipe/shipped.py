"""The recipes that come with the package, by their names.

``openbezoar/recipes`` is a link to the clone's ``recipes/``, so that a wheel has them too.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "recipes"


def names() -> list[str]:
    """Names of the shipped recipes, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_file(given: Path) -> Path:
    """The file that is meant: ``given``, or where there is no such file a shipped recipe by its name
    (``demo``) or its place in a clone (``recipes/demo.yaml``).
    """
    if given.is_file() or given.parent not in (Path(), Path("recipes")):
        return given
    shipped = FOLDER / f"{given.name.removesuffix('.yaml')}.yaml"
    return shipped if shipped.is_file() else given
