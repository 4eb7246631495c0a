"""The command ``serve``: prints how an installed server is started on a model, and becomes that server."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from openbezoar.errors import UserError

if TYPE_CHECKING:
    from openbezoar.publishing.serving import Launch, Served


def serve(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A release, a model folder, org/name, pypi:NAME or a .gguf file."),
    ] = None,
    extra: Annotated[list[str] | None, typer.Argument(metavar="-- ARGS", help="More for the server's command.")] = None,
    with_: Annotated[
        str | None, typer.Option("--with", metavar="NAME", help="vllm, llama.cpp, ollama or transformers.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", min=1, max=65535, help="Default: the server's own.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show which servers are installed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command; start nothing.")] = False,
) -> None:
    """Hand a model with its template to a server that is installed.

    Without --with: the first of vllm, llama.cpp (needs a .gguf file), ollama
    (needs a Modelfile) and transformers that is installed and can serve it.

    Example: openbezoar serve runs/demo/release/OpenBezoar-SFT --dry-run
    """
    from openbezoar.publishing.serving import SERVERS, check_port, choose, launch, open_served

    if listed:
        for name, server in SERVERS.items():
            print(f"{name:12}  {server.find() or f'not installed: {server.install}'}")
        return
    if model is None:
        raise UserError("serve: no model; name one, such as runs/demo/release/NAME, or --list what could serve it")
    served = open_served(model)
    name, program = choose(served, with_)
    start = launch(name, program, served, port=port, extra=extra or [])
    print(
        "".join(f"{key}={shlex.quote(value)} " for key, value in start.environment.items()) + shlex.join(start.command),
        flush=True,
    )
    print(_about(name, served, start), file=sys.stderr, flush=True)
    if dry_run:
        return
    check_port(name, start.url)
    os.environ.update(start.environment)
    try:
        os.execvp(start.command[0], start.command)
    except OSError as error:
        raise UserError(
            f"{start.command[0]}: {error.strerror}; install it again, or choose another with --with"
        ) from None


def _about(name: str, served: Served, start: Launch) -> str:
    """What the server will use, and how to ask it."""
    body = {
        "model": start.model,
        "messages": [{"role": "user", "content": "Hello"}],
        **({"stop": list(served.stop)} if served.stop else {}),
    }
    lines = [
        f"base URL:  {start.url}",
        f"model:     {start.model}",
        f"template:  {served.modelfile if name == 'ollama' else served.template_file}",
        f"ends at:   {', '.join(served.ends) or 'what the server knows: no end token is named in the model'}",
    ]
    if served.stop:
        lines.append(
            f"stop:      the client sends {json.dumps(list(served.stop))}, as trained"
            + (" (a Modelfile may have them)" if name == "ollama" else "")
        )
    if name == "transformers" and not served.samples:
        lines.append(
            "sampling:  transformers is greedy at any temperature unless generation_config.json has do_sample: true"
        )
    lines.append(
        f"try:       curl {start.url}/chat/completions -H 'Content-Type: application/json' -d"
        f" {shlex.quote(json.dumps(body))}"
    )
    return "\n".join(lines)
