"""The 2-D map: points colored by cluster, and the cluster names that fit on it."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

MOST_CIRCLES = 3_000
"""Most points that are drawn as circles. Larger maps become a picture, because a browser is slow with tens of thousands of circles."""
WIDE, NARROW = 720, 335
"""Widths in pixels of the square map on a desktop and on a phone. Names are placed for both."""
_MARGIN = 4.0
"""Percent of the width left free on each side."""
_LINE, _LETTER = 17, 7.0
"""Height of a name and width of a letter in pixels, in the map's 12-pixel type. Both are rather too large than too small."""
_LONGEST_NAME = 28


def scatter(
    points: np.ndarray, clusters: np.ndarray, names: Mapping[int, str], palette: Sequence[str], hrefs: Mapping[int, str]
) -> Markup:
    """Return a square map of `points` [n, 2] colored by `clusters` [n]; `palette` is indexed by cluster, `hrefs` are addresses of cards.

    Up to 3,000 points are circles that show their cluster's name under the pointer and link to its card; more are
    drawn into one PNG. Each name is placed in the middle of its cluster. The largest clusters come first, and a name
    that would overlap an earlier one is left out.
    """
    places = _percent(points)
    present, counts = np.unique(clusters, return_counts=True)
    by_size = [int(cluster) for cluster in present[np.argsort(-counts, kind="stable")]]
    if len(points) > MOST_CIRCLES:
        drawn = _picture(places, clusters, palette)
    else:
        drawn = Markup("").join(_group(places[clusters == c], hrefs[c], names[c], palette[c]) for c in by_size)
    centers = {cluster: _center(places[clusters == cluster]) for cluster in by_size}
    texts = Markup("").join(_text(label) for label in fit(centers, names))
    return Markup('<svg class="map" role="img" aria-label="{}">{}<g class="names">{}</g></svg>').format(
        f"Map of {len(points):,} images in {len(by_size)} clusters", drawn, texts
    )


def _percent(points: np.ndarray) -> np.ndarray:
    """Return points in percent of the map, y downward. Both axes have one scale, because the map is there to show distances."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = max(float((high - low).max()) / 2, 1e-12)
    return np.asarray(50 + (points - (low + high) / 2) / half * [1, -1] * (50 - _MARGIN), np.float64)


def _center(places: np.ndarray) -> np.ndarray:
    """Return the point nearest to the median. The median itself may fall between two islands of a cluster."""
    return np.asarray(places[np.linalg.norm(places - np.median(places, axis=0), axis=1).argmin()])


def _group(places: np.ndarray, href: str, name: str, color: str) -> Markup:
    circles = Markup("").join(Markup('<circle cx="{:.2f}%" cy="{:.2f}%" r="2.6"/>').format(x, y) for x, y in places)
    return Markup('<a href="{}" tabindex="-1"><g fill="{}"><title>{}</title>{}</g></a>').format(
        href, color, name, circles
    )


def _picture(places: np.ndarray, clusters: np.ndarray, palette: Sequence[str]) -> Markup:
    # Draw at four times the shown width, then halve: so edges are smooth, and the picture is sharp on a high-resolution screen.
    side, radius = 4 * WIDE, 7 if len(places) < 20_000 else 5
    canvas = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(canvas)
    for (x, y), cluster in zip(places / 100 * side, clusters.tolist(), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=palette[cluster])
    small = canvas.reduce(2).quantize(256, method=Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return Markup('<image width="100%" height="100%" href="data:image/png;base64,{}"/>').format(
        base64.b64encode(buffer.getvalue()).decode()
    )


@dataclass(frozen=True)
class Label:
    """A name on the map."""

    cluster: int
    text: str
    x: float
    y: float
    """`x` and `y` are the center of the name, in percent of the map."""
    narrow: bool
    """Whether the name also fits on a phone."""


def fit(centers: Mapping[int, np.ndarray], names: Mapping[int, str]) -> list[Label]:
    """Return the names that fit, in the order of `centers` (cluster → x, y in percent). A placed name is not moved for a later one."""
    labels: list[Label] = []
    wide: list[tuple[float, float, float]] = []
    narrow: list[tuple[float, float, float]] = []
    for cluster, (x, y) in centers.items():
        text = _shorten(names[cluster])
        width = _LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
        edge = 50 * width / WIDE
        x = min(max(float(x), edge), 100 - edge)
        if not _place(wide, width, x, float(y), WIDE):
            continue
        labels.append(Label(cluster, text, x, float(y), _place(narrow, width, x, float(y), NARROW)))
    return labels


def _place(taken: list[tuple[float, float, float]], width: float, x: float, y: float, side: int) -> bool:
    """Return whether a name of `width` pixels at (x, y) percent stays inside and overlaps none of `taken`; if so, add it to `taken`."""
    center, middle = x / 100 * side, y / 100 * side
    if not width / 2 - 0.5 <= center <= side - width / 2 + 0.5:
        return False
    if any(abs(center - cx) < (width + w) / 2 and abs(middle - cy) < _LINE for cx, cy, w in taken):
        return False
    taken.append((center, middle, width))
    return True


def _shorten(name: str) -> str:
    flat = " ".join(name.split())
    return flat if len(flat) <= _LONGEST_NAME else flat[: _LONGEST_NAME - 1].rstrip() + "…"


def _text(label: Label) -> Markup:
    return Markup('<text x="{:.2f}%" y="{:.2f}%"{}>{}</text>').format(
        label.x, label.y, Markup("") if label.narrow else Markup(' class="wide"'), label.text
    )
