"""Every text that is sent to a model, one file each in this folder; read by ``load``.

The texts are the project's own words. A recipe may name a file of its own to use instead
of one, which is how a scheme's original wording is brought in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from openbezoar.errors import RecipeError
from openbezoar.machine.textfiles import read_text


def names() -> tuple[str, ...]:
    """Names of all texts, sorted: the files' names without ``.txt``."""
    return tuple(
        sorted(f.name.removesuffix(".txt") for f in resources.files(__name__).iterdir() if f.name.endswith(".txt"))
    )


def load(name: str, overrides: Mapping[str, Path] | None = None) -> str:
    """The text called ``name``, without the line break that ends its file.

    overrides: files to read instead, by name. Raises RecipeError if such a file cannot be
    read as UTF-8 text, or is empty.
    """
    if overrides and name in overrides:
        return _own(name, overrides[name])
    file = resources.files(__name__) / f"{name}.txt"
    if not file.is_file():
        raise RecipeError(f"prompts.{name}: no such text; there are {', '.join(names())}")
    return file.read_text(encoding="utf-8").removesuffix("\n")


def _own(name: str, path: Path) -> str:
    try:
        text = read_text(path, RecipeError)
    except OSError as error:
        raise RecipeError(f"prompts.{name}: {path} cannot be read ({error.strerror}); name a text file") from None
    except RecipeError as error:
        raise RecipeError(f"prompts.{name}: {error}") from None
    if not text.strip():
        raise RecipeError(f"prompts.{name}: {path} is empty; write the text into it, or drop the entry")
    return text.removesuffix("\n")


def fill(template: str, **values: str) -> str:
    """The template with each ``{name}`` replaced by its value, in one pass.

    Other braces stay as they are, and what a value contains is never filled in again, so
    seeds and model answers may hold braces.
    """
    pattern = re.compile(r"\{(" + "|".join(map(re.escape, values)) + r")\}")
    return pattern.sub(lambda match: values[match[1]], template) if values else template
