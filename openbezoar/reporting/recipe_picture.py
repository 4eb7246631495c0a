"""The recipe as a picture: a box a step with its numbers, inputs above. SVG for pages, Mermaid's text for Markdown."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openbezoar.progress import visible
from openbezoar.reporting.figures import escaped, fitted, svg_open, svg_text, wrapped

_INNER, _LEAST, _HIGH, _GAP, _DOWN, _LANE = 318.0, 100.0, 62.0, 8.0, 26.0, 5.0


@dataclass(frozen=True)
class Box:
    """A step: its name, what kind it is, what came of it in a few words, and the steps that it read."""

    name: str
    kind: str
    outcome: str
    inputs: tuple[str, ...]


def mermaid(boxes: Sequence[Box]) -> str:
    """A flow chart in Mermaid's text form."""
    ids = {box.name: f"s{number}" for number, box in enumerate(boxes)}
    lines = ["flowchart TD"]
    lines += [
        f'  {ids[b.name]}["{"<br/>".join(_mermaid_text(t) for t in (b.name, b.kind, b.outcome) if t)}"]' for b in boxes
    ]
    lines += [f"  {ids[i]} --> {ids[b.name]}" for b in boxes for i in b.inputs if i in ids]
    return "\n".join(lines)


def _mermaid_text(text: str) -> str:
    return html.escape(visible(" ".join(text.split())), quote=False).replace('"', "#quot;")


@dataclass(frozen=True)
class _Place:
    x: float
    y: float
    width: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


def recipe_picture(boxes: Sequence[Box], title: str) -> str:
    """The graph from top to bottom. An edge to the next row is a curve; a longer one runs in a lane at the right."""
    depth = _depths(boxes)
    rows: dict[int, list[Box]] = {}
    for box in boxes:
        rows.setdefault(depth[box.name], []).append(box)
    inner = max(_INNER, *(len(row) * (_LEAST + _GAP) - _GAP for row in rows.values()))
    places: dict[str, _Place] = {}
    for level, row in rows.items():
        width = min(210.0, (inner + _GAP) / len(row) - _GAP)
        start = (inner - len(row) * (width + _GAP) + _GAP) / 2
        for column, box in enumerate(row):
            places[box.name] = _Place(2 + start + column * (width + _GAP), 4 + level * (_HIGH + _DOWN), width)
    edges, lanes = _edges(boxes, depth, places, inner + 6)
    height = 8 + len(rows) * (_HIGH + _DOWN) - _DOWN
    return (
        svg_open(inner + 8 + lanes * _LANE, height, title)
        + "".join([*edges, *(_box(places[b.name], b) for b in boxes)])
        + "</svg>"
    )


def _depths(boxes: Sequence[Box]) -> dict[str, int]:
    """The row of each box: below its inputs; one without inputs stands just above the first that reads it."""
    depth: dict[str, int] = {}
    for box in boxes:
        depth[box.name] = 1 + max((depth[i] for i in box.inputs if i in depth), default=-1)
    for box in boxes:
        readers = [depth[b.name] for b in boxes if box.name in b.inputs]
        if readers and not any(i in depth for i in box.inputs):
            depth[box.name] = min(readers) - 1
    return depth


def _edges(
    boxes: Sequence[Box], depth: Mapping[str, int], places: Mapping[str, _Place], right: float
) -> tuple[list[str], int]:
    """Edges as paths, drawn before the boxes, and the number of lanes they take."""
    paths: list[str] = []
    lanes: dict[str, int] = {}
    for box in boxes:
        end = places[box.name]
        for source in box.inputs:
            if source not in places:
                continue
            start = places[source]
            x0, y0, x1, y1 = start.middle, start.y + _HIGH, end.middle, end.y
            if depth[box.name] - depth[source] == 1:
                half = (y0 + y1) / 2
                paths.append(_path(f"M{x0:.1f},{y0:.1f}C{x0:.1f},{half:.1f} {x1:.1f},{half:.1f} {x1:.1f},{y1:.1f}"))
            else:
                number = lanes.setdefault(source, len(lanes))
                shift = 5 + 3 * (number % 4)  # lines that turn between the same rows stay apart
                lane = right + number * _LANE
                paths.append(_path(f"M{x0 + 8:.1f},{y0:.1f}v{shift}H{lane:.1f}V{y1 - 6:.1f}H{x1 + 8:.1f}V{y1:.1f}"))
    return paths, len(lanes)


def _path(d: str) -> str:
    return f'<path d="{d}" fill="none" stroke="currentColor" stroke-opacity=".45"/>'


def _box(place: _Place, box: Box) -> str:
    name = wrapped(box.name, place.width - 8, 14.5)  # bold is wider
    lines = [(line, 12.0, ' font-weight="600" font-size="12"') for line in name]
    lines += [(box.kind, 10.5, ' fill-opacity=".75" font-size="10.5"')] if len(name) == 1 else []
    lines += (
        [(line, 10.5, ' font-size="10.5"') for line in wrapped(box.outcome, place.width - 8, 10.5)]
        if box.outcome
        else []
    )
    top = place.y + (_HIGH - 14 * len(lines[:4])) / 2 + 10.5
    return (
        f"<g><title>{escaped(f'{box.name}: {box.kind}. {box.outcome}')}</title>"
        f'<rect class="box" x="{place.x:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" height="{_HIGH:.0f}" rx="6"'
        ' fill="none" stroke="currentColor" stroke-opacity=".6"/>'
        + "".join(
            svg_text(place.middle, top + 14 * i, fitted(t, place.width - 4, s), "middle", m)
            for i, (t, s, m) in enumerate(lines[:4])
        )
        + "</g>"
    )
