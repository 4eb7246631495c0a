"""``docs/recipe-reference.md``, ``docs/recipe.schema.json``, ``docs/command-reference.md``, ``docs/api.md`` and
the tables of ``docs/preference-losses.md`` and ``docs/data.md``, made from the schema, the command line, the
library's docstrings and the tables of losses and of forms of rows.

``python -m scripts.pages`` writes them; ``--check`` fails if they are stale.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from openbezoar.cli.app import app
from openbezoar.recipe import losses, origins
from openbezoar.recipe.blocks import DataSpec, LocalModel, PromptSpec, ServerModel, Shape
from openbezoar.recipe.data_steps import Rules
from openbezoar.recipe.fields import RatingSettings
from openbezoar.recipe.measure_steps import Gate, TaskSpec, Wins
from openbezoar.recipe.schema import Recipe, json_schema
from openbezoar.recipe.train_steps import Lora, Sweep
from openbezoar.recipe.verbs import VERBS
from openbezoar.rows import known
from openbezoar.schemes import SCHEMES
from scripts.api_page import api_page
from scripts.gpu_table import gpu_table

DOCS = Path(__file__).parent.parent / "docs"
TABLE_BEGINS, TABLE_ENDS = "<!-- made by python -m scripts.pages from {} -->", "<!-- end -->"
BLOCKS = (
    PromptSpec,
    LocalModel,
    ServerModel,
    Shape,
    DataSpec,
    TaskSpec,
    Wins,
    Gate,
    Lora,
    Sweep,
    Rules,
    RatingSettings,
)


def _about(block: type[BaseModel]) -> str:
    """A block's docstring, a paragraph a line."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(block) or "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value, ensure_ascii=False)}`" if value is not None else ""


def _kind(field: FieldInfo) -> str:
    return _words(field.annotation)


def _words(kind: Any) -> str:
    """A type as a reader's words: 'str or list of str', or the texts that may be chosen from."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join("nothing" if part is type(None) else _words(part) for part in inner)
    if origin is list:
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"mapping to {_words(inner[1])}"
    return str(getattr(kind, "__name__", kind))


def _table(kind: type[BaseModel]) -> Iterator[str]:
    yield "| key | kind | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in kind.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{field.alias or name}` | {_kind(field)} | {_default(field)} | {meaning} |"


def recipe_reference() -> str:
    """The page, in Markdown."""
    lines = [
        "# Recipe reference",
        "",
        "Made from the schema by `python -m scripts.pages`; do not edit.",
        "",
        _about(Recipe),
        "",
        *_table(Recipe),
    ]
    for verb, row in VERBS.items():
        lines += ["", f"## `{verb}`", "", _about(row.settings), "", *_table(row.settings)]
        if verb == "generate":
            for name, scheme in SCHEMES.items():
                lines += [
                    "",
                    f"### Options of `{name}`",
                    "",
                    *_table(scheme.Options),
                    "",
                    "Texts that `prompts` may replace: " + ", ".join(f"`{p}`" for p in scheme.prompts) + ".",
                ]
    for block in BLOCKS:
        lines += ["", f"## {block.__name__}", "", _about(block), "", *_table(block)]
    return "\n".join(lines) + "\n"


def command_reference() -> str:
    """The page of commands, in Markdown."""
    lines = [
        "# Command reference",
        "",
        "Made from the command line by `python -m scripts.pages`; do not edit.",
        "",
        (
            "Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a bug of ours, 2 a mistake that you"
            " can mend"
        ),
        "(one line says how), 75 stopped before its `--time-limit`, 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP;",
        "after these four the same command goes on.",
        "`python -m openbezoar` is the same program.",
    ]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        lines += ["", f"## `openbezoar {name}`", "", *_command(command)]
        for inner, its in getattr(command, "commands", {}).items():
            lines += ["", f"### `openbezoar {name} {inner}`", "", *_command(its)]
    return "\n".join(lines) + "\n"


def _command(command: Any) -> Iterator[str]:
    """One command: its words, its examples as code, its arguments and options."""
    words, *examples = inspect.cleandoc(command.help or "").split("Example: ")
    yield words.strip()
    for example in examples:
        first, _, rest = example.partition("\n\n")
        yield f"\n```\n{' '.join(first.split())}\n```"
        if rest.strip():
            yield f"\n{rest.strip()}"
    yield "\n| argument | default | meaning |\n| --- | --- | --- |"
    for parameter in command.params:
        kind = {float: "NUMBER", int: "N"}.get(type(parameter.default), "TEXT")
        value = parameter.metavar or ("" if getattr(parameter, "is_flag", False) else kind)
        names = ", ".join(parameter.opts) if parameter.param_type_name == "option" else ""
        default = (
            "**required**"
            if parameter.required
            else f"`{parameter.default}`"
            if parameter.default not in (None, False, ())
            else ""
        )
        yield (
            f"| `{' '.join(part for part in (names, value) if part)}` | {default} |"
            f" {(getattr(parameter, 'help', '') or '').replace('|', chr(92) + '|')} |"
        )


def preference_losses() -> str:
    """The page of losses with its table made anew; the words around it are written by hand."""
    return _with_table("preference-losses.md", "openbezoar/recipe/losses.py", losses.page_table())


def data() -> str:
    """The page of rows with the table of their forms made anew."""
    return _with_table("data.md", "openbezoar/rows/known.py", known.page_table())


def papers() -> str:
    """The page of papers with the table of the paper's and the evidence's values made anew."""
    return _with_table("papers.md", "openbezoar/recipe/origins.py", origins.page_table())


def families() -> str:
    """The page of families with the table of what a test found made anew; a line that was said is a note under it."""
    found = json.loads((DOCS / "families.json").read_text(encoding="utf-8"))
    columns = {"loads": "opens", "passes": "passes", "trains": "trains", "merges": "merges", "gguf": "GGUF"}
    lines = [f"| family | type | {' | '.join(columns.values())} | learnt |", "| --- " * (len(columns) + 3) + "|"]
    notes: list[str] = []

    def cell(its: dict[str, str], column: str) -> str:
        text = its.get(column, "").replace(f"'{its['type']}'", "'TYPE'")
        if text in ("", "yes", "forest", "plain"):
            return text
        if text not in notes:
            notes.append(text)
        return f"no ({notes.index(text) + 1})"

    for family, its in found.items():
        learnt = json.dumps(its.get("learnt", ""), ensure_ascii=False)[1:-1].replace("|", "\\|")
        cells = [family, f"`{its['type']}`", *(cell(its, column) for column in columns), learnt and f"`{learnt}`"]
        lines.append(f"| {' | '.join(cells)} |")
    said = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    lines += ["", "What is said where it does not:", "", *said, ""]
    return _with_table("families.md", "docs/families.json", lines)


def one_gpu() -> str:
    """The page about one GPU with the table of what trainings come to on cards made anew."""
    return _with_table("how-to/one-gpu.md", "openbezoar/models/pace.py", gpu_table())


def _with_table(name: str, source: str, table: Iterable[str]) -> str:
    page = (DOCS / name).read_text(encoding="utf-8")
    begins = TABLE_BEGINS.format(source)
    before, _, rest = page.partition(begins)
    return "\n".join([before + begins, *table, TABLE_ENDS + rest.partition(TABLE_ENDS)[2]])


def pages() -> dict[Path, str]:
    """All generated pages by their path."""
    return {
        DOCS / "recipe-reference.md": recipe_reference(),
        DOCS / "command-reference.md": command_reference(),
        DOCS / "preference-losses.md": preference_losses(),
        DOCS / "data.md": data(),
        DOCS / "papers.md": papers(),
        DOCS / "families.md": families(),
        DOCS / "how-to/one-gpu.md": one_gpu(),
        DOCS / "api.md": api_page(),
        DOCS / "recipe.schema.json": json.dumps(json_schema(), indent=1) + "\n",
    }


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check compare them. Returns the exit code."""
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is stale; run 'python -m scripts.pages'", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
        print(path.relative_to(DOCS.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
