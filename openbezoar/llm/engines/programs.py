"""Which engines there are, where the program of each is found, and how it is started on a model.

Every one of them speaks OpenAI's protocol on the loopback. A program lives in an environment of its
own: its libraries' versions are none of ours. It is looked for where a variable says
(``OPENBEZOAR_VLLM``: the program, or its environment's folder), in the folder of ``openbezoar engine
install``, on the PATH, and beside this Python. Reads folders; starts nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from openbezoar.errors import ModelError, UserError
from openbezoar.machine.devices import free_bytes
from openbezoar.models.references import cache_folder

HOST = "127.0.0.1"
WINDOW = 8192  # tokens of a conversation that an engine is made ready for, unless its arguments say otherwise
SLOTS = 8  # conversations at a time in llama.cpp, each with a window of its own
GPU_SHARE = 0.85  # of a GPU's memory, for vLLM and SGLang: this process has a little of it too


@dataclass(frozen=True)
class EngineStart:
    """What an engine is started on. path: a model's folder, or its .gguf file. window: tokens."""

    path: Path
    dtype: str
    window: int
    on_gpu: bool


def _nothing(given: EngineStart) -> list[str]:
    return []


@dataclass(frozen=True)
class Program:
    """One engine.

    reads: what it is given. serve: (program, model, name, port) -> the command that serves a model under a
    name. tuned: further arguments, so that it answers as the project's own decoder would. ids: whether it
    takes token ids for a prompt. adds_bos: whether it puts the beginning-of-sequence token before a text by
    itself. more: fields of a request for the tokens that end an answer and the fewest and most it has. width: requests
    under way at once; slots: the arguments that make it more. named: whether it serves under the name it is given; else
    the model's path is its name. tells: fields of a request that make it tell tokens' ids. cached: tokens whose keys
    and values it has room for, at least. share: the argument that says how much of a GPU it takes whatever it needs,
    and what it is told; nothing of one that takes what it needs.
    """

    name: str
    executable: str
    variable: str
    install: str
    port: int
    reads: Literal["folder", "gguf"]
    serve: Callable[[str, str, str, int], list[str]]
    tuned: Callable[[EngineStart], list[str]] = _nothing
    ids: bool = True
    adds_bos: bool = False
    more: Callable[[Sequence[int], int, int], Mapping[str, Any]] = lambda ends, least, most: {}
    width: int = 128
    slots: tuple[str, ...] = ()
    named: bool = True
    tells: Mapping[str, Any] = field(default_factory=dict)
    cached: int = WINDOW
    share: tuple[str, float] = ("", 0.0)
    environment: Callable[[EngineStart], Mapping[str, str]] = lambda given: {}

    def find(self) -> str | None:
        """Where its program is, None if it is nowhere. Raises ModelError for a variable that leads nowhere."""
        if stated := os.environ.get(self.variable, "").strip():
            path = Path(stated).expanduser()
            for place in (path, path / self.executable, path / "bin" / self.executable):
                if place.is_file() and os.access(place, os.X_OK):
                    return str(place)
            raise ModelError(
                f"${self.variable} is '{stated}', where there is no program; expected {self.executable} itself, or the"
                " folder of the environment that it is installed in"
            )
        installed = folder_of(self.name) / "bin" / self.executable
        if os.access(installed, os.X_OK):
            return str(installed)
        beside = Path(sys.executable).parent / self.executable
        program = shutil.which(self.executable) or (str(beside) if os.access(beside, os.X_OK) else None)
        if (
            program
            and self.name == "transformers"
            and Path(program).parent == beside.parent
            and not (find_spec("fastapi") and find_spec("uvicorn"))
        ):
            return None  # the command is there, but could not serve
        return program


def folder_of(name: str) -> Path:
    """The environment that ``openbezoar engine install`` makes for an engine."""
    return cache_folder() / "engines" / name


def _at(port: int) -> list[str]:
    return ["--host", HOST, "--port", str(port)]


def _vllm(program: str, model: str, name: str, port: int) -> list[str]:
    return [program, "serve", model, "--served-model-name", name, *_at(port)]


def _vllm_tuned(given: EngineStart) -> list[str]:
    # Not the model's own settings for sampling (top_k, penalties): the recipe's are all there are.
    # On a CPU nothing is compiled: that takes minutes, and a C++ compiler.
    share = ["--gpu-memory-utilization", str(GPU_SHARE)] if given.on_gpu else ["--enforce-eager"]
    return [
        "--generation-config",
        "vllm",
        "--dtype",
        given.dtype,
        "--max-model-len",
        str(min(given.window, WINDOW)),
        *share,
    ]


def _vllm_environment(given: EngineStart) -> Mapping[str, str]:
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if given.on_gpu:
        return quiet
    # By itself it binds its threads to cores that others may use, and takes a large share of the memory.
    room = max(1, min(4, free_bytes() >> 33))
    told = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": str(room)}
    return quiet | {name: value for name, value in told.items() if name not in os.environ}


def _sglang_tuned(given: EngineStart) -> list[str]:
    share = ["--mem-fraction-static", str(GPU_SHARE)] if given.on_gpu else []
    length = ["--context-length", str(min(given.window, WINDOW))]
    return ["--sampling-defaults", "openai", "--dtype", given.dtype, *length, *share]


def _llama_tuned(given: EngineStart) -> list[str]:
    return ["-np", str(SLOTS), "-c", str(SLOTS * min(given.window, WINDOW // 2)), *(["-ngl", "999"] * given.on_gpu)]


def _ends(ends: Sequence[int], least: int, most: int) -> Mapping[str, Any]:
    return {"stop_token_ids": list(ends), **({"min_tokens": least} if least else {})}


def _plain_sampling(ends: Sequence[int], least: int, most: int) -> Mapping[str, Any]:
    # top_k and min_p it has of its own; of least lengths it knows the whole one alone
    return {"top_k": 0, "min_p": 0.0, **({"ignore_eos": True} if 0 < most <= least else {})}


PROGRAMS: dict[str, Program] = {
    "vllm": Program(
        name="vllm",
        executable="vllm",
        variable="OPENBEZOAR_VLLM",
        install="openbezoar engine install vllm",
        port=8000,
        reads="folder",
        serve=_vllm,
        tuned=_vllm_tuned,
        more=_ends,
        slots=("--max-num-seqs",),
        tells={"return_token_ids": True},
        share=("--gpu-memory-utilization", GPU_SHARE),
        environment=_vllm_environment,
    ),
    "sglang": Program(
        name="sglang",
        executable="sglang",
        variable="OPENBEZOAR_SGLANG",
        install="pip install sglang, in an environment of its own (GPU)",
        port=30000,
        reads="folder",
        serve=lambda program, model, name, port: [
            *(program, "serve", "--model-path", model, "--served-model-name", name),
            *_at(port),
        ],
        tuned=_sglang_tuned,
        more=lambda ends, least, most: {"stop_token_ids": list(ends)},
        share=("--mem-fraction-static", GPU_SHARE),
    ),
    "llama.cpp": Program(
        name="llama.cpp",
        executable="llama-server",
        variable="OPENBEZOAR_LLAMACPP",
        install="openbezoar engine install llama.cpp, llama.cpp's release page, or brew install llama.cpp",
        port=8080,
        reads="gguf",
        serve=lambda program, model, name, port: [program, "--model", model, "--alias", name, *_at(port)],
        tuned=_llama_tuned,
        adds_bos=True,
        more=_plain_sampling,
        width=SLOTS,
        slots=("-np", "--parallel"),
        tells={"logprobs": 1},
        cached=SLOTS * WINDOW // 2,
    ),
    "transformers": Program(
        name="transformers",
        executable="transformers",
        variable="OPENBEZOAR_TRANSFORMERS",
        install="pip install 'openbezoar[train,web]'",
        port=8000,
        reads="folder",
        serve=lambda program, model, name, port: [program, "serve", model, *_at(port)],
        ids=False,
        adds_bos=True,
        width=4,
        named=False,
    ),
}
"""In the order in which one is chosen: the faster ones first."""


def share_of(program: Program, args: Sequence[str]) -> float:
    """The share of a GPU that an engine takes, as it is told by us or a recipe; 0 of one that takes what it needs."""
    name, told = program.share
    return _told(args, (name,), told)


def width_of(program: Program, args: Sequence[str]) -> int:
    """Requests that may be under way at an engine: as many as it has room for, and some that wait, lest it does."""
    return max(program.width, int(_told(args, program.slots, 0.0)))


def _told(args: Sequence[str], names: Collection[str], default: float) -> float:
    """The number that an argument of one of these names has."""
    words = [part for one in args for part in one.split("=", 1)]
    for word, value in pairwise(words):
        if word in names:
            try:
                return float(value)
            except ValueError:
                return default
    return default


OURS = ("--host", "--port", "--model", "--model-path", "--served-model-name", "--alias", "--api-key", "--hf-token")
"""Arguments that are ours to give, or that would put a secret into a command that others can read."""


def check_args(where: str, args: Sequence[str]) -> None:
    """Raise UserError for an argument that is not the recipe's to give."""
    for one in args:
        if (name := one.split("=")[0]) in OURS:
            raise UserError(f"{where}.args: '{name}' is not for a recipe to say; leave it out")


def found(name: str, where: str) -> tuple[Program, str]:
    """(engine, its program). Raises ModelError if it is not installed."""
    program = PROGRAMS[name]
    if (path := program.find()) is None:
        raise ModelError(
            f"{where}: engine '{name}' is not installed; get it by {program.install}, name its program in"
            f" ${program.variable}, or set engine: forest"
        )
    return program, path


def chosen(engine: str, on_gpu: bool) -> str:
    """The engine that a recipe's word stands for: with 'auto' vLLM on a GPU where it is found, else the forest."""
    if engine != "auto":
        return engine
    return "vllm" if on_gpu and PROGRAMS["vllm"].find() else "forest"
