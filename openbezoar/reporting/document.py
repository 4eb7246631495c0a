"""A page as plain data, written once and rendered twice: as Markdown and as HTML.

All text in it is plain text, whoever wrote it; the templates escape it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbezoar.reporting.figures import standalone
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import fenced, markdown_text


@dataclass(frozen=True)
class Paragraph:
    """Our own words, perhaps with names in them."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class Grid:
    """A table."""

    table: Table
    kind: str = "grid"


@dataclass(frozen=True)
class Picture:
    """An SVG; Markdown refers to it as the file ``name``.svg."""

    svg: str
    name: str
    alt: str
    kind: str = "picture"


@dataclass(frozen=True)
class Chart:
    """A graph: Mermaid's text in Markdown, a picture in HTML."""

    mermaid: str
    svg: str
    kind: str = "chart"


@dataclass(frozen=True)
class Texts:
    """Texts that a model or a user wrote, each under a label, side by side where there is room."""

    items: tuple[tuple[str, str], ...]
    kind: str = "texts"


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line that opens them."""

    title: str
    blocks: tuple[Block, ...]
    kind: str = "fold"


Block = Paragraph | Grid | Picture | Chart | Texts | Fold


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A title and sections."""

    title: str
    sections: tuple[Section, ...]


def template(name: str, **values: Any) -> str:
    """A template of this package filled in. HTML is escaped in ``.html`` templates, by filters in ``.md`` ones."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": markdown_text, "fenced": fenced}
    return environment.get_template(name).render(values)


def write_page(page: Page, out: Path, name: str) -> None:
    """Write ``name``.md with its pictures beside it, and ``name``.html as one file."""
    (out / f"{name}.html").write_text(template("page.html.j2", page=page), encoding="utf-8")
    text = template("page.md.j2", page=page)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    for section in page.sections:
        _write_pictures(section.blocks, out)


def _write_pictures(blocks: Sequence[Block], out: Path) -> None:
    for block in blocks:
        if isinstance(block, Picture):
            (out / f"{block.name}.svg").write_text(standalone(block.svg), encoding="utf-8")
        elif isinstance(block, Fold):
            _write_pictures(block.blocks, out)
