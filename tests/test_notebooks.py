"""The notebooks: kept clean, and their cells do what they claim, on a tiny model in the place of a real one."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cells import PARAMETERS, cells, execute, parameters, source
from conftest import recipe_in
from test_docs import parsed

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FP32 = "--set defaults.sft.dtype=float32 --set defaults.dpo.dtype=float32"
RUNNING = "run all cells again to go on"


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


def test_there_are_the_four_notebooks() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["colab-t4", "forest-engine", "kaggle-2xt4", "your-judge"]


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
def test_kaggle_two_sessions_in_two_folders_make_one_run(tmp_path: Path, tiny: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    recipe_in(first, tiny, {})
    shutil.copytree(tiny, first / "tiny")
    small = {"MODEL": "tiny", "ROWS": "rows.jsonl", "PAIRS": "pairs.jsonl", "BATCH": 4, "MAX_STEPS": 6}
    small |= {"DTYPE": "float32", "LEARNING_RATE": 5e-3, "MAX_LENGTH": 256, "EARLIER": str(tmp_path / "input")}
    done = ran("kaggle-2xt4", first, **small, WORK=str(first), UNTIL="tuned")
    assert done.returncode == 0, said(done)
    assert "done: tuned | left: chat preferred" in done.stdout
    (tmp_path / "input").mkdir()
    shutil.move(first / "two-t4.openbezoar.zip", tmp_path / "input")
    shutil.rmtree(first)
    done = ran("kaggle-2xt4", second, **small, WORK=str(second), PROCESSES=1)
    assert done.returncode == 0, said(done)
    assert "with 1 finished steps" in done.stdout and "done: tuned chat preferred | left:\n" in done.stdout


@pytest.mark.slow
def test_colab_a_slice_and_a_later_session_make_one_run(tmp_path: Path, tiny: Path) -> None:
    settings = f"{FP32} --set steps.chosen.max_steps=2 --set steps.preferred.max_steps=2 --set defaults.sft.batch=4"
    common = {"MODEL": str(tiny), "SETTINGS": settings, "KEPT": str(tmp_path / "drive")}
    done = ran("colab-t4", tmp_path / "a", **common, WORK=str(tmp_path / "a"), SLICE="12s", SLICES=1)
    assert done.returncode == 0 or RUNNING in done.stderr, said(done)
    done = ran("colab-t4", tmp_path / "b", **common, WORK=str(tmp_path / "b"), SLICE="1h", SLICES=2)
    assert done.returncode == 0, said(done)
    assert (tmp_path / "b/session/runs/mine/release/better").is_dir()


@pytest.mark.slow
def test_your_judge(tmp_path: Path, tiny: Path) -> None:
    settings = "--set steps.rm.max_steps=2 --set steps.rm.dtype=float32"
    done = ran("your-judge", tmp_path / "a", JUDGE=str(tiny), BASE=str(tiny), SETTINGS=settings)
    assert done.returncode == 0, said(done)


@pytest.mark.slow
def test_forest_engine(tmp_path: Path, tiny: Path) -> None:
    done = ran("forest-engine", tmp_path / "a", MODEL=str(tiny), PROMPTS=3, ANSWERS=3, STEPS=4)
    assert done.returncode == 0, said(done)
