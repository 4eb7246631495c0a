"""The optional packages: which extra of this project brings each, and the line that says that one is missing.

``EXTRAS`` is the only list of them, held against pyproject.toml by a test. Code imports what
it needs where it needs it, without a try; ``told`` turns what such an import raises into a
``UserError`` in one place, and ``needs`` asks before a run which packages its steps will want.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal

from openbezoar.errors import UserError, brief

EXTRAS: dict[str, tuple[str, str]] = {
    "torch": ("torch", "train"),
    "transformers": ("transformers", "train"),
    "tokenizers": ("tokenizers", "train"),  # comes with transformers
    "peft": ("peft", "train"),
    "bitsandbytes": ("bitsandbytes", "train"),
    "accelerate": ("accelerate", "train"),
    "safetensors": ("safetensors", "train"),
    "sentencepiece": ("sentencepiece", "train"),
    "google.protobuf": ("protobuf", "train"),
    "gguf": ("gguf", "train"),
    "lm_eval": ("lm-eval", "evaluate"),
    "nltk": ("nltk", "ifeval"),  # this and the next two come with lm-eval[ifeval]
    "langdetect": ("langdetect", "ifeval"),
    "immutabledict": ("immutabledict", "ifeval"),
    "datasets": ("datasets", "hub"),
    "pyarrow": ("pyarrow", "data"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "httpx2": ("httpx2", "server"),
    "datasketch": ("datasketch", "clean"),
    "fastapi": ("fastapi", "web"),
    "uvicorn": ("uvicorn", "web"),
    "tensorboard": ("tensorboard", "track-tensorboard"),
    "trackio": ("trackio", "track-trackio"),
    "wandb": ("wandb", "track-wandb"),
    "mlflow": ("mlflow-skinny", "track-mlflow"),
}
"""By the name that is imported: the name that pip knows, and the extra."""


UVX = "uvx --from 'openbezoar[all]' openbezoar"

Way = Literal["uvx", "uv tool", "uv", "pip"]


def way() -> Way:
    """How this environment came about, and so what adds a package to it: ``uvx`` throws it away, ``uv tool
    install`` made it for this program, ``uv venv`` made it and uv is there, or anything else, which pip serves.
    """
    place = Path(sys.prefix)
    if (place / "uv-receipt.toml").is_file():
        return "uv tool"
    try:
        by_uv = any(
            line.startswith("uv = ") for line in (place / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        )
    except OSError:
        by_uv = False
    if by_uv and any(part.startswith(("archive-v", "environments-v")) for part in place.parts):  # in uv's cache
        return "uvx"
    return "uv" if by_uv and shutil.which("uv") else "pip"


def install(extras: Iterable[str], upgrade: bool = False) -> str:
    """The line that installs extras of this project here, by pip or by uv, whichever made this environment.

    Where uvx did, it is the command that was typed, with all extras.
    """
    wanted = f"'openbezoar[{','.join(dict.fromkeys(extras))}]'"
    by = way()
    if by == "uvx":
        typed = shlex.join(sys.argv[1:]) if Path(sys.argv[0]).stem == "openbezoar" else ""
        return f"uvx{' --refresh' * upgrade} {UVX.removeprefix('uvx ')} {typed}".rstrip()
    if by == "uv tool":  # its environment is one, so that what it has already is named again
        return f"uv tool install{' --upgrade' * upgrade} 'openbezoar[all]'"
    if by == "uv":
        active = os.environ.get("VIRTUAL_ENV") or ".venv"  # what uv installs into
        here = (
            "" if Path(active).resolve() == Path(sys.prefix).resolve() else f" --python {shlex.quote(sys.executable)}"
        )
        return f"uv pip install{' --upgrade' * upgrade}{here} {wanted}"
    return f"pip install{' --upgrade' * upgrade} {wanted}"


def installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a part of it is missing; it is half imported
        return False


def require(*packages: str) -> None:
    """Raises UserError naming those of the packages that are not installed, with their extras."""
    if lacking := [package for package in packages if not installed(package)]:
        raise missing(lacking)


def missing(packages: Iterable[str]) -> UserError:
    """The error for optional packages that are not installed."""
    packages = list(dict.fromkeys(packages))
    names = [EXTRAS[package][0] for package in packages]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    many = len(names) > 1
    return UserError(
        f"{listed} {'are' if many else 'is'} not installed; this needs {'them' if many else 'it'}:"
        f" {install(EXTRAS[package][1] for package in packages)}"
    )


def failed_import(error: BaseException) -> UserError | None:
    """The line for an import that failed because of an optional package; None for any other error.

    A package that is there but cannot be imported, because it is broken, or older or newer than
    another one can take, is named with its version and what it said.
    """
    for cause in _causes(error):
        if isinstance(cause, ModuleNotFoundError) and (package := _known(cause.name)):
            return missing([package])
        if isinstance(cause, ImportError):
            package = _known(cause.name) or _in_words(cause) or _importing(cause.__traceback__)
        # a library of the system's that torch cannot load is an OSError, another version of numpy
        # an AttributeError, ...
        else:
            package = _importing(cause.__traceback__, "<module>")
        if package is None:
            continue
        if not installed(package):
            return missing([package])
        distribution, extra = EXTRAS[package]
        return UserError(
            f"{distribution} {_version(distribution)} cannot be used ({brief(cause)}); {install([extra], upgrade=True)}"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from or after, the first cause last."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)


def _known(name: str | None) -> str | None:
    """The optional package that a module belongs to, by its name or by the one that pip knows."""
    if not name:
        return None
    for package, (distribution, _) in EXTRAS.items():
        if (
            name == package
            or name.startswith(f"{package}.")
            or name.lower().replace("-", "_") == distribution.replace("-", "_")
        ):
            return package
    return "google.protobuf" if name == "google" else None


def _in_words(error: ImportError) -> str | None:
    """The optional package that transformers and the like say they require, in an error without a name."""
    text = str(error)
    if "requires" not in text and "pip install" not in text:
        return None
    words = [word.strip("`'\".,:;()[]").partition(">")[0].partition("=")[0] for word in text.split()]
    packages = [package for word in words if (package := _known(word))]
    return next((package for package in packages if not installed(package)), packages[0] if packages else None)


def _importing(trace: TracebackType | None, function: str | None = None) -> str | None:
    """The optional package whose import was under way: the outermost one with a frame in the
    traceback, of this function if one is named.
    """
    while trace is not None:
        frame = trace.tb_frame
        if function in (None, frame.f_code.co_name) and (package := _known(frame.f_globals.get("__name__"))):
            return package
        trace = trace.tb_next
    return None


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(of unknown version)"
