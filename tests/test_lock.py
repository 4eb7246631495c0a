"""requirements.lock: tested versions, all within what pyproject.toml allows, and nothing of where they came from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
MACHINES = [
    {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": system, "platform_machine": of}
    for python in ("3.11", "3.12", "3.13")
    for system, of in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64"))
]


def wanted(project: Mapping[str, Any], extra: str = "all") -> Iterator[Requirement]:
    """What the package and one of its extras need, those that it names in turn too."""
    texts = [*(project["dependencies"] if extra == "all" else ()), *project["optional-dependencies"][extra]]
    for requirement in map(Requirement, texts):
        if requirement.name == project["name"]:
            for inner in sorted(requirement.extras):
                yield from wanted(project, inner)
        else:
            yield requirement


def disagreements(project: Mapping[str, Any], lines: list[str], machine: dict[str, str]) -> list[str]:
    """What the lock lacks or names outside of the project's bounds on a machine, a line each."""
    locked = {}
    for line in map(Requirement, lines):
        if line.marker is None or line.marker.evaluate(machine):
            locked[canonicalize_name(line.name)] = next(iter(line.specifier)).version
    found = []
    for need in wanted(project):
        version = locked.get(canonicalize_name(need.name))
        if version is None:
            found.append(f"{need.name} is not in requirements.lock; run 'make lock'")
        elif version not in need.specifier:
            found.append(f"{need.name} {version} of requirements.lock is not {need.specifier}; run 'make lock'")
    return found


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(list(machine.values())[1:]))
def test_the_lock_is_within_the_project_s_bounds_on_every_machine(machine: dict[str, str]) -> None:
    assert disagreements(PROJECT, LINES, machine) == []


def test_a_lock_that_disagrees_is_told_by_package() -> None:
    project = {
        "name": "own",
        "dependencies": ["one>=2,<3", "Two_x>=1"],
        "optional-dependencies": {"all": ["own[more]"], "more": ["three==1"]},
    }
    lines = ["one==3.1", "two-x==1.0", "three==1 ; sys_platform == 'win32'"]
    assert disagreements(project, lines, MACHINES[0]) == [
        "one 3.1 of requirements.lock is not <3,>=2; run 'make lock'",
        "three is not in requirements.lock; run 'make lock'",
    ]


def test_every_line_is_one_version_of_one_package_and_no_place() -> None:
    names = []
    for line in LINES:
        found = re.fullmatch(r"([a-z0-9-]+)==[0-9][a-z0-9.]*(?: ; (.+))?", line)
        assert found, line
        names.append(found[1])
        if found[2]:
            Marker(found[2])
    assert names == sorted(names)
