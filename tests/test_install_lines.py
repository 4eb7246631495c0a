"""The line that installs what is missing, by what made the environment: pip, uv, a tool of uv's, or uvx."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from openbezoar.cli import process
from openbezoar.machine import extras


def environment(place: Path, monkeypatch: pytest.MonkeyPatch, *, by_uv: bool, tool: bool = False) -> None:
    """An environment in a folder, with uv on the PATH."""
    place.mkdir(parents=True)
    (place / "pyvenv.cfg").write_text("home = /usr/bin\n" + "uv = 0.9.0\n" * by_uv)
    if tool:
        (place / "uv-receipt.toml").write_text("[tool]\n")
    (place / "uv").write_text("#!/bin/sh\n")
    (place / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setenv("VIRTUAL_ENV", str(place))
    monkeypatch.setattr(sys, "prefix", str(place))
    monkeypatch.setattr(sys, "executable", str(place / "bin/python"))
    monkeypatch.setattr(sys, "argv", [str(place / "bin/openbezoar"), "run", "my recipe.yaml"])


def test_pip_serves_an_environment_that_python_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(tmp_path / "env", monkeypatch, by_uv=False)
    assert extras.install(["train", "hub"]) == "pip install 'openbezoar[train,hub]'"
    assert extras.install(["train"], upgrade=True) == "pip install --upgrade 'openbezoar[train]'"


def test_uv_serves_an_environment_of_its_own_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(tmp_path / "env", monkeypatch, by_uv=True)
    assert extras.install(["train"]) == "uv pip install 'openbezoar[train]'"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "another"))
    python = tmp_path / "env/bin/python"
    assert extras.install(["train"]) == f"uv pip install --python {python} 'openbezoar[train]'"
    monkeypatch.setenv("PATH", "")
    assert extras.install(["train"]) == "pip install 'openbezoar[train]'"


def test_a_tool_is_installed_again_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(tmp_path / "tools/openbezoar", monkeypatch, by_uv=True, tool=True)
    assert extras.install(["train"]) == "uv tool install 'openbezoar[all]'"


def test_under_uvx_the_same_command_is_given_with_all_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(tmp_path / "uv/archive-v0/Ab12", monkeypatch, by_uv=True)
    again = "uvx --from 'openbezoar[all]' openbezoar"
    assert extras.install(["train"]) == f"{again} run 'my recipe.yaml'"
    assert process.program() == again
    assert str(extras.missing(["peft"])) == f"peft is not installed; this needs it: {again} run 'my recipe.yaml'"
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    assert extras.install(["train"]) == again
