"""Pictures as SVG text: lines over steps, and the graph of a run. No library, no script, light and dark.

Colours are ``currentColor`` and a few that read on white and on black, so that a page's
own colours hold.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openbezoar.reporting.wording import amount

COLOURS = ("#3b82f6", "#e07b39", "#2f9e6e", "#a855f7")
_STANDALONE = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"


@dataclass(frozen=True)
class Series:
    """One line: points (x, y) in order of x."""

    label: str
    points: tuple[tuple[float, float], ...]
    marks: bool = False  # dots at the points, for few of them


def standalone(svg: str) -> str:
    """An inline SVG as the text of a file."""
    head, _, rest = svg.partition(">")
    return f"{head}>{_STANDALONE}{rest}\n"


def line_chart(series: Sequence[Series], title: str, x_label: str, y_label: str) -> str:
    """Lines in one frame with the range of both axes written out; '' without a finite point."""
    drawn = [s for s in (Series(s.label, tuple(p for p in s.points if p[1] - p[1] == 0), s.marks) for s in series) if s.points]
    if not drawn:
        return ""
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    (x0, x1), (y0, y1) = _range(xs), _range(ys)
    left, top, width, height = 62.0, 30.0, 500.0, 180.0

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return left + (point[0] - x0) / (x1 - x0) * width, top + (y1 - point[1]) / (y1 - y0) * height

    parts = [_open(600, 262, title), f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="currentColor" stroke-opacity=".3"/>']
    for value in (y0, (y0 + y1) / 2, y1):
        y = at((x0, value))[1]
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(_text(left - 6, y + 4, amount(value), "end"))
    for value, anchor in ((min(xs), "start"), (max(xs), "end")):
        parts.append(_text(at((value, y0))[0], top + height + 16, amount(value), anchor))
    parts += [_text(left + width / 2, top + height + 16, x_label, "middle"), _text(left, top - 10, y_label, "start")]
    for number, line in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(p) for p in line.points]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        if line.marks or len(places) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x = left + 140 * number
        parts.append(f'<rect x="{x}" y="{top + height + 27}" width="14" height="4" fill="{colour}"/>' + _text(x + 19, top + height + 33, line.label, "start"))
    return "".join(parts) + "</svg>"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-family="system-ui,sans-serif" font-size="12">'
        f"<title>{html.escape(title)}</title>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{html.escape(text)}</text>'


# -------------------------------------------------------------------------------- graph


def mermaid(steps: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """A flow chart in Mermaid's text form. steps: name → (what is written under it, inputs)."""
    ids = {name: f"s{number}" for number, name in enumerate(steps)}
    lines = ["flowchart TD"]
    lines += [f'  {ids[name]}["{_mermaid_text(name)}<br/>{_mermaid_text(under)}"]' for name, (under, _) in steps.items()]
    lines += [f"  {ids[i]} --> {ids[name]}" for name, (_, inputs) in steps.items() for i in inputs if i in ids]
    return "\n".join(lines)


def _mermaid_text(text: str) -> str:
    return html.escape(text, quote=False).replace('"', "#quot;")


_BOX, _HIGH, _ACROSS, _DOWN, _LANE = 148.0, 40.0, 20.0, 34.0, 9.0


def graph_picture(steps: Mapping[str, tuple[str, Sequence[str]]], title: str) -> str:
    """The graph from top to bottom. An edge to the next layer is a curve; a longer one runs in a lane at the right."""
    depth: dict[str, int] = {}
    for name, (_, inputs) in steps.items():
        depth[name] = 1 + max((depth[i] for i in inputs if i in depth), default=-1)
    layers: dict[int, list[str]] = {}
    for name in steps:
        layers.setdefault(depth[name], []).append(name)
    inner = max(len(layer) for layer in layers.values()) * (_BOX + _ACROSS)
    place: dict[str, tuple[float, float]] = {}
    for level, layer in layers.items():
        start = (inner - len(layer) * (_BOX + _ACROSS) + _ACROSS) / 2
        for column, name in enumerate(layer):
            place[name] = start + column * (_BOX + _ACROSS), 8 + level * (_HIGH + _DOWN)
    edges, lanes = _edges(steps, depth, place, inner)
    boxes = [_box(*place[name], name, under) for name, (under, _) in steps.items()]
    return _open(inner + 8 + lanes * _LANE, 16 + len(layers) * (_HIGH + _DOWN) - _DOWN, title) + "".join(edges + boxes) + "</svg>"


def _edges(
    steps: Mapping[str, tuple[str, Sequence[str]]], depth: Mapping[str, int], place: Mapping[str, tuple[float, float]], inner: float
) -> tuple[list[str], int]:
    """Edges as paths, drawn before the boxes, and the number of lanes they take."""
    paths: list[str] = []
    lanes: dict[str, int] = {}
    for name, (_, inputs) in steps.items():
        x1, y1 = place[name][0] + _BOX / 2, place[name][1]
        for source in inputs:
            if source not in place:
                continue
            x0, y0 = place[source][0] + _BOX / 2, place[source][1] + _HIGH
            if depth[name] - depth[source] == 1:
                half = (y0 + y1) / 2
                paths.append(_path(f"M{x0:.1f},{y0:.1f}C{x0:.1f},{half:.1f} {x1:.1f},{half:.1f} {x1:.1f},{y1:.1f}"))
            else:
                lane = inner + lanes.setdefault(source, len(lanes)) * _LANE
                shift = 4 + 2 * lanes[source]  # lines that turn between the same layers stay apart
                paths.append(_path(f"M{x0:.1f},{y0:.1f}v{shift}H{lane:.1f}V{y1 - 6:.1f}H{x1:.1f}V{y1:.1f}"))
    return paths, len(lanes)


def _path(d: str) -> str:
    return f'<path d="{d}" fill="none" stroke="currentColor" stroke-opacity=".45"/>'


def _box(x: float, y: float, name: str, under: str) -> str:
    shown = name if len(name) <= 20 else name[:19] + "…"
    return (
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{_BOX}" height="{_HIGH}" rx="6" fill="none" stroke="currentColor" stroke-opacity=".6"/>'
        f'<text x="{x + _BOX / 2:.1f}" y="{y + 17:.1f}" text-anchor="middle" fill="currentColor" font-weight="600">{html.escape(shown)}<title>{html.escape(name)}</title></text>'
        f'<text x="{x + _BOX / 2:.1f}" y="{y + 32:.1f}" text-anchor="middle" fill="currentColor" fill-opacity=".75">{html.escape(under)}</text>'
    )
