"""The command ``chat``. Arguments in, one call, words out; no torch at import."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from openbezoar.cli_arguments import Model


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option("--system", help="System message instead of the trained one.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Talk to a checkpoint with exactly the prompt it was trained on.

    An empty line or Ctrl-D ends it.

    Example: openbezoar chat runs/demo/release/OpenBezoar-HH-RLHF-DPO
    """
    from openbezoar.llm import Sampling
    from openbezoar.llm.local import Local
    from openbezoar.models import open_checkpoint
    from openbezoar.progress import printable
    from openbezoar.records import Turn

    local = Local(open_checkpoint(model))
    turns = [] if system is None else [Turn("system", system)]
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            break
        if not text:
            break
        turns.append(Turn("user", text))
        (answer,) = local.chat([turns], Sampling(max_new_tokens, temperature, 0.95), [seed + len(turns)])
        print(printable(answer.text), flush=True)
        turns.append(Turn("assistant", answer.text))
