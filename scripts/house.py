"""The shape of the package in numbers: ``python -m scripts.house`` counts, and fails if a number is over its limit.

An import is an arrow from a room to a room: a package, a verb's folder in ``verbs/``, or a module of the
root. Imports for types count too. A floor is what stands only on lower floors.
"""

from __future__ import annotations

import ast
import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from openbezoar.recipe.verbs import VERBS

ROOT = Path(__file__).parents[1] / "openbezoar"
WIDTH = 120
AT_HOME = ("verbs", "recipe")  # where a verb may be named
OTHER_WORDS = {
    "cli/app.py": {"release"},  # a command
    "cli/init.py": {"pairs"},  # a template
    "cli/judge.py": {"pairs"},  # a key of a step
    "harness/run.py": {"filter"},  # a column of lm-eval
    "inspection/rendering.py": {"pairs"},  # a line's label
    "judging/pairwise.py": {"pairs"},  # a number
    "machine/extras.py": {"evaluate"},  # an extra
    "people/outcome.py": {"pairs"},  # a number
    "reporting/measured.py": {"pairs"},  # a kind of measure
    "reporting/training.py": {"pairs"},  # what rows are called
    "stats/agreement.py": {"agreement"},  # a number
    "training/reference.py": {"pairs"},  # a tensor's name
}
"""Texts that are a verb's name and mean something else there."""


class Count(NamedTuple):
    """One number with its limit and what is counted."""

    what: str
    limit: int
    items: tuple[str, ...]

    @property
    def value(self) -> int:
        return len(self.items)


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the package, parsed."""
    for file in sorted(ROOT.rglob("*.py")):
        yield file.relative_to(ROOT), ast.parse(file.read_text(encoding="utf-8"))


def room_of(file: Path) -> str:
    """The room that a module stands in."""
    parts = file.with_suffix("").parts
    return "/".join(parts[:2]) if parts[0] == "verbs" and len(parts) > 2 else parts[0]


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    rooms = {room_of(file) for file, _ in modules()}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for file, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("openbezoar"):
                continue
            names = [node.module] if node.module != "openbezoar" else [f"openbezoar.{a.name}" for a in node.names]
            for name in names:
                parts = str(name).split(".")[1:]
                folder = "/".join(parts[:2])
                to = folder if folder in rooms else parts[0]
                if to in rooms and to != room_of(file):
                    found[room_of(file)].add(to)
    return found


def circles(rooms: dict[str, set[str]]) -> list[str]:
    """Rooms from which a walk along the arrows comes back."""

    def reached(room: str) -> set[str]:
        seen: set[str] = set()
        todo = list(rooms[room])
        while todo:
            if (at := todo.pop()) not in seen:
                seen.add(at)
                todo += rooms[at]
        return seen

    return [room for room in rooms if room in reached(room)]


def floors(rooms: dict[str, set[str]]) -> int:
    """How many floors the house has; 0 where it has circles."""
    if circles(rooms):
        return 0

    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(lower) for lower in rooms[room]), default=-1)

    return 1 + max(floor(room) for room in rooms)


def naming_a_verb() -> Iterator[str]:
    """Modules, but for those at home, that hold a verb's name as a text of its own, or import its settings."""
    classes = {row.settings.__name__ for row in VERBS.values()}
    for file, tree in modules():
        if file.parts[0] in AT_HOME:
            continue
        nodes = list(ast.walk(tree))
        texts = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
        texts -= OTHER_WORDS.get(str(file), set())
        names = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        if named := sorted((texts & set(VERBS)) | (names & classes)):
            yield f"{file}: {', '.join(named)}"


def asking_for_a_class() -> Iterator[str]:
    """isinstance of a step's class outside of the verbs' rooms and the settings."""
    classes = {kind.__name__ for row in VERBS.values() for kind in row.settings.__mro__} - {"object", "BaseModel"}
    classes -= {"Plain", "Strict", "Step"}
    for file, tree in modules():
        if file.parts[0] in AT_HOME:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                if asked & classes:
                    yield f"{file}:{node.lineno}: {ast.unparse(node)}"


def width(line: str) -> int:
    """Columns of a line, without the checker's pragma at its end and the marks that stand on other characters."""
    code = re.sub(r"  # (type: ignore|noqa).*$", "", line)
    return sum(unicodedata.category(character)[0] != "M" for character in code)


def long_lines() -> Iterator[str]:
    """Lines of the package, its tests, scripts and benchmarks that are wider than the limit."""
    for part in ("openbezoar", "tests", "scripts", "benchmarks"):
        for file in sorted((ROOT.parent / part).rglob("*.py")):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if width(line) > WIDTH:
                    yield f"{file.relative_to(ROOT.parent)}:{number}"


def counts() -> list[Count]:
    """All numbers."""
    rooms = arrows()
    return [
        Count("modules outside of verbs/ and recipe/ that name a verb", 8, tuple(naming_a_verb())),
        Count("isinstance of a step's class outside of the verbs' rooms", 0, tuple(asking_for_a_class())),
        Count("modules in the root", 6, tuple(str(file) for file, _ in modules() if len(file.parts) == 1)),
        Count("circles of imports", 0, tuple(circles(rooms))),
        Count("floors", 12, tuple(map(str, range(floors(rooms))))),
        Count(f"lines over {WIDTH} columns", 0, tuple(long_lines())),
    ]


def main(arguments: list[str]) -> int:
    """Print the counts; with --list what is counted. 1 if one is over its limit."""
    for count in counts():
        print(f"{count.value:4} of at most {count.limit:2}  {count.what}")
        if "--list" in arguments:
            print("".join(f"           {item}\n" for item in count.items), end="")
    return int(any(count.value > count.limit for count in counts()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
