"""Line charts as SVG that stands in a page. `templates/chart.html.j2` draws them; a style sheet gives the colours.

A chart needs no script: a point shows its values in a tooltip, and a style sheet can show one of two charts of the same
curves. Lengths are in units of the chart's own coordinates (`WIDTH` by `HEIGHT`), which scale with the page.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 332, 12, 210
"""The four sides of the plotting area."""
MOST_TICKS = 7

Number = int | float


@dataclass(frozen=True)
class Axis:
    """One axis of a chart."""

    title: str
    low: Number
    high: Number
    ticks: tuple[tuple[Number, str], ...]
    """Values and what is written at them."""
    log: bool = False

    def share(self, value: Number) -> float:
        """How far along the axis a value lies: 0 at the low end, 1 at the high end."""
        low, high, value = ((math.log(max(one, 1e-300)) if self.log else one) for one in (self.low, self.high, value))
        return min(3.0, max(-2.0, (value - low) / (high - low or 1.0)))  # what lies outside is not drawn


@dataclass(frozen=True)
class Point:
    """A value of a curve."""

    x: Number
    y: Number
    says: str
    """The tooltip."""


@dataclass(frozen=True)
class Line:
    """A curve."""

    colour: int
    points: Sequence[Point]
    band: Sequence[tuple[Number, Number, Number]] = ()
    """Its interval: x, the low end and the high end."""
    dotted: bool = False
    dots: bool = True
    """Whether each point is drawn, with its tooltip."""


@dataclass(frozen=True)
class Chart:
    """Curves on two axes."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    rule: Number | None = None
    """A dotted line at this y."""
    kind: str = ""
    """A class of its own, by which a style sheet can show or hide it."""

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM

    def across(self, value: Number) -> float:
        """Where an x lies."""
        return round(LEFT + (RIGHT - LEFT) * self.x.share(value), 1)

    def up(self, value: Number) -> float:
        """Where a y lies."""
        return round(BOTTOM - (BOTTOM - TOP) * self.y.share(value), 1)

    def path(self, line: Line) -> str:
        """A curve as SVG's commands."""
        return _path((self.across(point.x), self.up(point.y)) for point in line.points)

    def area(self, line: Line) -> str:
        """The band of a curve as SVG's commands."""
        there = [(self.across(x), self.up(low)) for x, low, _ in line.band]
        back = [(self.across(x), self.up(high)) for x, _, high in reversed(line.band)]
        return f"{_path(chain(there, back))}Z" if there else ""

    @cached_property
    def says(self) -> str:
        """What the chart shows, in words."""
        return f"{self.title}: {self.y.title} against {self.x.title}"


def _path(points: Iterable[tuple[Number, Number]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def log_axis(title: str, low: Number, high: Number) -> Axis:
    """A logarithmic axis with ticks at powers of ten."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / MOST_TICKS))
    ticks = tuple((10.0**power, short_number(10.0**power)) for power in range(first, last + 1, step))
    return Axis(title, low, high, ticks, log=True)


def linear_axis(title: str, low: Number, high: Number, *, percent: bool = False) -> Axis:
    """A linear axis with ticks at round values."""
    span = high - low or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [number * step for number in range(first, last + 1)]
    return Axis(title, low, high, tuple((v, f"{100 * v:.3g} %" if percent else short_number(v)) for v in values))


def named_axis(title: str, names: Sequence[str]) -> Axis:
    """An axis of names at 0, 1, 2, ...; of many only some are written."""
    step = max(1, math.ceil(len(names) / MOST_TICKS))
    return Axis(title, -0.3, len(names) - 0.7, tuple((float(i), names[i]) for i in range(0, len(names), step)))


def short_number(value: Number) -> str:
    """A number for a tick: 0.001, 250, 10k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
