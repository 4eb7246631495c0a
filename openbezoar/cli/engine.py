"""The command ``engine``: which engines are found, and their installation."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

engine = typer.Typer(name="engine", no_args_is_help=True, subcommand_metavar="list | install")


@engine.callback()
def _engine() -> None:
    """Find or install programs that answer for a model.

    A recipe names one as 'engine' of a local model; the run starts and stops it.

    Example: openbezoar engine list
    """


@engine.command("list")
def listed() -> None:
    """Show which engines are found, and where.

    A recipe names one as engine: of a local model.

    Example: openbezoar engine list
    """
    from openbezoar.llm.engines.programs import PROGRAMS

    for name, program in PROGRAMS.items():
        print(f"{name:12}  {program.find() or f'not installed: {program.install}'}")


@engine.command("install")
def install_engine(
    name: Annotated[str, typer.Argument(metavar="NAME", help="vllm or llama.cpp.")],
    cpu: Annotated[bool, typer.Option("--cpu", help="The build for a CPU, on a machine with a GPU too.")] = False,
) -> None:
    """Install an engine into an environment of its own.

    It goes below $OPENBEZOAR_CACHE (or ~/.cache/openbezoar), with uv if it is
    there, else pip; the project's own packages stay as they are.

    Example: openbezoar engine install llama.cpp
    """
    from openbezoar.llm.engines.install import install
    from openbezoar.machine.devices import this_device

    on_gpu = not cpu and this_device().kind == "cuda"
    print(install(name, on_gpu, lambda line: print(line, file=sys.stderr, flush=True)))
