"""One part of ``benchmarks.gpu`` in a process of its own: ``python -m benchmarks.gpu_parts SPEC``. Tells one line."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.common import answer
from benchmarks.gpu_counts import counters, device, profile, tests
from benchmarks.gpu_models import CannotRun, Found, Place
from benchmarks.gpu_right import attention, equal, nf4, resume
from benchmarks.gpu_speed import dpo, generate, score, sft
from openbezoar.machine.devices import GPU

WORK: dict[str, Callable[[Place], Found]] = {
    one.__name__: one
    for one in (device, equal, attention, nf4, resume, counters, sft, dpo, score, generate, profile, tests)
}


def work(part: str, on: Literal["cuda", "cpu"], tiny: bool) -> dict[str, Any]:
    """A part's line; what goes wrong is in it."""
    if on == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        # A part that forks asks the driver's file alone: torch's own question would start CUDA.
        if on == "cuda" and not (GPU.exists() if part == resume.__name__ else torch.cuda.is_available()):
            raise CannotRun("there is no GPU that torch finds; --device cpu --tiny tests this program without one")
        torch.backends.cuda.matmul.allow_tf32 = False
        return WORK[part](Place(torch.device(on), tiny)).line()
    except CannotRun as error:
        return {"ok": None, "why": str(error)}
    except Exception as error:  # whatever it is, it is the part's result
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        return {"ok": False, "why": f"{said} ({Path(where.filename).name}:{where.lineno})"}


def warm() -> None:
    """Import what most parts need; starts no device and no thread."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: F401

    import openbezoar.models.load
    import openbezoar.training.loop  # noqa: F401


def main(given: str) -> None:
    """Do one part and answer its line."""
    spec = json.loads(given)
    answer(work(spec["part"], spec["device"], spec["tiny"]))


if __name__ == "__main__":
    main(sys.argv[1])
