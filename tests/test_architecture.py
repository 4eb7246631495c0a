"""The one rule about imports, and that generated pages are fresh."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import openbezoar
from scripts.house import Count, counts
from scripts.pages import main

ROOT = Path(openbezoar.__file__).parent

# A part may import from the parts of the lines before its own, and from itself.
ORDER = [
    {"__init__"},
    {"errors"},
    {"progress"},
    {"stats", "forest", "machine"},
    {"store"},
    {"recipe", "tracking"},
    {"prompts", "rows"},
    {"dialogue"},
    {"cleaning"},
    {"models"},
    {"context", "gguf"},
    {"training", "llm"},
    {"harness", "judging", "schemes"},
    {"inspection", "publishing"},
    {"reporting"},
    {"verbs"},
    {"engine"},
    {"plan", "people"},
    {"cli", "face"},
    {"__main__"},
]
RANK = {name: number for number, names in enumerate(ORDER) for name in names}
LIFTABLE = ("stats", "forest")  # by themselves, with nothing of the project's but errors


def imports() -> list[tuple[str, str, str]]:
    """(importing part, imported part, file) of every import, those for types too."""
    arrows = []
    for file in ROOT.rglob("*.py"):
        part = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("openbezoar"):
                names = (
                    [f"{node.module}.{a.name}" for a in node.names] if node.module == "openbezoar" else [node.module]
                )
            for name in names:
                pieces = name.split(".")
                if pieces[0] == "openbezoar":
                    to = pieces[1] if len(pieces) > 1 and pieces[1] in RANK else "__init__"
                    arrows.append((part, to, str(file.relative_to(ROOT))))
    return arrows


def test_imports_go_one_way() -> None:
    assert [arrow for arrow in imports() if arrow[0] != arrow[1] and RANK[arrow[1]] >= RANK[arrow[0]]] == []
    assert len(imports()) > 100


@pytest.mark.parametrize("part", LIFTABLE)
def test_a_part_that_is_a_library_of_its_own_needs_nothing_of_the_project_but_errors(part: str) -> None:
    assert {to for of, to, _ in imports() if of == part} - {part} <= {"errors"}


def test_the_rooms_of_verbs_do_not_know_one_another() -> None:
    """What two verbs need goes down a floor; ``book`` is where all of them estimate their costs."""
    verbs = ROOT / "verbs"
    modules = re.compile(r"^\s*(?:from|import) openbezoar\.verbs\.(\w+)", re.MULTILINE)
    known = {
        (file.relative_to(verbs).parts[0], room)
        for file in verbs.glob("*/**/*.py")
        for room in modules.findall(file.read_text(encoding="utf-8"))
    }
    assert {(own, other) for own, other in known if other not in (own, "book")} == set()
    assert len(known) > 10


SHARED_NAMES = {"Options"}  # what each scheme calls its own settings


def test_one_name_is_one_class_in_the_whole_package() -> None:
    places: dict[str, set[Path]] = {}
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), set()).add(file.relative_to(ROOT))
    twice = {name: sorted(map(str, files)) for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if name not in SHARED_NAMES} == {} and set(
        twice
    ) >= SHARED_NAMES
    assert len(places) > 100


def test_every_part_of_the_package_has_a_rank() -> None:
    parts = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in ROOT.rglob("*.py")}
    assert parts == set(RANK)


def test_generated_pages_are_fresh() -> None:
    assert main(["--check"]) == 0


def test_the_package_never_reads_pickles_or_runs_a_hub_s_code() -> None:
    for file in ROOT.rglob("*.py"):
        text = file.read_text()
        assert "import pickle" not in text
        assert "trust_remote_code=True" not in text
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node)


@pytest.mark.parametrize("count", counts(), ids=lambda count: count.what)
def test_the_house_keeps_its_shape(count: Count) -> None:
    assert count.value <= count.limit, "\n".join(count.items)


def test_the_picture_of_the_house_is_true() -> None:
    page = (ROOT.parent / "docs/architecture.md").read_text(encoding="utf-8")
    picture = page.split("```mermaid")[1].split("```")[0]
    drawn: dict[str, set[str]] = {}
    for lower, upper in re.findall(r"^  (.+) --> (.+)$", picture, re.M):
        for room in upper.split(" & "):
            drawn.setdefault(room, set()).update(lower.split(" & "))
    everybodys = {"__init__", "__main__", "errors", "progress"}
    real: dict[str, set[str]] = {}
    for of, to, _ in imports():
        if of != to and not {of, to} & everybodys:
            real.setdefault(of, set()).add(to)
    assert {room: reached(drawn, room) for room in real} == {room: reached(real, room) for room in real}


def reached(arrows: dict[str, set[str]], room: str) -> set[str]:
    """The rooms that a room stands on, directly or not."""
    rooms: set[str] = set()
    todo = [*arrows.get(room, ())]
    while todo:
        if (lower := todo.pop()) not in rooms:
            rooms.add(lower)
            todo += arrows.get(lower, ())
    return rooms
