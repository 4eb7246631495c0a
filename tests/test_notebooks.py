"""The notebooks: kept clean, and their cells do what they claim, on a tiny model in the place of a real one."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cells import PARAMETERS, cells, execute, parameters, source
from test_docs import parsed

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def ran(name: str, folder: Path, **given: Any) -> subprocess.CompletedProcess[str]:
    """A notebook in a process of its own that begins in a folder, with these parameters."""
    folder.mkdir(exist_ok=True)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    words = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return subprocess.run(
        [sys.executable, str(ROOT / "tests/cells.py"), str(ROOT / f"notebooks/{name}.ipynb"), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


# ---------------------------------------------------------------------------- as they are kept


def test_every_notebook_is_run_here() -> None:
    assert {f"test_{file.stem.replace('-', '_')}" for file in NOTEBOOKS} <= set(globals())


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_kept_without_outputs_and_its_cells_are_python_that_asserts(notebook: Path) -> None:
    book = json.loads(notebook.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    asserts = 0
    for cell in cells(notebook):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        asserts += sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source(cell))))
    assert asserts >= 4
    assert PARAMETERS in cells(notebook)[0]["metadata"]["tags"]
    assert all(name.isupper() for name in parameters(notebook))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_command_of_a_notebook_is_one_that_the_command_line_takes(notebook: Path) -> None:
    lines = [line for cell in cells(notebook) for line in re.findall(r"^\s*!(.+)$", "".join(cell["source"]), re.M)]
    for line in lines:
        words = shlex.split(re.sub(r"\{(WITH|HOW)\}", "", line.partition(" > ")[0]))
        if "openbezoar" in words:
            parsed([re.sub(r"\{SLICE\}|\{TIME_LIMIT\}", "1h", word) for word in words[words.index("openbezoar") + 1 :]])
        else:
            assert words[:2] == ["pip", "install"]


def test_the_page_tells_of_each_notebook() -> None:
    page = (ROOT / "docs/how-to/notebooks.md").read_text(encoding="utf-8")
    assert {f"{file.name}" for file in NOTEBOOKS} == set(re.findall(r"[\w-]+\.ipynb", page))


# ---------------------------------------------------------------------------- the reader


def notebook_of(folder: Path, *sources: str) -> Path:
    made = [
        {"cell_type": "code", "metadata": {"tags": [PARAMETERS]} if number == 0 else {}, "source": [text]}
        for number, text in enumerate(sources)
    ]
    (folder / "n.ipynb").write_text(json.dumps({"cells": made}))
    return folder / "n.ipynb"


def test_given_names_take_the_place_of_parameters_and_commands_see_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = notebook_of(
        tmp_path, "N = 1", "twice = 2 * N\nif N:\n    !echo {twice + 1} > out; exit {N}\ncode = _exit_code"
    )
    assert execute(notebook, {"N": 4})["code"] == 4
    assert (tmp_path / "out").read_text() == "9\n"


def test_a_claim_that_does_not_hold_and_a_name_that_is_no_parameter_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="too few"):
        execute(notebook_of(tmp_path, "N = 1", "assert N > 1, 'too few'"), {})
    with pytest.raises(KeyError, match="no parameter M"):
        execute(notebook_of(tmp_path, "N = 1"), {"M": 1})


# ---------------------------------------------------------------------------- whole


@pytest.mark.slow
def test_forest_engine(tmp_path: Path, tiny: Path) -> None:
    done = ran("forest-engine", tmp_path / "a", MODEL=str(tiny), PROMPTS=3, ANSWERS=3, STEPS=4)
    assert done.returncode == 0, said(done)
