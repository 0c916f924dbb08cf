"""Charts as inline SVG, from numbers. Lengths are percentages, so that text keeps its size on every screen width."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_FEW_COLORS = (
    "#4269d0", "#d8930b", "#e8604a", "#3fa796", "#3a9a4b", "#d9679a", "#9256dd", "#5d93d6", "#9c6b4e", "#858a94",
)  # fmt: skip
_GOLDEN_ANGLE = 0.381966
"""In turns; successive multiples never come close to each other."""
_LIGHTNESS = (0.52, 0.42, 0.60)

HEADROOM = 0.94
"""Share of a column chart's height that the largest value takes."""
JOINED = 150
"""From this many columns on gaps would be thinner than a pixel, and the columns form one outline."""


def colors(n: int) -> tuple[str, ...]:
    """`n` colors that stand out on white and on near-black; up to ten are chosen by hand, more repeat only in likeness."""
    if n <= len(_FEW_COLORS):
        return _FEW_COLORS[:n]
    turns = ((index * _GOLDEN_ANGLE % 1, _LIGHTNESS[index % len(_LIGHTNESS)]) for index in range(n))
    rgb = (colorsys.hls_to_rgb(hue, lightness, 0.55) for hue, lightness in turns)
    return tuple("#" + "".join(f"{round(255 * channel):02x}" for channel in color) for color in rgb)


@dataclass(frozen=True)
class Column:
    """One column of :func:`columns`."""

    value: float
    title: str
    """Shown while the pointer rests on the column."""
    href: str


def bar(share: float) -> Markup:
    """One horizontal bar that fills `share` (0 to 1) of the width; above 0 it is never invisible."""
    width = f"{100 * share:.3f}%" if share > 0 else "0"
    least = Markup(' class="least"') if share > 0 else ""
    return Markup('<svg class="bar" aria-hidden="true"><rect width="{}" height="100%"{}/></svg>').format(width, least)


def ticks(largest: float) -> tuple[int, ...]:
    """Two to five round numbers, 0 left out, up to `largest`: multiples of 1, 2 or 5 times a power of ten."""
    if largest < 1:
        return ()
    step = 1
    while largest / step > 5:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return tuple(range(step, int(largest) + 1, step))


def columns(values: Sequence[Column], mean: float) -> Markup:
    """Columns side by side in the given order, with round grid lines and a dashed line at `mean`.

    For ten to thousands of values: names are in the titles, grid labels at the right end, where sorted columns are low.
    """
    largest = max((column.value for column in values), default=0) or 1
    pitch = 100 / max(len(values), 1)
    width = pitch if len(values) >= JOINED else 0.8 * pitch

    def up(value: float) -> float:
        return 100 * HEADROOM * value / largest

    grid = Markup("").join(
        Markup('<line x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/><text x="100%" y="{0:.2f}%" dy="-4">{1:,}</text>').format(
            100 - up(tick), tick
        )
        for tick in ticks(largest)
    )
    # The unseen rectangle makes the whole height of a low column answer to the pointer.
    drawn = Markup("").join(
        Markup(
            '<a href="{}" tabindex="-1"><title>{}</title><rect class="reach" x="{:.3f}%" width="{:.3f}%" height="100%"/>'
            '<rect class="column" x="{:.3f}%" y="{:.2f}%" width="{:.3f}%" height="{:.2f}%"/></a>'
        ).format(column.href, column.title, i * pitch, pitch, i * pitch, 100 - up(column.value), width, up(column.value))
        for i, column in enumerate(values)
    )
    return Markup(
        '<svg class="columns" role="img" aria-label="{}"><g>{}</g>{}'
        '<line class="mean" x1="0" x2="100%" y1="{:.2f}%" y2="{:.2f}%"/></svg>'
    ).format(f"{len(values)} columns, the largest {largest:,}", drawn, grid_group(grid), 100 - up(mean), 100 - up(mean))


def grid_group(grid: Markup) -> Markup:
    """Grid lines as one group above the columns that lets the pointer through."""
    return Markup('<g class="grid">{}</g>').format(grid)
