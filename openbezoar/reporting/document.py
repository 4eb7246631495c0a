"""A page as plain data, written once and rendered twice: as Markdown and as one HTML file.

All text in it is plain text, whoever wrote it; the templates escape it and show control
characters. The HTML needs nothing but itself: its policy forbids the network, and of scripts
allows the page's own, which only searches.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from openbezoar.progress import visible
from openbezoar.reporting.figures import standalone
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import code, fenced, markdown_text, slug
from openbezoar.store.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
TONES = {
    "better": "Better",
    "worse": "Worse",
    "changed": "Changed",
    "noise": "No clear difference",
    "missing": "Not known",
    "made": "Made",
    "cost": "Cost",
}


@dataclass(frozen=True)
class Paragraph:
    """Our own words, perhaps with names in them."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class Point:
    """A sentence under one of ``TONES``, or under none."""

    text: str
    tone: str = ""

    @property
    def word(self) -> str:
        return TONES.get(self.tone, "")


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    points: tuple[Point, ...]
    kind: str = "points"


@dataclass(frozen=True)
class Grid:
    """A table with a name. One to ``stack`` has few columns of long texts, which a narrow screen
    shows below one another.
    """

    table: Table
    name: str = "Table"
    stack: bool = False
    kind: str = "grid"


@dataclass(frozen=True)
class Picture:
    """An SVG; Markdown refers to it as the file ``name``.svg."""

    svg: str
    name: str
    alt: str
    kind: str = "picture"


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side where there is room."""

    pictures: tuple[Picture, ...]
    kind: str = "gallery"


@dataclass(frozen=True)
class Chart:
    """A graph: Mermaid's text in Markdown, a picture in HTML with ``blocks`` beside it."""

    mermaid: str
    svg: str
    blocks: tuple[Block, ...] = ()
    kind: str = "chart"


@dataclass(frozen=True)
class Texts:
    """Texts that a model or a user wrote, each under a label, side by side where there is room."""

    items: tuple[tuple[str, str], ...]
    kind: str = "texts"


@dataclass(frozen=True)
class Part:
    """Blocks under a heading of their own."""

    title: str
    blocks: tuple[Block, ...]
    kind: str = "part"


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line that opens them."""

    title: str
    blocks: tuple[Block, ...]
    open: bool = False
    kind: str = "fold"


@dataclass(frozen=True)
class Searchable:
    """Folds among which a page can search; ``what`` is their plural."""

    what: str
    folds: tuple[Fold, ...]
    kind: str = "searchable"


Block = Paragraph | Points | Grid | Picture | Gallery | Chart | Texts | Part | Fold | Searchable


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def id(self) -> str:
        return slug(self.title)


@dataclass(frozen=True)
class Page:
    """A title and sections."""

    title: str
    sections: tuple[Section, ...]


def template(name: str, **values: Any) -> str:
    """A template of this package filled in. HTML is escaped in ``.html`` templates, by filters in ``.md`` ones."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str and ".html" in name else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": markdown_text, "fenced": fenced, "code": code}
    return environment.get_template(name).render(values)


def write_page(page: Page, out: Path, name: str) -> None:
    """Write ``name``.md with its pictures beside it, and ``name``.html as one file."""
    style, script = ((TEMPLATES / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none';"
        " form-action 'none'"
    )
    html = template("page.html.j2", page=page, style=style, script=script, policy=policy)
    write_text(out / f"{name}.html", html)
    write_text(out / f"{name}.md", template("page.md.j2", page=page))
    for picture in (p for section in page.sections for p in _pictures(section.blocks)):
        write_text(out / f"{picture.name}.svg", standalone(picture.svg))


def _digest(text: str) -> str:
    """What a content security policy calls an inline style or script by."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _pictures(blocks: Sequence[Block]) -> Iterator[Picture]:
    for block in blocks:
        if isinstance(block, Picture):
            yield block
        elif isinstance(block, Gallery):
            yield from block.pictures
        elif isinstance(block, Searchable):
            yield from _pictures(block.folds)
        elif isinstance(block, Fold | Part | Chart):
            yield from _pictures(block.blocks)


def flat(blocks: Sequence[Block]) -> Iterator[Block]:
    """Blocks with those inside of parts and folds in their place, for a terminal."""
    for block in blocks:
        if isinstance(block, Fold | Part | Chart):
            yield from flat(block.blocks)
        elif isinstance(block, Searchable):
            yield from flat(block.folds)
        else:
            yield block
