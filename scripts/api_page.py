"""``docs/api.md``: the names of the library with their signatures and docstrings, below the example of
``scripts/api_example.py``, whose cells begin with ``# %%`` and a title; comments at a cell's beginning are prose.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import openbezoar

EXAMPLE = Path(__file__).parent / "api_example.py"
MODULES = {"losses": "openbezoar.training.losses", "stats": "openbezoar.stats"}
MARKS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
HEAD = """# The library

Made from the package's docstrings and `scripts/api_example.py` by `python -m scripts.pages`; do not edit.

`import openbezoar as ob` loads nothing else and changes nothing in the process; each name is imported when it is first
used, so that plans and scores need no torch. A mistake that you can mend is an `ob.UserError` with one line.

What is stable: within 0.2 the names and signatures below, the recipe's schema (recipe-reference.md), and the files of a
run (`manifest.json`, `scores.json`, `model.json`, `adapter/`) change only by what is added, and CHANGELOG.md says so;
a run of an older version can be read. What is not: every other module, the texts of messages and reports, and which
settings make a step run again.
"""


def api_page() -> str:
    """The page, in Markdown."""
    lines = [HEAD, "## An example", "", *_cells(EXAMPLE.read_text(encoding="utf-8"))]
    for name in sorted(openbezoar.__all__, key=lambda name: name in MODULES):  # long lists of names last
        lines += ["", *(_module(name) if name in MODULES else _entry(name, getattr(openbezoar, name)))]
    return "\n".join(lines) + "\n"


def _cells(code: str) -> Iterator[str]:
    """The example's cells: a title, prose, code."""
    for number, cell in enumerate(re.split(r"^# %%", code, flags=re.M)):
        title, _, body = cell.partition("\n") if number else ("", "", cell)
        if title.strip():
            yield from (f"### {title.strip()}", "")
        lines = body.strip("\n").splitlines()
        prose = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
        if prose:
            yield from (*(line.removeprefix("#").strip() for line in lines[:prose]), "")
        if rest := "\n".join(lines[prose:]).strip("\n"):
            yield from ("```python", rest, "```", "")


def _entry(name: str, value: Any) -> Iterator[str]:
    """A function, or a class with what is public of it."""
    yield f"## `ob.{name}`"
    yield ""
    if not isinstance(value, type) or not issubclass(value, Exception):
        yield f"```python\n{_in_lines(name + signature(value))}\n```\n"
    yield _words(value if not isinstance(value, ModuleType) else _called(value))
    if isinstance(value, type):
        for member, what in vars(value).items():
            if member.startswith("_") or not _words(what):
                continue
            if isinstance(what, property):
                yield f"\n- `{member}`: {_words(what)}"
            elif isinstance(what, FunctionType | classmethod):
                yield f"\n- `{member}{signature(getattr(value, member))}`: {_words(what)}".replace("\n\n", "\n\n  ")


def _module(name: str) -> Iterator[str]:
    """A module's public functions and classes, each with the first sentence about it."""
    module = importlib.import_module(MODULES[name])
    names = getattr(module, "__all__", None) or [
        member for member, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
    ]
    yield f"## `ob.{name}`\n\n{_words(module)}\n"
    for member in names:
        if not member.startswith("_"):
            value = getattr(module, member)
            yield f"- `{member}{signature(value)}`: {_words(value).partition(chr(10))[0]}"


def _called(package: ModuleType) -> Any:
    """The function that a call of a package calls."""
    return getattr(importlib.import_module("openbezoar.plan.listed"), package.__name__.rpartition(".")[2])


def signature(value: Any) -> str:
    """Of a function or class, with its types as they are written; over several lines where it is long."""
    given = inspect.signature(value)
    parts: list[str] = []
    for name, parameter in given.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not {"*", "**"} & {part[:1] for part in parts}:
            parts.append("*")
        mark = MARKS.get(parameter.kind, "")
        kind = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
        default = (
            "" if parameter.default is parameter.empty else f"{' = ' if kind else '='}{_default(parameter.default)}"
        )
        parts.append(f"{mark}{name}{kind}{default}")
    result = "" if given.return_annotation in (given.empty, None, "None") else f" -> {_type(given.return_annotation)}"
    return f"({', '.join(parts)}){result}"


def _default(value: Any) -> str:
    return f"{value.__name__.replace('<lambda>', '…')}" if callable(value) else repr(value)


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _in_lines(text: str) -> str:
    """A signature with a parameter a line where it is wider than a page."""
    if len(text) <= 100:
        return text
    name, _, rest = text.partition("(")
    inner, _, result = rest.rpartition(")")
    depth, cuts = 0, [0]
    for place, letter in enumerate(inner):
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            cuts.append(place + 2)
    parts = [inner[begin:end].removesuffix(", ") for begin, end in zip(cuts, [*cuts[1:], None], strict=True)]
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def _words(value: Any) -> str:
    """A docstring in Markdown, a paragraph a line; "" without one, or with the one that dataclasses make."""
    text = inspect.getdoc(value.__func__ if isinstance(value, classmethod) else value) or ""
    if isinstance(value, type) and text.startswith(f"{value.__name__}("):
        return ""
    return re.sub(r"(?<!\n)\n(?![\n-])", " ", text).replace("``", "`")
