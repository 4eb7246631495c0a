"""Tables as plain text, for a terminal and for Markdown. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from openbezoar.reporting.wording import markdown_text


@dataclass(frozen=True)
class Table:
    """Headers and rows of text; ``note`` is a sentence below."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def text(self, width: int | None = None) -> str:
        """Aligned columns for a terminal; headers wrap onto lines of their own. Columns beyond
        ``width`` go into further tables below.
        """
        table = self._aligned() if width is None or len(self.headers) < 2 else "\n\n".join(self._within(width))
        return f"{table}\n{self.note}" if self.note else table

    def _within(self, width: int) -> list[str]:
        """Tables of as many columns as fit, each with the first one before them."""
        parts, first = [], 1
        while first < len(self.headers):
            upto = len(self.headers)
            while True:
                part = Table(
                    (self.headers[0], *self.headers[first:upto]), tuple((row[0], *row[first:upto]) for row in self.rows)
                )._aligned()
                if upto == first + 1 or max(map(len, part.splitlines())) <= width:
                    break
                upto -= 1
            parts.append(part)
            first = upto
        return parts

    def _aligned(self) -> str:
        heads = [_wrap(h, max([len(row[i]) for row in self.rows] or [0])) for i, h in enumerate(self.headers)]
        depth = max((len(h) for h in heads), default=0)
        lines = [[h[level] if level < len(h) else "" for h in heads] for level in range(depth)]
        widths = [max(len(line[i]) for line in [*lines, *self.rows]) for i in range(len(self.headers))]
        body = [*lines, ["-" * w for w in widths], *self.rows]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in body
        )

    def markdown(self) -> str:
        """A Markdown table; cells are escaped."""
        lines = [_row(map(markdown_text, self.headers)), _row(["---"] * len(self.headers))]
        lines += [_row(map(markdown_text, row)) for row in self.rows]
        table = "\n".join(lines)
        return f"{table}\n\n{markdown_text(self.note)}" if self.note else table


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wrap(header: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in header.split():
        if lines and len(lines[-1]) + 1 + len(word) <= max(width, 12):
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
