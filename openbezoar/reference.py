"""``docs/recipe-reference.md`` and ``docs/recipe.schema.json``, made from the schema.

``python -m openbezoar.reference`` writes them; ``--check`` fails if they are stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from openbezoar.recipe import VERBS, DataSpec, Gate, LocalModel, Lora, PromptSpec, Recipe, Rules, ServerModel, Shape, TaskSpec, json_schema
from openbezoar.schemes import SCHEMES

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS = (PromptSpec, LocalModel, ServerModel, Shape, DataSpec, TaskSpec, Gate, Lora, Rules)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value, ensure_ascii=False)}`" if value is not None else ""


def _kind(field: FieldInfo) -> str:
    text = str(field.annotation) if not isinstance(field.annotation, type) else field.annotation.__name__
    for name in ("typing.", "openbezoar.recipe.", "Literal"):
        text = text.replace(name, "")
    return text.replace("|", "or").replace("[", " [").strip()


def _table(kind: type[BaseModel]) -> Iterator[str]:
    yield "| key | kind | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in kind.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{name}` | {_kind(field)} | {_default(field)} | {meaning} |"


def recipe_reference() -> str:
    """The page, in Markdown."""
    lines = [
        "# Recipe reference",
        "",
        "Made from the schema by `python -m openbezoar.reference`; do not edit.",
        "",
        (Recipe.__doc__ or "").strip(),
        "",
        *_table(Recipe),
    ]
    for verb, step in VERBS.items():
        lines += ["", f"## `{verb}`", "", (step.__doc__ or "").strip(), "", *_table(step)]
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
        lines += ["", f"## {block.__name__}", "", (block.__doc__ or "").strip(), "", *_table(block)]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """All generated pages by their path."""
    return {DOCS / "recipe-reference.md": recipe_reference(), DOCS / "recipe.schema.json": json.dumps(json_schema(), indent=1) + "\n"}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check compare them. Returns the exit code."""
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is stale; run 'python -m openbezoar.reference'", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
        print(path.relative_to(DOCS.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
