"""Each how-to page's diff is applied to a copy of the package, and the tests that hold for all hold for what it adds.

A page is led by one ```diff block against the tree. What it adds is named, and the tests of its kind
are run in the copy, by the name: they train with the loss, grade with the protocol, generate with the scheme.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent


class Added(NamedTuple):
    """What a page adds: its name, code that tells of it, the tests of its kind, and those of them that use it."""

    name: str
    told: str
    tests: tuple[str, ...]
    used: tuple[str, ...]


PAGES = {
    "add-a-loss.md": Added(
        "odpo",
        "from openbezoar.recipe import losses; print(*losses.page_table(), sep='\\n')",
        ("tests/test_losses.py",),
        ("test_a_dpo_step_learns_with_each_loss[odpo]", "test_where_policy_equals_reference"),
    ),
    "add-a-judge.md": Added(
        "helpful",
        "from scripts.pages import recipe_reference; print(recipe_reference())",
        ("tests/test_protocols.py",),
        ("test_what_is_planned_to_be_asked_is_what_a_step_asks[helpful", "test_what_a_step_found"),
    ),
    "add-a-scheme.md": Added(
        "rephrase",
        "from scripts.pages import recipe_reference; print(recipe_reference())",
        ("tests/test_schemes.py",),
        ("test_a_killed_run_goes_on", "test_rows_depend_on_the_seed_alone"),
    ),
}


def diff_of(page: Path) -> str:
    """The page's one diff."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return str(diff)


def patched(diff: str, folder: Path) -> Path:
    """A copy of the package, its scripts and tests, with a diff applied."""
    for name in ("openbezoar", "scripts", "tests"):
        leave = shutil.ignore_patterns("__pycache__", "docs", "recipes")
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=folder, check=True)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the package of a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_adds_by_its_diff_works_like_what_was_there(page: str, tmp_path: Path) -> None:
    added = PAGES[page]
    folder = patched(diff_of(ROOT / "docs/how-to" / page), tmp_path)
    told = python(folder, "-c", f"import openbezoar; print(openbezoar.__file__); {added.told}")
    assert told.stdout.startswith(str(folder)), told.stderr
    assert f"`{added.name}`" in told.stdout, told.stderr
    alone = ("-p", "no:xdist", "-p", "no:cacheprovider")
    ran = python(folder, "-m", "pytest", "-v", *alone, "-k", added.name, *added.tests)
    assert ran.returncode == 0, ran.stdout
    assert all(re.search(rf"{re.escape(use)}.* PASSED", ran.stdout) for use in added.used), ran.stdout


def test_every_page_about_adding_is_led_by_a_diff() -> None:
    for page in sorted((ROOT / "docs/how-to").glob("add-a-*.md")):
        before, _, _ = page.read_text(encoding="utf-8").partition("```diff")
        assert diff_of(page) and "##" not in before, page.name
