"""Charts of numbers as inline SVG. Lengths are percentages, so that text keeps its size on every screen width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_FEW_COLORS = (
    "#4269d0", "#d8930b", "#e8604a", "#3fa796", "#3a9a4b", "#d9679a", "#9256dd", "#5d93d6", "#9c6b4e", "#858a94",
)  # fmt: skip
_GOLDEN_ANGLE = 2.399963
"""The golden angle in radians. Its successive multiples never come close to each other."""
_LIGHTNESS, _CHROMA = (0.64, 0.56, 0.71), 0.14

THIN = 0.004
"""Shares above 0 and up to this one are drawn two pixels wide."""
HEADROOM = 0.94
"""Share of a column chart's height that the largest value takes."""
POINTS = 400
"""Number of points at the upper edge of an area."""
JOINED = 150
"""From this number of columns on, they are drawn without gaps, because gaps would be thinner than a pixel."""


def colors(n: int) -> tuple[str, ...]:
    """Return `n` colors that stand out on white and on near-black. Up to ten are chosen by hand; for more, all are computed."""
    if n <= len(_FEW_COLORS):
        return _FEW_COLORS[:n]
    return tuple(_oklch(_LIGHTNESS[i % len(_LIGHTNESS)], _CHROMA, i * _GOLDEN_ANGLE) for i in range(n))


def _oklch(lightness: float, chroma: float, hue: float) -> str:
    """Return `#rrggbb` of a color in polar Oklab (Ottosson 2020). Unlike in HSL, equal lightness looks equally light in every hue."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long, medium, short = (
        (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3,
        (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3,
        (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3,
    )
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    clipped = (min(max(value, 0.0), 1.0) for value in linear)
    encoded = (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in clipped)
    return "#" + "".join(f"{round(255 * value):02x}" for value in encoded)


@dataclass(frozen=True)
class Column:
    """One column of :func:`columns`."""

    value: float
    title: str
    """Shown while the pointer rests on the column."""
    href: str


def bar(share: float) -> Markup:
    """Return a horizontal bar that fills `share` (0 to 1) of the width. A bar for a share above 0 is never too thin to see."""
    width = f"{100 * share:.3f}%" if share == 0 or share > THIN else "2"
    return Markup('<svg class="bar" aria-hidden="true"><rect width="{}" height="100%"/></svg>').format(width)


def ticks(largest: float) -> tuple[int, ...]:
    """Return at most five round numbers above 0 and up to `largest`: multiples of 1, 2 or 5 times a power of ten."""
    if largest < 1:
        return ()
    step = 1
    while largest / step > 5:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return tuple(range(step, int(largest) + 1, step))


def curve(values: Sequence[float]) -> Markup:
    """Return a line through the values, spread over the width, with the lowest at the bottom and the highest at the top."""
    low, high = min(values), max(values)
    points = " ".join(
        f"{100 * i / (len(values) - 1):.2f},{40 * (high - value) / ((high - low) or 1):.2f}"
        for i, value in enumerate(values)
    )
    return Markup(
        '<svg class="curve" viewBox="0 -2 100 44" preserveAspectRatio="none" aria-hidden="true">'
        '<polyline points="{}" fill="none" vector-effect="non-scaling-stroke"/></svg>'
    ).format(points)


def columns(values: Sequence[Column], mean: float) -> Markup:
    """Return columns side by side in the given order, with grid lines at round numbers and a dashed line at `mean`.

    The chart suits ten to thousands of values: names are in the titles, and grid labels are at the right end, where sorted columns are low.
    """
    largest = max((column.value for column in values), default=0) or 1
    pitch = 100 / max(len(values), 1)
    width = pitch if len(values) >= JOINED else 0.8 * pitch

    # The invisible rectangle shows the title of a low column wherever the pointer is above it, and makes that space a link too.
    drawn = Markup("").join(
        Markup(
            '<a href="{}" tabindex="-1"><title>{}</title><rect class="reach" x="{:.3f}%" width="{:.3f}%" height="100%"/>'
            '<rect class="column" x="{:.3f}%" y="{:.2f}%" width="{:.3f}%" height="{:.2f}%"/></a>'
        ).format(column.href, column.title, i * pitch, pitch, i * pitch, 100 - height, width, height)
        for i, (column, height) in enumerate((column, _height(column.value, largest)) for column in values)
    )
    grid = [(tick, _height(tick, largest)) for tick in ticks(largest)]
    return _framed(drawn, f"{len(values)} columns, the largest {largest:,}", grid, _height(mean, largest))


def area(values: Sequence[float], mean: float) -> Markup:
    """Return a chart of very many values, the largest first: an area on a logarithmic scale, without titles and links.

    Among thousands of clusters a few are often a thousand times as large as most, which a linear scale would not show.
    """
    largest = max(values) or 1

    def up(value: float) -> float:
        return _height(math.log1p(value), math.log1p(largest))

    # Of more values than points, those at even places are drawn.
    places = [round(i * (len(values) - 1) / (POINTS - 1)) for i in range(POINTS)]
    points = " ".join(f"{100 * i / (POINTS - 1):.2f},{100 - up(values[place]):.2f}" for i, place in enumerate(places))
    drawn = Markup(
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">'
        '<polygon class="column" points="0,100 {} 100,100"/></svg>'
    ).format(points)
    grid = [(10**power, up(10**power)) for power in range(1, int(math.log10(largest)) + 1)]
    return _framed(drawn, f"{len(values)} values, the largest {largest:,}", grid, up(mean))


def _height(value: float, largest: float) -> float:
    """Return the height of a value in percent of the chart's height."""
    return 100 * HEADROOM * value / largest


def _framed(drawn: Markup, label: str, grid: Sequence[tuple[int, float]], mean: float) -> Markup:
    """Return a chart with grid lines, each a number and its height, and a dashed line at the height `mean`. Heights are in percent."""
    lines = Markup("").join(
        Markup(
            '<line x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/><text x="100%" y="{0:.2f}%" dy="-4">{1:,}</text>'
        ).format(100 - height, number)
        for number, height in grid
    )
    return Markup(
        '<svg class="columns" role="img" aria-label="{}">{}<line class="mean" x1="0" x2="100%" y1="{:.2f}%" y2="{:.2f}%"/>'
        '<g class="grid">{}</g></svg>'
    ).format(label, drawn, 100 - mean, 100 - mean, lines)
