"""Small SVG drawings: bars with quartiles, and lines over a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

INK: Final = "#1f2328"
FAINT: Final = "#d0d7de"
OURS: Final = "#0b6e99"
PEER: Final = "#9aa5b1"
PALETTE: Final = (OURS, "#d1495b", "#3a7d44", "#8d5fd3", "#e08e0b", "#6b7280", "#00a6a6", "#a0522d")
"""Colours of lines; the first is that of `asgi-datasource`."""

BAR: Final = 17
LABEL: Final = 205
PANEL: Final = 430


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and its quartiles."""

    low: float
    median: float
    high: float


@dataclass(slots=True)
class Drawing:
    """Collects shapes; `text()` is the file."""

    width: float
    height: float
    title: str
    shapes: list[str] = field(default_factory=list[str])

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = FAINT, width: float = 1) -> None:
        """Draw a line."""
        self.shapes.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:g}"/>'
        )

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Fill a rectangle."""
        self.shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}" rx="2"/>'
        )

    def label(self, x: float, y: float, text: str, *, anchor: str = "start", weight: int = 400, size: int = 12) -> None:
        """Write a text; `anchor` is `start`, `middle` or `end`."""
        self.shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
            f"{escape(text)}</text>"
        )

    def path(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """Draw a line through points, and a dot at each."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2"/>')
        self.shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in points]

    def text(self) -> str:
        """The file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" '
            f'font-family="system-ui, sans-serif" fill="{INK}">'
        )
        body = [f"<title>{escape(self.title)}</title>", '<rect width="100%" height="100%" fill="#ffffff" rx="6"/>']
        return "\n".join([head, *body, *self.shapes, "</svg>", ""])


def short(value: float) -> str:
    """A number with three significant digits: 12300 is 12,300."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    rounded = round(value, 2 - math.floor(math.log10(abs(value))))
    return f"{rounded:,.{digits}f}"


def bars(title: str, unit: str, panels: Mapping[str, Mapping[str, Spread]], ours: frozenset[str]) -> str:
    """One panel of horizontal bars for each case, two in a row; the thin lines are the quartiles."""
    rows = [list(panels.items())[start : start + 2] for start in range(0, len(panels), 2)]
    heights = [max(len(sides) for _, sides in row) * (BAR + 5) + 44 for row in rows]
    drawing = Drawing(2 * PANEL + 20, sum(heights) + 40, title)
    drawing.label(14, 24, f"{title} ({unit}; bars are medians, lines quartiles)", weight=600, size=14)
    top = 40.0
    for row, height in zip(rows, heights, strict=True):
        for column, (case, sides) in enumerate(row):
            _panel_of_bars(drawing, column * PANEL + 10, top, case, sides, ours)
        top += height
    return drawing.text()


def _panel_of_bars(
    drawing: Drawing, x: float, y: float, case: str, sides: Mapping[str, Spread], ours: frozenset[str]
) -> None:
    drawing.label(x + 4, y + 16, case, weight=600)
    scale = (PANEL - LABEL - 70) / max(spread.high for spread in sides.values())
    for number, (side, spread) in enumerate(sides.items()):
        top = y + 26 + number * (BAR + 5)
        left, middle = x + LABEL, top + BAR / 2
        drawing.label(left - 6, middle + 4, side, anchor="end", weight=600 if side in ours else 400)
        drawing.box(left, top, spread.median * scale, BAR, OURS if side in ours else PEER)
        drawing.line(left + spread.low * scale, middle, left + spread.high * scale, middle, INK, 1.5)
        drawing.label(left + spread.high * scale + 5, middle + 4, short(spread.median))


@dataclass(frozen=True, slots=True)
class Lines:
    """One panel of lines: the values of each side at each position of the scale."""

    title: str
    positions: Sequence[str]
    sides: Mapping[str, Sequence[float]]


def lines(title: str, axis: str, unit: str, panels: Sequence[Lines]) -> str:
    """Panels of lines, two in a row, with a logarithmic vertical scale; the legend is below."""
    height = 250
    names = list(dict.fromkeys(side for panel in panels for side in panel.sides))
    bottom = 40 + height * ((len(panels) + 1) // 2)
    drawing = Drawing(2 * PANEL + 20, bottom + 18 * ((len(names) + 2) // 3) + 16, title)
    drawing.label(14, 24, f"{title} ({unit}, logarithmic)", weight=600, size=14)
    colors = dict(zip(names, PALETTE, strict=False))
    for number, panel in enumerate(panels):
        _panel_of_lines(drawing, (number % 2) * PANEL + 10, 40 + (number // 2) * height, height, axis, panel, colors)
    for number, name in enumerate(names):
        x, y = 24 + (number % 3) * 280, bottom + 14 + 18 * (number // 3)
        drawing.line(x, y - 4, x + 22, y - 4, colors[name], 3)
        drawing.label(x + 28, y, name)
    return drawing.text()


def _panel_of_lines(
    drawing: Drawing, x: float, y: float, height: float, axis: str, panel: Lines, colors: Mapping[str, str]
) -> None:
    values = [value for side in panel.sides.values() for value in side]
    low, high = math.floor(math.log10(min(values)) * 3) / 3, math.ceil(math.log10(max(values)) * 3) / 3
    left, right, top, bottom = x + 56, x + PANEL - 24, y + 30, y + height - 44
    drawing.label(x + 4, y + 16, panel.title, weight=600)

    def at(position: int, value: float) -> tuple[float, float]:
        across = left + (right - left) * position / max(1, len(panel.positions) - 1)
        return across, bottom - (bottom - top) * (math.log10(value) - low) / (high - low)

    for step in range(round((high - low) * 3) + 1):
        value = 10 ** (low + step / 3)
        drawing.line(left, at(0, value)[1], right, at(0, value)[1])
        drawing.label(left - 6, at(0, value)[1] + 4, f"{float(f'{value:.1g}'):,g}", anchor="end", size=11)
    for position, name in enumerate(panel.positions):
        drawing.label(at(position, 10**low)[0], bottom + 16, name, anchor="middle", size=11)
    drawing.label((left + right) / 2, bottom + 32, axis, anchor="middle", size=11)
    for side, found in reversed(list(panel.sides.items())):
        drawing.path([at(position, value) for position, value in enumerate(found)], colors[side])
