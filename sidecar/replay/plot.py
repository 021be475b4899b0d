"""Curves as an SVG, by hand: a few lines and words need no library."""

from collections.abc import Sequence
from math import log2
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 190, 20, 48
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLE = "font: 12px sans-serif; fill: #333"


class Line(NamedTuple):
    """Percent of hits, one for each size."""

    name: str
    percents: Sequence[float]


def svg(lines: Sequence[Line], sizes: Sequence[int], labels: Sequence[str]) -> str:
    """`lines` over `sizes` (log scale), which are called `labels`."""
    top = 1.05 * max(10.0, *(percent for line in lines for percent in line.percents))
    xs = [_x(size, sizes) for size in sizes]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        *_grid(top),
        *(_text(x, _HEIGHT - 28, label, "middle") for x, label in zip(xs, labels, strict=True)),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "size of the cache", "middle"),
    ]
    for number, line in enumerate(lines):
        stroke = f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2"'
        points = [(x, _y(percent, top)) for x, percent in zip(xs, line.percents, strict=True)]
        written = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{written}" fill="none" {stroke}/>')
        parts += _legend(number, line.name, stroke)
    return "\n".join([*parts, "</svg>", ""])


def _legend(number: int, name: str, stroke: str) -> list[str]:
    x, y = _WIDTH - _RIGHT + 16, _TOP + 18 * number + 8
    line = f'<line x1="{x}" x2="{x + 20}" y1="{y}" y2="{y}" {stroke}/>'
    return [line, _text(x + 26, y + 4, name, "start")]


def _grid(top: float) -> list[str]:
    step = next(step for step in (1, 2, 5, 10, 20) if top / step <= 8)
    lines = []
    for percent in range(0, int(top) + 1, step):
        y, right = f"{_y(percent, top):.1f}", _WIDTH - _RIGHT
        lines.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        lines.append(_text(_LEFT - 8, _y(percent, top) + 4, f"{percent} %", "end"))
    return lines


def _text(x: float, y: float, text: str, anchor: str) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{_STYLE}"'
    return f"<text {at}>{escape(text)}</text>"


def _x(size: int, sizes: Sequence[int]) -> float:
    low, high = log2(min(sizes)), log2(max(sizes))
    share = (log2(size) - low) / (high - low) if high > low else 0.5
    return _LEFT + 20 + share * (_WIDTH - _LEFT - _RIGHT - 40)


def _y(percent: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - percent / top * (_HEIGHT - _TOP - _BOTTOM)
