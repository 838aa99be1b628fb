"""A line chart as inline SVG. Its colours are the page's variables, so that it is dark where the page is."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLORS = 8
"""How many colours the page has (`--c0` and so on); further series have dashes, too."""

_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 34
MOST_POINTS = 300
"""Of a line; a longer one is drawn as means of neighbours."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: For the legend and the tooltips.
        points: In the order of x; what is not finite is left out.
        color: Which of the page's colours.
        marked: Whether each point is marked: evaluations are few and far apart.
    """

    name: str
    points: Sequence[Point]
    color: int = 0
    marked: bool = False


def line_chart(series: Sequence[Series], label: str, x_label: str = "step", *, share: bool = False) -> str:
    """The chart; empty where no series has a point.

    Args:
        series: The lines.
        label: What is shown, for those who hear the page.
        x_label: Of the horizontal axis.
        share: Whether y is a share, from 0 to 1; else the axis begins at 0, or below where a value is.
    """
    known = [(one, points) for one in series if (points := _finite(one.points))]
    if not known:
        return ""
    # From the beginning, which not every line has, so that charts beside each other have one axis.
    x_low, x_high = 0.0, max(1.0, *(x for _, points in known for x, _ in points))
    drawn = [(one, thin(points)) for one, points in known]
    points = [point for _, kept in drawn for point in kept]
    y_low, y_high = min(0.0, *(y for _, y in points)), max(0.0, *(y for _, y in points))
    if share:
        y_low, y_high = min(0.0, y_low), max(1.0, y_high)
    y_ticks = nice_ticks(y_low, y_high if y_high > y_low else y_low + 1)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (y_high - y) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">',
        *(_y_tick(down(tick), tick) for tick in y_ticks),
        *(_x_tick(across(tick), tick) for tick in nice_ticks(x_low, x_high, 5, whole=True) if x_low <= tick <= x_high),
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 3}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>",
    ]
    for one, kept in drawn:
        style = f"stroke:var(--c{one.color % COLORS})"
        dashes = ' stroke-dasharray="5 3"' if one.color >= COLORS else ""
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in kept)
        if len(kept) > 1:
            parts.append(f'<polyline class="line" style="{style}"{dashes} points="{path}"/>')
        if one.marked or len(kept) == 1:
            parts += [_mark(across(x), down(y), one, (x, y)) for x, y in kept]
    return "".join([*parts, "</svg>"])


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Not more than `most` points: means of as many neighbours as that takes.

    Example:
        >>> thin([(1, 2.0), (2, 4.0), (3, 9.0)], most=2)
        [(1.5, 3.0), (3.0, 9.0)]
    """
    size = -(-len(points) // most) if points else 1
    if size == 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def nice_ticks(low: float, high: float, count: int = 6, *, whole: bool = False) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`: multiples of 1, 2 or 5 times a power of ten.

    Example:
        >>> nice_ticks(0, 7.3)
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def short_number(value: float) -> str:
    """`0.25`, `1.2k`, `3e-05`.

    Example:
        >>> [short_number(value) for value in (0.0, 0.25, 1200, 3e6, 0.00003)]
        ['0', '0.25', '1.2k', '3M', '3e-05']
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _y_tick(y: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(value)}</text>'
    )


def _x_tick(x: float, value: float) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{short_number(value)}</text>'


def _mark(x: float, y: float, series: Series, point: Point) -> str:
    said = html.escape(f"{series.name}, {short_number(point[0])}: {point[1]:.4g}")
    color = f"fill:var(--c{series.color % COLORS})"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="{color}"><title>{said}</title></circle>'
