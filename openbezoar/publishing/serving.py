"""Handing a model to a server that is installed: which there are, what each needs, and its command.

Reads a model folder's templates and settings, or a GGUF's header; writes nothing. Every server
gets the model's own template and listens on the loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openbezoar.dialogue import templates
from openbezoar.dialogue.prompt import STOP
from openbezoar.errors import ModelError, UserError
from openbezoar.llm.engines.programs import HOST, PROGRAMS
from openbezoar.models.files.gguf_header import read_header
from openbezoar.models.references import MODEL_FILE, fetch

OLLAMA = f"{HOST}:11434"


@dataclass(frozen=True)
class Served:
    """A model as servers find it. ``folder``: safetensors with the template inside; ``template``:
    its text; ``ends``: tokens that end an answer.
    """

    name: str
    folder: Path | None
    gguf: Path | None
    modelfile: Path | None
    template: str | None
    template_file: Path
    ends: tuple[str, ...]
    samples: bool = False

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer of the trained prompt; servers do not know them, clients send them."""
        return tuple(s for s in STOP if s in (self.template or ""))


@dataclass(frozen=True)
class Launch:
    """A command, its environment besides the present one, where it will answer, and the model's name there."""

    command: tuple[str, ...]
    url: str
    model: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Server:
    """A server that may be installed. ``lacks``: why it cannot serve a model, None if it can."""

    executable: str
    install: str
    port: int
    lacks: Callable[[Served], str | None]
    command: Callable[[str, Served, int], list[str]]

    def find(self) -> str | None:
        """Where its program is: as an engine's (``llm/engines/programs.py``), or on the PATH."""
        engine = next((one for one in PROGRAMS.values() if one.executable == self.executable), None)
        return engine.find() if engine is not None else shutil.which(self.executable)


def _engine(name: str) -> Callable[[str, Served, int], list[str]]:
    """The command of an engine that reads a model's folder."""
    return lambda program, s, port: PROGRAMS[name].serve(program, str(s.folder), s.name, port)


def _no_folder(served: Served) -> str | None:
    return None if served.folder else "it needs a model folder, not a .gguf file"


def _no_gguf(served: Served) -> str | None:
    return None if served.gguf else "it needs a .gguf file, and there is none in the folder"


def _no_modelfile(served: Served) -> str | None:
    return None if served.modelfile else "it needs a Modelfile with a .gguf file, and there is none in the folder"


def _llama(program: str, served: Served, port: int) -> list[str]:
    template = [] if _gguf_facts(served.gguf)[0] else ["--chat-template-file", str(served.template_file)]
    command = PROGRAMS["llama.cpp"].serve(program, str(served.gguf), served.name, port)
    return [*command[:-4], "--jinja", *template, *command[-4:]]


SERVERS: dict[str, Server] = {
    "vllm": Server(
        "vllm",
        "pip install vllm (GPU)",
        8000,
        _no_folder,
        _engine("vllm"),
    ),
    "llama.cpp": Server("llama-server", "llama.cpp's release page, or brew install llama.cpp", 8080, _no_gguf, _llama),
    "ollama": Server(
        "ollama",
        "ollama.com/download",
        11434,
        _no_modelfile,
        lambda program, s, _: [program, "create", s.name.lower(), "-f", str(s.modelfile)],
    ),
    "transformers": Server(
        "transformers",
        "pip install 'openbezoar[train,web]'",
        8000,
        _no_folder,
        _engine("transformers"),
    ),
}
"""In the order in which one is chosen: the faster ones first."""


# -------------------------------------------------------------------------------- models


def open_served(reference: str) -> Served:
    """The model behind a reference. Raises ModelError if it lacks a chat template, or is a step
    that was not released.
    """
    path = Path(reference).expanduser()
    if (path / MODEL_FILE).is_file():
        released = path.resolve().parent / "release" / path.resolve().name
        hint = (
            f"serve {released}"
            if released.is_dir()
            else "release it (openbezoar release RUN) and serve RUN/release/NAME"
        )
        raise ModelError(f"{path}: a step's folder, without the template that servers need inside; {hint}")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path}: no such .gguf file")
        template, ends = _gguf_facts(path)
        served = Served(_plain(path.stem), None, path, _beside(path.parent, "Modelfile"), template, path, ends)
    else:
        served = _of_folder(fetch(reference), reference)
    if not served.template:
        raise ModelError(
            f"{reference}: no chat template inside; serve a release, which has one, or add chat_template.jinja to the"
            " folder"
        )
    return served


def _precision(gguf: Path) -> int:
    """A GGUF's place among the forms of weights by its name, the most exact first."""
    kinds = ("f32", "bf16", "f16")
    return next((place for place, kind in enumerate(kinds) if kind in gguf.stem.lower()), len(kinds))


def _of_folder(folder: Path, reference: str) -> Served:
    folder = folder.resolve()
    ggufs = [
        file
        for place in (folder, folder / "gguf", folder.with_name(f"{folder.name}-GGUF"))
        for file in sorted(place.glob("*.gguf"))
    ]
    # The most exact one; which is smaller, a user says by naming it.
    gguf = min(ggufs, key=_precision, default=None)
    modelfile = _beside(folder, "Modelfile") or (gguf and _beside(gguf.parent, "Modelfile"))
    template, file = _template_of(folder)
    settings = _json(folder / "generation_config.json")
    name = folder.name if Path(reference).expanduser().exists() else reference
    return Served(
        _plain(name),
        folder,
        gguf,
        modelfile,
        template,
        file,
        _ends_of(folder, settings),
        bool(settings.get("do_sample")),
    )


def _plain(name: str) -> str:
    """A name that every server and client takes."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _beside(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); copy the file from the base model again") from None
    return content if isinstance(content, dict) else {}


def _template_of(folder: Path) -> tuple[str | None, Path]:
    """(text, file) of the template that transformers takes, which is what vLLM takes too."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), file
    config = folder / "tokenizer_config.json"
    return templates.chosen(_json(config).get("chat_template"), str(folder)), config


def _ends_of(folder: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts of the tokens at which servers end an answer, by the folder's generation settings."""
    ids = settings.get("eos_token_id", _json(folder / "config.json").get("eos_token_id"))
    added = _json(folder / "tokenizer.json").get("added_tokens")
    known = [
        token
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("content"), str)
    ]
    texts = {token.get("id"): token["content"] for token in known}
    return tuple(texts.get(i, f"token {i}") for i in (ids if isinstance(ids, list) else [ids]) if i is not None)


def _gguf_facts(path: Path | None) -> tuple[str | None, tuple[str, ...]]:
    """(template, tokens that end an answer) in a GGUF's header. Raises ModelError for a file that is none."""
    if path is None:
        return None, ()
    fields = read_header(path).fields
    template, end, tokens = (
        fields.get(f"tokenizer.{name}") for name in ("chat_template", "ggml.eos_token_id", "ggml.tokens")
    )
    ends = (str(tokens[end]),) if isinstance(end, int) and isinstance(tokens, list) and 0 <= end < len(tokens) else ()
    return (template if isinstance(template, str) else None), ends


# ------------------------------------------------------------------------------- servers


def choose(served: Served, name: str | None) -> tuple[str, str]:
    """(name, program) of the server: the one named, or the first that is installed and can serve
    the model. Raises UserError.
    """
    if name is not None and name not in SERVERS:
        raise UserError(f"--with {name}: expected one of {', '.join(SERVERS)}")
    reasons = []
    for each, server in SERVERS.items():
        if name not in (None, each):
            continue
        program, lacks = server.find(), server.lacks(served)
        if program and not lacks:
            return each, program
        reasons.append(f"{each}: {lacks}" if program else f"{each}: not installed; get it by {server.install}")
    raise UserError(
        f"--with {reasons[0]}" if name else f"{served.name}: no server here can serve it; {'; '.join(reasons)}"
    )


def launch(name: str, program: str, served: Served, *, port: int | None, extra: list[str]) -> Launch:
    """How a server is started on a model. Raises UserError if its port is taken, or (Ollama) if
    nothing answers there.
    """
    server = SERVERS[name]
    if name == "ollama":
        url = f"http://{HOST}:{port}" if port else _ollama_url(os.environ.get("OLLAMA_HOST", "").strip())
        environment = {} if url == f"http://{OLLAMA}" else {"OLLAMA_HOST": url.removeprefix("http://")}
        return Launch((*server.command(program, served, 0), *extra), f"{url}/v1", served.name.lower(), environment)
    port = port or server.port
    model = str(served.folder) if name == "transformers" else served.name
    return Launch((*server.command(program, served, port), *extra), f"http://{HOST}:{port}/v1", model, {})


def _ollama_url(host: str) -> str:
    """Where $OLLAMA_HOST points, read as Ollama reads it: a port that is left out is 11434, but 80
    after http:// and 443 after https://.
    """
    parts = urlsplit(host if "://" in host else f"//{host}", scheme="http")
    try:
        port = parts.port or ({"http": 80, "https": 443}.get(parts.scheme) if "://" in host else None) or 11434
    except ValueError:
        raise UserError(f"OLLAMA_HOST is '{host}'; expected an address such as {OLLAMA}") from None
    name = parts.hostname or HOST
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}:{port}"


def check_port(name: str, url: str) -> None:
    """Raise UserError if another program has the port; Ollama's own server must be there."""
    parts = urlsplit(url)
    host, port = parts.hostname or HOST, parts.port
    try:
        with socket.create_connection((host, port), timeout=2):
            answers = True
    except OSError:  # a name that is not known, too
        answers = False
    if name == "ollama" and not answers:
        raise UserError(
            f"ollama is installed, but nothing answers at {host}:{port}; start it with 'ollama serve' in another"
            " terminal"
        )
    if name != "ollama" and answers:
        raise UserError(f"--port {port}: another program answers there; choose another port")
