"""Sketches of things to wear, and of a few figures."""

from __future__ import annotations

from raycluster.demo.pen import Pen, arc, kind, mirrored


@kind(also=["tiara"], of=["jewelry"])
def _crown(pen: Pen) -> None:
    y = pen.between(-0.3, 0)
    pen.polygon([(-0.8, 0.7), (-0.95, -0.5), (-0.45, y), (0, -0.7), (0.45, y), (0.95, -0.5), (0.8, 0.7)], pen.main)
    pen.box(-0.8, 0.5, 0.8, 0.72, pen.accent)
    for x, top in ((-0.95, -0.55), (0, -0.75), (0.95, -0.55)):
        pen.dot(x, top, 0.11, pen.trim)


@kind(also=["diamond"], of=["jewelry"])
def _gem(pen: Pen) -> None:
    y = pen.between(-0.35, -0.15)
    pen.polygon([(-0.55, -0.7), (0.55, -0.7), (0.95, y), (0, 0.9), (-0.95, y)], pen.main)
    pen.polygon([(-0.35, y), (0.35, y), (0, 0.9)], pen.accent)
    pen.line([(-0.95, y), (0.95, y)], 0.06, pen.paper)


@kind(of=["jewelry"])
def _ring(pen: Pen) -> None:
    pen.ring(0, 0.3, pen.between(0.5, 0.6), 0.14, pen.main)
    pen.polygon([(-0.28, -0.85), (0.28, -0.85), (0.4, -0.6), (0, -0.2), (-0.4, -0.6)], pen.accent)


@kind(also=["cap"], of=["clothing"])
def _hat(pen: Pen) -> None:
    top = pen.between(0.35, 0.5)
    pen.oval(0, 0.5, 1, 0.2, pen.main)
    pen.polygon([(-top, -0.75), (top, -0.75), (0.55, 0.5), (-0.55, 0.5)], pen.main)
    pen.polygon([(-0.52, 0.15), (0.52, 0.15), (0.55, 0.42), (-0.55, 0.42)], pen.accent)


@kind(also=["boot"], of=["clothing"])
def _shoe(pen: Pen) -> None:
    h = pen.between(-0.7, -0.4)
    pen.polygon([(-0.75, h), (-0.15, h), (0, 0.05), (0.75, 0.2), (0.95, 0.55), (-0.8, 0.55)], pen.main)
    pen.box(-0.85, 0.5, 0.97, 0.7, pen.accent)
    for i in range(3):
        pen.line([(-0.2 + 0.17 * i, -0.15 + 0.12 * i), (0 + 0.17 * i, -0.25 + 0.12 * i)], 0.06, pen.paper)


@kind(also=["stocking"], of=["clothing"])
def _sock(pen: Pen) -> None:
    toe = pen.between(0.5, 0.7)
    pen.line([(-0.25, -0.6), (-0.25, 0.45), (toe, 0.65)], 0.55, pen.main)
    pen.box(-0.58, -0.98, 0.08, -0.65, pen.accent)
    pen.dot(toe, 0.65, 0.28, pen.accent)


@kind(also=["blouse"], of=["clothing"])
def _shirt(pen: Pen) -> None:
    x, y = pen.between(0.8, 1), pen.between(-0.3, 0)
    pen.polygon(mirrored([(0.22, -0.8), (0.5, -0.75), (x, y), (0.7, y + 0.2), (0.5, -0.15), (0.52, 0.85)]), pen.main)
    pen.polygon([(-0.22, -0.8), (0.22, -0.8), (0, -0.5)], pen.accent)
    pen.box(-0.5, 0.15, 0.52, 0.4, pen.accent)


@kind(of=["clothing"])
def _trousers(pen: Pen) -> None:
    leg = pen.between(0.5, 0.7)
    pen.polygon(mirrored([(0.45, -0.9), (leg, 0.95), (leg - 0.35, 0.95), (0, -0.2)]), pen.main)
    pen.box(-0.46, -0.95, 0.46, -0.75, pen.accent)


@kind(also=["gown"], of=["clothing"])
def _dress(pen: Pen) -> None:
    w = pen.between(0.6, 0.85)
    pen.polygon(mirrored([(0.15, -0.7), (0.35, -0.95), (0.35, -0.5), (0.22, -0.1), (w, 0.9)]), pen.main)
    pen.box(-0.25, -0.15, 0.25, 0.02, pen.accent)


@kind(also=["spectacles"], of=["clothing"])
def _glasses(pen: Pen) -> None:
    r = pen.between(0.3, 0.4)
    for s in (-1, 1):
        pen.dot(s * 0.5, 0, r, pen.accent)
        pen.ring(s * 0.5, 0, r, 0.12, pen.main)
        pen.line([(s * 0.85, -0.1), (s * 1, -0.4)], 0.1, pen.main)
    pen.line([(-0.15, -0.05), (0.15, -0.05)], 0.1, pen.main)


@kind(of=["figure"])
def _snowman(pen: Pen) -> None:
    pen.dot(0, 0.5, pen.between(0.42, 0.5), pen.main)
    pen.dot(0, -0.15, 0.34, pen.main)
    pen.dot(0, -0.62, 0.25, pen.main)
    pen.line([(-0.3, -0.82), (0.3, -0.82)], 0.08, pen.accent)
    pen.box(-0.18, -1.05, 0.18, -0.82, pen.accent)
    pen.polygon([(0, -0.66), (0.35, -0.58), (0, -0.54)], pen.trim)
    for y in (-0.25, 0, 0.4):
        pen.dot(0, y, 0.06, pen.ink)


@kind(also=["android"], of=["figure", "machine"])
def _robot(pen: Pen) -> None:
    pen.line([(0, -0.6), (0, -0.95)], 0.07, pen.trim)
    pen.box(-0.35, -0.75, 0.35, -0.2, pen.main)
    pen.box(-0.5, -0.12, 0.5, 0.6, pen.main)
    w = pen.between(0.7, 0.8)
    for s in (-1, 1):
        pen.dot(s * 0.16, -0.5, 0.09, pen.trim)
        pen.line([(s * 0.5, 0), (s * w, 0.45)], 0.16, pen.accent)
        pen.line([(s * 0.25, 0.6), (s * 0.25, 0.95)], 0.2, pen.accent)
    pen.box(-0.3, 0.08, 0.3, 0.4, pen.accent)


@kind(also=["phantom"], of=["figure"])
def _ghost(pen: Pen) -> None:
    w = pen.between(0.55, 0.7)
    hem = [(w, 0.9), (w / 2, 0.65), (0, 0.9), (-w / 2, 0.65), (-w, 0.9)]
    pen.polygon([*arc(0, -0.25, w, 0.7, 180, 360), *hem], pen.main)
    for s in (-1, 1):
        pen.oval(s * 0.23, -0.25, 0.11, 0.16, pen.ink)
    pen.oval(0, 0.15, 0.12, 0.15, pen.ink)


@kind(of=["figure"])
def _skull(pen: Pen) -> None:
    pen.dot(0, -0.2, 0.75, pen.main)
    jaw = pen.between(0.35, 0.45)
    pen.box(-jaw, 0.2, jaw, 0.9, pen.main)
    for s in (-1, 1):
        pen.dot(s * 0.3, -0.15, 0.2, pen.ink)
        pen.line([(s * 0.13, 0.6), (s * 0.13, 0.9)], 0.06, pen.ink)
    pen.polygon([(0, 0.1), (0.1, 0.3), (-0.1, 0.3)], pen.ink)
