"""Sketches of things to eat and drink, and what they are served in."""

from __future__ import annotations

import math

from raycluster.demo.pen import Pen, arc, kind, mirrored


@kind(of=["food", "fruit"])
def _apple(pen: Pen) -> None:
    w = pen.between(0.42, 0.5)
    for s in (-1, 1):
        pen.oval(s * 0.32, 0.15, w, 0.68, pen.main)
    pen.line([(0, -0.4), (0.1, -0.85)], 0.09, pen.ink)
    pen.polygon([(0.1, -0.65), (0.35, -0.95), (0.6, -0.75), (0.35, -0.6)], pen.accent)


@kind(of=["food", "fruit"])
def _pear(pen: Pen) -> None:
    pen.dot(0, 0.4, 0.58, pen.main)
    pen.polygon(mirrored([(0.2, -0.65), (0.32, -0.3), (0.56, 0.25)]), pen.main)
    pen.dot(0, -0.45, pen.between(0.26, 0.34), pen.main)
    pen.line([(0, -0.65), (0.1, -1)], 0.09, pen.ink)


@kind(of=["food", "fruit"])
def _banana(pen: Pen) -> None:
    fat = pen.between(0.35, 0.5)
    pen.polygon([*arc(0, -0.5, 0.95, 1.1, 5, 175), *arc(0, -0.5, 0.9, 1.1 - fat, 170, 10)], pen.main)
    pen.dot(0.92, -0.45, 0.1, pen.ink)
    pen.dot(-0.92, -0.45, 0.07, pen.ink)


@kind(also=["berry"], of=["food", "fruit"])
def _cherry(pen: Pen) -> None:
    x, r = pen.between(0.4, 0.55), pen.between(0.32, 0.4)
    for s in (-1, 1):
        pen.line([(s * x, 0.4), (0.1, -0.9)], 0.07, pen.accent)
        pen.dot(s * x, 0.55, r, pen.main)
        pen.dot(s * x - 0.1, 0.45, 0.07, pen.paper)
    pen.oval(0.4, -0.8, 0.3, 0.13, pen.accent)


@kind(of=["food", "fruit"])
def _grapes(pen: Pen) -> None:
    r = pen.between(0.2, 0.25)
    pen.line([(0, -0.5), (0, -1)], 0.09, pen.accent)
    for row, y in enumerate((-0.4, -0.05, 0.3, 0.65)):
        for i in range(4 - row):
            pen.dot((i - (3 - row) / 2) * 0.38, y, r, pen.main)


@kind(of=["food", "fruit"])
def _watermelon(pen: Pen) -> None:
    pen.polygon(arc(0, -0.35, 1, 1, 0, 180), pen.accent)
    pen.polygon(arc(0, -0.35, 0.8, 0.8, 0, 180), pen.main)
    for i in range(pen.some(4, 6)):
        pen.oval(-0.5 + 0.22 * i, -0.1 + 0.2 * (i % 2), 0.05, 0.09, pen.ink)


@kind(of=["food", "vegetable"])
def _carrot(pen: Pen) -> None:
    w = pen.between(0.25, 0.4)
    for x in (-0.3, 0, 0.3):
        pen.line([(0, -0.4), (x, -0.95)], 0.13, pen.accent)
    pen.polygon([(-w, -0.4), (0, -0.52), (w, -0.4), (0.05, 1), (-0.05, 1)], pen.main)
    for y in (-0.15, 0.15, 0.4):
        pen.line([(-w * 0.5, y), (0, y + 0.03)], 0.05, pen.trim)


@kind(also=["sundae"], of=["food", "dessert"])
def _ice_cream(pen: Pen) -> None:
    pen.polygon([(-0.48, -0.1), (0.48, -0.1), (0, 1)], pen.accent)
    pen.dot(0, -0.25, 0.5, pen.main)
    if pen.chance(0.6):
        pen.dot(0, -0.65, 0.35, pen.trim)


@kind(of=["food"])
def _pizza(pen: Pen) -> None:
    pen.polygon([(-0.85, -0.65), (0.85, -0.65), (0, 1)], pen.main)
    pen.line([(-0.8, -0.7), (0.8, -0.7)], 0.26, pen.accent)
    for x, y in ((-0.35, -0.3), (0.3, -0.25), (0, 0.3)):
        pen.dot(x, y, pen.between(0.13, 0.18), pen.trim)


@kind(also=["pie"], of=["food", "dessert"])
def _cake(pen: Pen) -> None:
    pen.box(-0.8, 0, 0.8, 0.85, pen.main)
    pen.box(-0.8, pen.between(0.35, 0.45), 0.8, 0.55, pen.accent)
    pen.line([(-0.75, 0), (0.75, 0)], 0.2, pen.trim)
    for i in range(3):
        x = -0.45 + 0.45 * i
        pen.line([(x, -0.15), (x, -0.55)], 0.1, pen.accent)
        pen.oval(x, -0.75, 0.08, 0.14, pen.trim)


@kind(also=["muffin"], of=["food", "dessert"])
def _cupcake(pen: Pen) -> None:
    foot = pen.between(0.3, 0.5)
    pen.polygon([(-0.6, 0.15), (0.6, 0.15), (foot, 0.95), (-foot, 0.95)], pen.accent)
    for y, w in ((0.05, 0.55), (-0.25, 0.4), (-0.5, 0.22)):
        pen.line([(-w, y), (w, y)], 0.36, pen.main)
    pen.dot(0, -0.8, 0.15, pen.trim)


@kind(also=["bagel"], of=["food", "dessert"])
def _donut(pen: Pen) -> None:
    pen.ring(0, 0, 0.65, pen.between(0.5, 0.62), pen.main)
    for i in range(9):
        a = 2 * math.pi * i / 9
        x, y = 0.65 * math.cos(a), 0.65 * math.sin(a)
        pen.line([(x, y), (x + 0.1, y + 0.08 * (-1) ** i)], 0.08, pen.accent)


@kind(of=["food"])
def _egg(pen: Pen) -> None:
    lobes = [(0.9 * math.cos(a) * pen.between(0.8, 1), 0.8 * math.sin(a) * pen.between(0.8, 1)) for a in range(7)]
    pen.polygon(sorted(lobes, key=lambda p: math.atan2(p[1], p[0])), pen.paper)
    pen.oval(0, 0, 0.75, 0.65, pen.paper)
    pen.dot(0, 0, pen.between(0.3, 0.38), pen.main)


@kind(also=["burger"], of=["food"])
def _hamburger(pen: Pen) -> None:
    pen.polygon(arc(0, -0.1, 0.85, pen.between(0.6, 0.85), 180, 360), pen.main)
    pen.line([(-0.8, 0.05), (0.8, 0.05)], 0.18, pen.accent)
    pen.line([(-0.75, 0.25), (0.75, 0.25)], 0.22, pen.ink)
    pen.line([(-0.7, 0.58), (0.7, 0.58)], 0.35, pen.main)


@kind(also=["lollipop"], of=["food", "dessert"])
def _candy(pen: Pen) -> None:
    pen.line([(0, 0), (0, 1)], 0.1, pen.paper)
    r = pen.between(0.5, 0.62)
    pen.dot(0, -0.35, r, pen.main)
    spiral = [(0.5 * t * math.cos(11 * t), -0.35 + 0.5 * t * math.sin(11 * t)) for t in (i / 22 for i in range(23))]
    pen.line(spiral, 0.1, pen.accent)


@kind(also=["mug"], of=["dish"])
def _cup(pen: Pen) -> None:
    pen.ring(0.6, 0.05, pen.between(0.25, 0.35), 0.14, pen.main)
    low = pen.between(0.4, 0.6)
    pen.polygon([(-0.65, -0.6), (0.6, -0.6), (low, 0.75), (-low, 0.75)], pen.main)
    pen.oval(-0.02, -0.6, 0.62, 0.15, pen.accent)


@kind(also=["kettle"], of=["dish"])
def _teapot(pen: Pen) -> None:
    pen.ring(0.65, 0.1, 0.28, 0.12, pen.accent)
    pen.polygon([(-0.4, 0.4), (-1, -0.35), (-0.8, -0.4), (-0.4, 0)], pen.main)
    pen.oval(0, 0.2, 0.62, pen.between(0.5, 0.62), pen.main)
    pen.oval(0, -0.32, 0.35, 0.12, pen.accent)
    pen.dot(0, -0.5, 0.12, pen.trim)


@kind(also=["flask"], of=["container"])
def _bottle(pen: Pen) -> None:
    w, neck = pen.between(0.3, 0.42), pen.between(0.12, 0.17)
    pen.polygon(mirrored([(neck, -0.8), (neck, -0.4), (w, -0.05), (w, 1)]), pen.main)
    pen.box(-neck - 0.04, -1, neck + 0.04, -0.78, pen.trim)
    pen.box(-w, 0.2, w, 0.65, pen.accent)


@kind(also=["goblet"], of=["dish"])
def _wineglass(pen: Pen) -> None:
    w = pen.between(0.45, 0.6)
    pen.polygon(arc(0, -0.85, w, 0.95, 0, 180), pen.paper)
    pen.polygon(arc(0, -0.5, w * 0.88, 0.58, 0, 180), pen.main)
    pen.line([(0, 0), (0, 0.9)], 0.1, pen.accent)
    pen.line([(-0.4, 0.93), (0.4, 0.93)], 0.12, pen.accent)
