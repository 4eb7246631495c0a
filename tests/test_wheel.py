"""The wheel stands alone: built, installed into an empty environment and used away from the clone.

The environment sees the site-packages of this one, where the dependencies are, but not its
editable install. Recipes are found by name, in a clone too; what messages send a reader to is there.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST

import openbezoar
from openbezoar.cli.docs import pages
from openbezoar.recipe import shipped
from openbezoar.recipe.schema import json_schema

ROOT = Path(__file__).parent.parent
PACKAGE = Path(openbezoar.__file__).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree, so that nothing is left in this one."""
    place = tmp_path_factory.mktemp("wheel")
    tree = place / "tree"
    tree.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a clone")
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_file():
            target.write_bytes(source.read_bytes())
    made = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(place), str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of an environment that has the wheel, in an empty folder."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place / "env", symlinks=True)
    binaries = place / "env/bin"
    (site,) = (place / "env/lib").glob("*/site-packages")
    target = ["--python", str(binaries / "python"), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run([sys.executable, "-m", "pip", *target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (place / "empty").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}

    def run(program: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(binaries / program), *map(str, arguments)],
            cwd=place / "empty",
            env={**kept, "OPENBEZOAR_CACHE": str(place / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_wheel_has_recipes_their_seeds_the_pages_and_its_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("recipes", "**/*"), ("docs", "**/*.md")):
        files = [path for path in (ROOT / folder).glob(pattern) if path.is_file()]
        assert {f"openbezoar/{folder}/{path.relative_to(ROOT / folder)}" for path in files} <= names
    assert {"openbezoar/py.typed", "openbezoar/prompts/judge_pair.txt", "openbezoar/people/page/vote.html"} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "benchmarks/"))]


def test_an_installed_package_plans_the_demo_and_has_the_pages(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    where = installed("python", "-c", "import openbezoar; print(openbezoar.__file__)").stdout
    assert "/installed" in where and not Path(where).is_relative_to(ROOT)
    planned = installed("openbezoar", "plan", "demo", "--json")
    assert planned.returncode == 0, planned.stderr
    assert [step["name"] for step in json.loads(planned.stdout)["steps"]][:3] == ["lamini", "evol", "orca"]
    page = installed("openbezoar", "docs", "data")
    assert page.stdout == (ROOT / "docs/data.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_installed_package_runs_a_recipe_to_its_end(
    installed: Callable[..., subprocess.CompletedProcess[str]], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(
        {
            "kept": {"filter": "rows.jsonl", "rules": {"near_duplicates": None, "drop_repetition": 1.0}},
            "sft": {"sft": "kept", "model": "base", "max_steps": 1, **FAST},
            "dpo": {"dpo": "pairs.jsonl", "model": "sft", "max_steps": 1, **FAST},
            "merged": {"merge": "dpo", "drift_rows": 2},
            "report": {"report": "all"},
            "release": {"release": ["merged"]},
        }
    )
    done = installed("openbezoar", "run", recipe, "--runs", tmp_path / "runs", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/t/report/report.html").is_file()
    assert list((tmp_path / "runs/t/release").glob("*/*.safetensors"))


# --------------------------------------------------------------------- names and pages


@pytest.mark.parametrize("given", ["demo", "demo.yaml", "recipes/demo.yaml"])
def test_a_shipped_recipe_goes_by_its_name(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from openbezoar.cli.app import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", given, "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["name"] == "lamini"


def test_a_file_in_this_folder_comes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert shipped.recipe_file(Path("demo")) == shipped.FOLDER / "demo.yaml"
    (tmp_path / "demo.yaml").write_text("name: mine")
    for given in ("demo.yaml", "other/demo.yaml", "/demo", "nothing"):
        assert shipped.recipe_file(Path(given)) == Path(given)
    assert shipped.names() == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def said(file: Path) -> Iterator[str]:
    """Texts of a module that a user may be shown: all but docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    prose = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, READ_IN_THE_CODE)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in prose:
            yield node.value


READ_IN_THE_CODE = (ast.Module, ast.FunctionDef, ast.ClassDef)


def test_what_the_package_sends_a_reader_to_is_in_the_package() -> None:
    texts = [text for file in PACKAGE.rglob("*.py") for text in said(file)] + [json.dumps(json_schema())]
    named = {name for text in texts for name in re.findall(r"openbezoar docs ([a-z][\w/-]+)", text)}
    assert {"data", "recipe-reference", "preference-losses"} <= named <= {*pages(), *shipped.names()}
    assert [text for text in texts if re.search(r"\bdocs/[\w/-]+\.md", text)] == []
