"""Local generation's peers that are programs of their own: vLLM and llama.cpp, started as a recipe's engines are
(``openbezoar/llm/engines``).

Each is searched for its fastest setting first: llama.cpp's conversations at a time; on a CPU vLLM's arithmetic, which
in 16 bits is emulated on many. One that is not installed is left out.
"""

from __future__ import annotations

import http.client
import json
import tempfile
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import common
from openbezoar.cli import process
from openbezoar.dialogue.prompt import Formatter
from openbezoar.llm import Call, Completion, Sampling
from openbezoar.llm.engines.kept import ENGINES
from openbezoar.llm.engines.managed import ManagedLLM
from openbezoar.llm.engines.programs import HOST, PROGRAMS
from openbezoar.llm.engines.servers import EngineServer
from openbezoar.llm.side_by_side import side_by_side
from openbezoar.models.load import device, load_tokenizer
from openbezoar.models.references import open_checkpoint
from openbezoar.recipe.blocks import LocalModel
from openbezoar.rows.records import Turn

ENGINE_SIDES = ("vllm", "llama.cpp")
SLOTS = (8, 16, 32, 64)  # conversations at a time
ROOM = 1024  # tokens a conversation, of those of this benchmark


def installed() -> list[str]:
    """The engines that are found here."""
    return [side for side in ENGINE_SIDES if PROGRAMS[side].find()]


def program_of(side: str) -> str:
    """What tells one installed engine from another: when its program was put there."""
    path = Path(str(PROGRAMS[side].find()))
    return f"{path.name} {path.stat().st_mtime:.0f}"


def settings_of(side: str, n: int, dtype: str) -> list[dict[str, Any]]:
    """What is searched: args and dtype of the engine, for n prompts. The first is how a recipe starts it."""
    if side == "llama.cpp":
        slots = [size for size in SLOTS if size == SLOTS[0] or size < 2 * n]
        return [{"dtype": dtype, "args": ["-np", str(size), "-c", str(size * ROOM)]} for size in slots]
    dtypes = [dtype] if device().type == "cuda" else list(dict.fromkeys((dtype, "float32")))
    return [{"dtype": one, "args": []} for one in dtypes]


def ask(
    side: str, model: str, setting: dict[str, Any], talks: Sequence[Sequence[Turn]], sampling: Sampling
) -> dict[str, Any]:
    """All conversations at once, number i with seed i, timed without the engine's start: seconds, tokens, what was
    answered as texts, the prompts' ids, peak_memory (bytes of its processes, each one's peak; None on a GPU) and
    version.

    setting: one of ``settings_of``. Raises BenchmarkError where a conversation has no answer.
    """
    process.own()
    checkpoint = replace(open_checkpoint(model), dtype=setting["dtype"])
    formatter = Formatter(load_tokenizer(checkpoint.folder()), checkpoint.prompt)
    spec = LocalModel(model=model, dtype=setting["dtype"], engine=side, args=setting["args"])
    with tempfile.TemporaryDirectory() as folder:
        llm = ManagedLLM(checkpoint, spec, side, formatter=formatter, folder=Path(folder), say=common.say)
        try:
            calls = [Call("chat", tuple(talk), sampling, seed) for seed, talk in enumerate(talks)]
            with common.Stopwatch() as watch:
                answers = side_by_side(len(calls), lambda at, off: llm.answer(calls[at], off), llm.width, name=side)
            (server,) = ENGINES.lent[llm.key].servers
            peak = sum(common.resident_peak(pid) for pid in server.pids) if device().type == "cpu" else None
            version = _version(server)
        finally:
            llm.close()
    _whole(side, answers)
    return {
        "seconds": watch.seconds,
        "tokens": [answer.tokens for answer in answers],
        "texts": [answer.text for answer in answers],
        "ids": [formatter.prompt_ids(talk) for talk in talks],
        "peak_memory": peak,
        "version": version,
    }


def _whole(side: str, answers: Sequence[Completion]) -> None:
    if lost := [answer.refused or "no answer" for answer in answers if answer.finish == "error"]:
        raise common.BenchmarkError(f"{side}: {len(lost)} of {len(answers)} conversations have no answer ({lost[0]})")


def _version(server: EngineServer) -> str | None:
    """As it tells itself; None where it does not know, as the llama.cpp of a package."""
    for path, name in (("/version", "version"), ("/props", "build_info")):
        with (
            suppress(OSError, http.client.HTTPException, ValueError, KeyError, TypeError),
            closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection,
        ):
            connection.request("GET", path)
            told = str(json.loads(connection.getresponse().read())[name])
            return None if "unknown" in told else told
    return None
