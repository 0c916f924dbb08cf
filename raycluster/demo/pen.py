"""A pen that draws simple shapes in a box anywhere in a picture, and the register of the kinds that can be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from PIL.ImageDraw import ImageDraw

Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """A kind of thing: its name, the function that draws it, and other nouns for it."""

    name: str
    sketch: Callable[[Pen], None]
    also: tuple[str, ...]
    """Synonyms, which captions use in place of the name."""
    of: tuple[str, ...]
    """Hypernyms: wider terms for the thing."""


KINDS: dict[str, Kind] = {}
"""All kinds by name. The modules kinds_*.py register theirs when they are imported; `raycluster.demo.kinds` imports all of them."""


def kind(also: Sequence[str] = (), of: Sequence[str] = ()) -> Callable[[Callable[[Pen], None]], Callable[[Pen], None]]:
    """Register a sketch under its function's name: `_ice_cream` draws the kind "ice cream"."""

    def register(sketch: Callable[[Pen], None]) -> Callable[[Pen], None]:
        name = sketch.__name__.strip("_").replace("_", " ")
        KINDS[name] = Kind(name, sketch, tuple(also), tuple(of))
        return sketch

    return register


def arc(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> list[Point]:
    """Return points on an ellipse around (x, y) from angle `start` to `end`, in degrees clockwise from the right."""
    steps = max(6, round(abs(end - start) / 14))
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def mirrored(points: Sequence[Point]) -> list[Point]:
    """Return a closed outline: its right half, given from top to bottom, and the mirror image of that half in x = 0."""
    return [*points, *((-x, y) for x, y in reversed(points))]


class Pen:
    """A pen that draws in a box where x and y run from -1 to 1 (right and down). An affine map places the box in the picture.

    It has three colors for a thing: `main` covers most of it, `accent` and `trim` cover parts. `ink` is nearly black and
    `paper` nearly white. `between`, `some` and `chance` vary the proportions.
    """

    ink: Color = (32, 30, 38)
    paper: Color = (245, 244, 238)

    def __init__(
        self,
        draw: ImageDraw,
        place: tuple[float, float, float, float, float, float],
        palette: tuple[Color, Color, Color],
        random: Random,
    ) -> None:
        self._draw = draw
        self._place = place
        self._random = random
        self.main, self.accent, self.trim = palette

    def between(self, low: float, high: float) -> float:
        """Return a random number, uniform in [low, high]."""
        return low + (high - low) * self._random.random()

    def some(self, low: int, high: int) -> int:
        """Return a random whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random.random() < probability

    def polygon(self, points: Sequence[Point], fill: Color) -> None:
        """Fill the polygon through these points."""
        a, b, c, d, e, f = self._place
        self._draw.polygon([(a * x + b * y + c, d * x + e * y + f) for x, y in points], fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Color) -> None:
        """Fill a rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        """Fill an ellipse around (x, y)."""
        self.polygon(arc(x, y, rx, ry), fill)

    def dot(self, x: float, y: float, r: float, fill: Color) -> None:
        """Fill a circle around (x, y)."""
        self.polygon(arc(x, y, r, r), fill)

    def line(self, points: Sequence[Point], width: float, fill: Color) -> None:
        """Draw a line of this width with round ends and joints."""
        r = width / 2
        for (x0, y0), (x1, y1) in pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            dx, dy = (y1 - y0) / length * r, (x0 - x1) / length * r
            self.polygon([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], fill)
        for x, y in points:
            self.polygon([(x + r * c, y + r * s) for c, s in _OCTAGON], fill)

    def ring(self, x: float, y: float, r: float, width: float, fill: Color) -> None:
        """Draw a circle's outline; `r` is the radius to the middle of the line."""
        self.line(arc(x, y, r, r), width, fill)

    def star(self, x: float, y: float, outer: float, inner: float, points: int, fill: Color) -> None:
        """Fill a star with its first point up."""
        corners = []
        for i in range(2 * points):
            r = inner if i % 2 else outer
            angle = math.pi * (i / points - 0.5)
            corners.append((x + r * math.cos(angle), y + r * math.sin(angle)))
        self.polygon(corners, fill)


_OCTAGON = [(math.cos(math.pi * i / 4), math.sin(math.pi * i / 4)) for i in range(8)]
