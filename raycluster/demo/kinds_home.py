"""Sketches of things to use, to sit at, to read, to play and to play with."""

from __future__ import annotations

import math

from raycluster.demo.pen import Pen, arc, kind, mirrored


@kind(also=["parasol"], of=["tool"])
def _umbrella(pen: Pen) -> None:
    pen.line([(0, -0.2), (0, 0.75), *arc(0.17, 0.75, 0.17, 0.18, 180, 10)], 0.1, pen.trim)
    pen.polygon(arc(0, 0, 0.95, pen.between(0.75, 0.95), 180, 360), pen.main)
    pen.polygon(arc(0, 0, 0.35, 0.8, 180, 360), pen.accent)


@kind(of=["tool"])
def _key(pen: Pen) -> None:
    pen.ring(-0.6, 0, pen.between(0.25, 0.33), 0.16, pen.main)
    pen.line([(-0.3, 0), (0.9, 0)], 0.15, pen.main)
    for x in (0.55, 0.8):
        pen.line([(x, 0), (x, pen.between(0.25, 0.4))], 0.13, pen.main)


@kind(also=["padlock"], of=["tool"])
def _lock(pen: Pen) -> None:
    pen.line(
        [(-0.4, 0), (-0.4, -0.4), *arc(0, -0.45, 0.4, pen.between(0.35, 0.5), 180, 360), (0.4, 0)], 0.15, pen.accent
    )
    pen.box(-0.65, -0.1, 0.65, 0.9, pen.main)
    pen.dot(0, 0.3, 0.14, pen.ink)
    pen.line([(0, 0.3), (0, 0.62)], 0.1, pen.ink)


@kind(of=["tool"])
def _hammer(pen: Pen) -> None:
    pen.line([(0, -0.5), (0, 0.95)], 0.2, pen.accent)
    h = pen.between(0.18, 0.25)
    pen.polygon([(-0.6, -0.65 - h), (0.35, -0.65 - h), (0.75, -0.5), (0.35, -0.65 + h), (-0.6, -0.65 + h)], pen.main)


@kind(also=["shears"], of=["tool"])
def _scissors(pen: Pen) -> None:
    spread = pen.between(0.25, 0.5)
    for s in (-1, 1):
        pen.polygon([(s * spread, -1), (s * spread * 0.5, -0.2), (-s * 0.3, 0.35), (-s * 0.15, 0.35)], pen.accent)
        pen.ring(s * 0.32, 0.62, 0.25, 0.13, pen.main)


@kind(of=["tool", "furniture"])
def _ladder(pen: Pen) -> None:
    w = pen.between(0.3, 0.45)
    for s in (-1, 1):
        pen.line([(s * w * 0.8, -1), (s * w, 1)], 0.12, pen.main)
    for i in range(5):
        pen.line([(-w, -0.75 + 0.37 * i), (w, -0.75 + 0.37 * i)], 0.1, pen.accent)


@kind(also=["crayon"], of=["tool"])
def _pencil(pen: Pen) -> None:
    w = pen.between(0.14, 0.22)
    pen.box(-w, -0.75, w, 0.55, pen.main)
    pen.box(-w, -0.95, w, -0.7, pen.accent)
    pen.polygon([(-w, 0.55), (w, 0.55), (0, 1)], pen.paper)
    pen.polygon([(-w * 0.4, 0.82), (w * 0.4, 0.82), (0, 1)], pen.ink)


@kind(also=["watch"], of=["machine"])
def _clock(pen: Pen) -> None:
    pen.dot(0, 0, 0.95, pen.main)
    pen.dot(0, 0, pen.between(0.7, 0.8), pen.paper)
    for length, width in ((0.4, 0.13), (0.6, 0.08)):
        a = pen.between(0, 2 * math.pi)
        pen.line([(0, 0), (length * math.cos(a), length * math.sin(a))], width, pen.ink)
    pen.dot(0, 0, 0.1, pen.accent)


@kind(also=["seat"], of=["furniture"])
def _chair(pen: Pen) -> None:
    y = pen.between(0.05, 0.25)
    pen.line([(-0.5, -0.95), (-0.5, 0.95)], 0.16, pen.main)
    pen.line([(0.5, y), (0.5, 0.95)], 0.16, pen.main)
    pen.line([(-0.5, y), (0.55, y)], 0.22, pen.accent)
    pen.line([(-0.5, -0.6), (-0.5, -0.2)], 0.24, pen.accent)


@kind(also=["desk"], of=["furniture"])
def _table(pen: Pen) -> None:
    y = pen.between(-0.45, -0.2)
    pen.line([(-0.9, y), (0.9, y)], 0.2, pen.main)
    for s in (-1, 1):
        pen.line([(s * 0.7, y), (s * 0.75, 0.8)], 0.15, pen.accent)


@kind(of=["furniture"])
def _lamp(pen: Pen) -> None:
    pen.line([(0, -0.2), (0, 0.85)], 0.1, pen.accent)
    pen.line([(-0.35, 0.9), (0.35, 0.9)], 0.16, pen.accent)
    w = pen.between(0.2, 0.35)
    pen.polygon([(-w, -0.95), (w, -0.95), (0.65, -0.1), (-0.65, -0.1)], pen.main)


@kind(of=["furniture"])
def _candle(pen: Pen) -> None:
    w = pen.between(0.18, 0.28)
    pen.box(-w, -0.3, w, 0.8, pen.main)
    pen.line([(-0.5, 0.85), (0.5, 0.85)], 0.18, pen.accent)
    pen.line([(0, -0.3), (0, -0.5)], 0.06, pen.ink)
    pen.polygon([(0, -1), *arc(0, -0.6, 0.15, 0.17, -20, 200)], pen.trim)


@kind(also=["novel"], of=["paper"])
def _book(pen: Pen) -> None:
    y = pen.between(-0.6, -0.4)
    for s in (-1, 1):
        pen.polygon([(0, y + 0.15), (s * 0.95, y), (s * 0.95, 0.6), (0, 0.75)], pen.main)
        pen.polygon([(0, y + 0.25), (s * 0.8, y + 0.12), (s * 0.8, 0.45), (0, 0.6)], pen.paper)
        for i in range(3):
            pen.line([(s * 0.15, -0.1 + 0.2 * i), (s * 0.65, -0.15 + 0.2 * i)], 0.05, pen.ink)


@kind(also=["letter", "mail"], of=["paper"])
def _envelope(pen: Pen) -> None:
    h = pen.between(0.55, 0.7)
    pen.box(-0.95, -h, 0.95, h, pen.main)
    pen.line([(-0.92, -h), (0, 0.15), (0.92, -h)], 0.09, pen.accent)
    if pen.chance(0.5):
        pen.dot(0, 0.12, 0.15, pen.trim)


@kind(also=["present"], of=["container"])
def _gift(pen: Pen) -> None:
    pen.box(-0.75, -0.25, 0.75, 0.9, pen.main)
    pen.box(-0.85, -0.5, 0.85, -0.2, pen.main)
    w = pen.between(0.1, 0.16)
    pen.box(-w, -0.5, w, 0.9, pen.accent)
    for s in (-1, 1):
        pen.ring(s * 0.25, -0.7, 0.17, 0.12, pen.accent)


@kind(of=["toy"])
def _ball(pen: Pen) -> None:
    pen.dot(0, 0, 0.9, pen.main)
    h = pen.between(0.15, 0.3)
    pen.polygon([*arc(0, -0.1, 0.9, h, 170, 10), *arc(0, 0.25, 0.85, h, 10, 170)], pen.accent)
    pen.dot(-0.35, -0.5, 0.12, pen.paper)


@kind(of=["toy"])
def _balloon(pen: Pen) -> None:
    pen.line([(0, 0.35), (0.12, 0.6), (-0.1, 0.8), (0.05, 1)], 0.05, pen.ink)
    pen.oval(0, -0.3, pen.between(0.5, 0.6), 0.68, pen.main)
    pen.polygon([(-0.12, 0.48), (0.12, 0.48), (0, 0.32)], pen.main)
    pen.oval(-0.2, -0.5, 0.1, 0.18, pen.paper)


@kind(of=["toy"])
def _kite(pen: Pen) -> None:
    w = pen.between(0.45, 0.6)
    pen.line([(0, 0.4), (0.25, 0.65), (0, 0.8), (0.2, 1)], 0.07, pen.trim)
    pen.polygon([(0, -1), (w, -0.35), (0, 0.45), (-w, -0.35)], pen.main)
    pen.polygon([(0, -1), (w, -0.35), (0, -0.35)], pen.accent)
    pen.polygon([(0, 0.45), (-w, -0.35), (0, -0.35)], pen.accent)


@kind(of=["toy", "game"])
def _dice(pen: Pen) -> None:
    pen.box(-0.8, -0.8, 0.8, 0.8, pen.main)
    r, face = pen.between(0.13, 0.19), pen.some(2, 5)
    corners = [(-0.45, -0.45), (0.45, 0.45), (0.45, -0.45), (-0.45, 0.45)]
    for x, y in [*corners[: face - face % 2], *([(0.0, 0.0)] if face % 2 else [])]:
        pen.dot(x, y, r, pen.accent)


@kind(of=["game"])
def _chessboard(pen: Pen) -> None:
    pen.box(-0.95, -0.95, 0.95, 0.95, pen.trim)
    cells = pen.some(4, 6)
    side = 1.7 / cells
    for i in range(cells):
        for j in range(cells):
            x, y = -0.85 + side * i, -0.85 + side * j
            pen.box(x, y, x + side, y + side, pen.main if (i + j) % 2 else pen.paper)


@kind(of=["instrument"])
def _guitar(pen: Pen) -> None:
    pen.line([(0, 0), (0, -0.95)], 0.13, pen.accent)
    pen.box(-0.13, -1, 0.13, -0.8, pen.trim)
    pen.dot(0, 0.55, pen.between(0.4, 0.46), pen.main)
    pen.dot(0, 0.05, 0.32, pen.main)
    pen.dot(0, 0.2, 0.14, pen.ink)


@kind(of=["instrument"])
def _drum(pen: Pen) -> None:
    y = pen.between(0.4, 0.6)
    pen.oval(0, y, 0.75, 0.25, pen.main)
    pen.box(-0.75, -0.35, 0.75, y, pen.main)
    pen.line([(-0.7, -0.2), (-0.35, y + 0.1), (0, -0.05), (0.35, y + 0.1), (0.7, -0.2)], 0.06, pen.trim)
    pen.oval(0, -0.35, 0.75, 0.25, pen.accent)
    for s in (-1, 1):
        pen.line([(s * 0.15, -0.4), (s * 0.7, -0.95)], 0.08, pen.ink)


@kind(of=["instrument"])
def _bell(pen: Pen) -> None:
    w = pen.between(0.65, 0.8)
    pen.dot(0, 0.7, 0.18, pen.accent)
    pen.polygon(mirrored([(0.2, -0.8), (0.42, -0.55), (0.48, 0.15), (w, 0.6)]), pen.main)
    pen.dot(0, -0.85, 0.14, pen.accent)


@kind(of=["award"])
def _trophy(pen: Pen) -> None:
    for s in (-1, 1):
        pen.ring(s * 0.5, -0.5, pen.between(0.2, 0.28), 0.1, pen.main)
    pen.polygon(mirrored([(0.55, -0.9), (0.5, -0.35), (0.12, 0.15)]), pen.main)
    pen.line([(0, 0.1), (0, 0.6)], 0.14, pen.main)
    pen.box(-0.42, 0.6, 0.42, 0.92, pen.accent)


@kind(of=["shape"])
def _heart(pen: Pen) -> None:
    tip = pen.between(0.75, 0.95)
    for s in (-1, 1):
        pen.dot(s * 0.43, -0.3, 0.46, pen.main)
    pen.polygon([(-0.84, -0.1), (0, -0.35), (0.84, -0.1), (0, tip)], pen.main)
