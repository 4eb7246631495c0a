"""Pictures as SVG text: lines, bars, intervals and radars. No library, no script, light and dark.

All are ``WIDTH`` pixels wide, so that a phone shows them at their own size. Colours are
``currentColor`` and a few that read on white and on black; series also differ in their dashes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openbezoar.progress import visible
from openbezoar.reporting.wording import amount

WIDTH = 350.0
COLOURS = ("#3b82f6", "#d9730d", "#22976a", "#a855f7", "#d6456f", "#7a828e", "#a38200", "#0f93a8")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 4", "6 2 1 2")
_STANDALONE = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"
_LEFT, _RIGHT, _TOP, _HIGH = 52.0, 10.0, 40.0, 150.0
_CHARACTER = 0.56  # of the font's size, on average


@dataclass(frozen=True)
class Series:
    """One line: points (x, y) in order of x."""

    label: str
    points: tuple[tuple[float, float], ...]
    marks: bool = False  # dots at the points, for few of them


@dataclass(frozen=True)
class IntervalRow:
    """One row of an interval chart; low and high are None where no interval exists."""

    label: str
    value: float
    low: float | None
    high: float | None


def standalone(svg: str) -> str:
    """An inline SVG as the text of a file."""
    head, _, rest = svg.partition(">")
    return f"{head}>{_STANDALONE}{rest}\n"


def line_chart(series: Sequence[Series], title: str, x_label: str) -> str:
    """Lines in one frame with the range of both axes written out; '' without a finite point."""
    drawn = [
        s
        for s in (Series(s.label, tuple(p for p in s.points if math.isfinite(p[1])), s.marks) for s in series)
        if s.points
    ]
    if not drawn:
        return ""
    xs = [x for s in drawn for x, _ in s.points]
    (x0, x1), (y0, y1) = _range(xs), _range([y for s in drawn for _, y in s.points])
    width = WIDTH - _LEFT - _RIGHT

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return _LEFT + (point[0] - x0) / (x1 - x0) * width, _TOP + (y1 - point[1]) / (y1 - y0) * _HIGH

    parts = [frame_text(title), *_grid([(at((x0, v))[1], amount(v)) for v in (y0, (y0 + y1) / 2, y1)])]
    for value, anchor in ((min(xs), "start"), (max(xs), "end")):
        parts.append(svg_text(at((value, y0))[0], _TOP + _HIGH + 15, amount(value), anchor))
    parts.append(svg_text(_LEFT + width / 2, _TOP + _HIGH + 15, x_label, "middle"))
    for number, line in enumerate(drawn):
        places = [at(p) for p in line.points]
        parts.append(f'<polyline {_stroke(number)} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        if line.marks or len(places) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour(number)}"/>' for x, y in places]
    return _with_legend(parts, [s.label for s in drawn], _TOP + _HIGH + 22, title)


def bar_chart(
    series: Mapping[str, Sequence[float]], bins: Sequence[str], title: str, x_label: str, y_label: str
) -> str:
    """Bars by bin, those of several series side by side; '' without a bar."""
    drawn = {label: values for label, values in series.items() if any(values)}
    if not drawn:
        return ""
    top = max(max(values) for values in drawn.values())
    width = (WIDTH - _LEFT - _RIGHT) / len(bins)
    bar = width * 0.84 / len(drawn)
    parts = [frame_text(title), *_grid([(_TOP + _HIGH * (1 - n / top), f"{n:g}") for n in sorted({0, top // 2, top})])]
    for number, values in enumerate(drawn.values()):
        for place, value in enumerate(values):
            high = _HIGH * value / top
            x = _LEFT + place * width + width * 0.08 + number * bar
            if value:
                parts.append(
                    f'<rect x="{x:.1f}" y="{_TOP + _HIGH - high:.1f}" width="{bar:.1f}" height="{high:.1f}"'
                    f' fill="{colour(number)}"/>'
                )
    every = max(1, math.ceil(max(map(len, bins)) * 11 * _CHARACTER / (width - 2)))
    parts += [
        svg_text(_LEFT + (i + 0.5) * width, _TOP + _HIGH + 15, label, "middle")
        for i, label in enumerate(bins)
        if i % every == 0
    ]
    parts.append(
        svg_text(_LEFT + (WIDTH - _LEFT - _RIGHT) / 2, _TOP + _HIGH + 30, f"{x_label}; height: {y_label}", "middle")
    )
    return _with_legend(parts, list(drawn) if len(drawn) > 1 else [], _TOP + _HIGH + 36, title, filled=True)


def interval_chart(rows: Sequence[IntervalRow], title: str) -> str:
    """A dot with its interval a row, and a dashed line at the first row's dot; '' without a row."""
    if not rows:
        return ""
    ends = [end for row in rows for end in (row.value, row.low, row.high)]
    low, high = _range([end for end in ends if end is not None and math.isfinite(end)])
    left = min(150.0, 14 + max(_length(r.label, 11) for r in rows))
    width, step, top = WIDTH - left - 22, 22.0, _TOP - 6

    def at(value: float) -> float:
        return left + 10 + (value - low) / (high - low) * width

    bottom = top + step * len(rows)
    parts = [frame_text(title)]
    parts.append(
        f'<line x1="{at(rows[0].value):.1f}" x2="{at(rows[0].value):.1f}" y1="{top}" y2="{bottom}"'
        ' stroke="currentColor" stroke-dasharray="2 3" stroke-opacity=".6"/>'
    )
    for number, row in enumerate(rows):
        y = top + step * (number + 0.5)
        parts.append(svg_text(left, y + 4, fitted(row.label, left - 2, 11), "end"))
        if row.low is not None and row.high is not None:
            parts.append(
                f'<line x1="{at(row.low):.1f}" x2="{at(row.high):.1f}" y1="{y}" y2="{y}" stroke="{colour(0)}"'
                ' stroke-width="2"/>'
            )
        parts.append(f'<circle cx="{at(row.value):.1f}" cy="{y}" r="4.5" fill="{colour(0)}"/>')
    parts.append(
        f'<line x1="{left + 10}" x2="{WIDTH - 12}" y1="{bottom}" y2="{bottom}" stroke="currentColor"'
        ' stroke-opacity=".3"/>'
    )
    parts += [svg_text(at(v), bottom + 15, amount(v), anchor) for v, anchor in ((low, "start"), (high, "end"))]
    return svg_open(WIDTH, bottom + 22, title) + "".join(parts) + "</svg>"


def funnel_chart(stages: Sequence[tuple[str, int]], title: str) -> str:
    """A bar a stage, as long as what is left after it, with the number; '' without anything to begin with."""
    if not stages or stages[0][1] <= 0:
        return ""
    left, step, top = min(150.0, 12 + max(_length(name, 11) for name, _ in stages)), 20.0, _TOP - 10
    width = WIDTH - left - 56
    parts = [frame_text(title)]
    for number, (name, n) in enumerate(stages):
        y = top + step * number
        parts.append(svg_text(left, y + 13, fitted(name, left - 2, 11), "end"))
        parts.append(
            f'<rect x="{left + 8}" y="{y + 2}" width="{max(1.0, width * n / stages[0][1]):.1f}" height="{step - 6}"'
            f' fill="{colour(0)}" fill-opacity=".8"/>'
        )
        parts.append(svg_text(left + 13 + width * n / stages[0][1], y + 13, f"{n:,}", "start"))
    return svg_open(WIDTH, top + step * len(stages) + 8, title) + "".join(parts) + "</svg>"


def radar_chart(
    series: Mapping[str, Mapping[str, float]], axes: Sequence[str], low: float, high: float, title: str
) -> str:
    """A polygon a series over three axes or more, from ``low`` in the middle to ``high`` at the rim; '' otherwise.

    An axis on which a series has no value is passed over by its line.
    """
    drawn = {label: values for label, values in series.items() if any(a in values for a in axes)}
    if len(axes) < 3 or not drawn:
        return ""
    cx, cy, radius = WIDTH / 2, 160.0, 96.0

    def at(axis: int, value: float) -> tuple[float, float]:
        turn, far = 2 * math.pi * axis / len(axes), radius * (value - low) / (high - low)
        return cx + far * math.sin(turn), cy - far * math.cos(turn)

    def ring(value: float) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(i, value) for i in range(len(axes))))

    parts = [frame_text(title)]
    for value in (low + (high - low) / 3, low + (high - low) * 2 / 3, high):
        parts.append(f'<polygon points="{ring(value)}" fill="none" stroke="currentColor" stroke-opacity=".25"/>')
    for i, axis in enumerate(axes):
        (x, y), (tx, ty) = at(i, high), at(i, high + (high - low) * 0.11)
        parts.append(f'<line x1="{cx}" y1="{cy}" x2="{x:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity=".2"/>')
        anchor = "middle" if abs(tx - cx) < 8 else "start" if tx > cx else "end"
        parts.append(svg_text(tx, ty + 4, fitted(axis, WIDTH - tx if anchor == "start" else tx, 11), anchor))
    for number, values in enumerate(drawn.values()):
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(i, values[a]) for i, a in enumerate(axes) if a in values))
        parts.append(f'<polygon points="{places}" {_stroke(number)}/>')
    for value in (low, low + (high - low) / 3, low + (high - low) * 2 / 3, high):
        parts.append(svg_text(cx + 3, at(0, value)[1] + 11, amount(value), "start", ' fill-opacity=".75"'))
    return _with_legend(parts, list(drawn), 280, title)


# -------------------------------------------------------------------------------- parts


def colour(number: int) -> str:
    """The colour of the series with this place."""
    return COLOURS[number % len(COLOURS)]


def _stroke(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f'fill="none" stroke="{colour(number)}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def svg_open(width: float, height: float, title: str) -> str:
    """The beginning of a picture that a screen reader calls by its title."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f}'
        f' {height:.0f}" role="img" aria-label="{escaped(title)}" font-family="system-ui,sans-serif" font-size="11">'
    )


def escaped(text: str) -> str:
    """Foreign text as it may stand inside of a picture."""
    return html.escape(visible(" ".join(text.split())))


def svg_text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    """A line of text at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{more}>{escaped(text)}</text>'


def frame_text(title: str) -> str:
    """A chart's title above its frame, on two lines at most."""
    return "".join(
        svg_text(2, 12 + 14 * i, line, "start", ' font-weight="600"')
        for i, line in enumerate(wrapped(title, WIDTH - 4, 11.5))
    )


def _length(text: str, size: float) -> float:
    return len(visible(text)) * size * _CHARACTER


def fitted(text: str, width: float, size: float) -> str:
    """Text with its end cut off where it would be wider than ``width`` pixels."""
    most = max(1, int(width / (size * _CHARACTER)))
    shown = visible(text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Text on one line or two, broken at a space or behind a hyphen, its end cut off where it does not fit."""
    most = int(width / (size * _CHARACTER))
    shown = visible(" ".join(text.split()))
    if len(shown) <= most:
        return [shown]
    cut = max(shown.rfind(" ", 0, most + 1), shown.rfind("-", 0, most) + 1)
    cut = cut if cut > most // 3 else most
    return [shown[:cut].rstrip(), fitted(shown[cut:].lstrip(), width, size)]


def _grid(lines: Sequence[tuple[float, str]]) -> list[str]:
    """Horizontal lines with their values at the left."""
    parts = []
    for y, label in lines:
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor"'
            ' stroke-opacity=".2"/>'
        )
        parts.append(svg_text(_LEFT - 5, y + 4, label, "end"))
    return parts


def _with_legend(parts: Sequence[str], labels: Sequence[str], bottom: float, title: str, filled: bool = False) -> str:
    """The whole picture: what is drawn, and under it the series' names, as many on a line as fit."""
    x, y, legend = 4.0, bottom + 14, []
    for number, label in enumerate(labels):
        shown = fitted(label, WIDTH - 40, 11)
        if x > 4 and x + 26 + _length(shown, 11) > WIDTH:
            x, y = 4.0, y + 16
        line = f'stroke="{colour(number)}" stroke-width="9"' if filled else _stroke(number).replace("1.8", "3")
        legend.append(
            f'<line x1="{x}" x2="{x + 20}" y1="{y - 4}" y2="{y - 4}" {line}/>' + svg_text(x + 25, y, shown, "start")
        )
        x += 25 + _length(shown, 11) + 14
    return svg_open(WIDTH, y + 8 if labels else bottom, title) + "".join([*parts, *legend]) + "</svg>"
