"""Sketches of vehicles, buildings and what stands beside a road."""

from __future__ import annotations

import math

from raycluster.demo.pen import Pen, arc, kind, mirrored


def _wheels(pen: Pen, y: float, r: float, *xs: float) -> None:
    for x in xs:
        pen.dot(x, y, r, pen.ink)
        pen.dot(x, y, r * 0.45, pen.trim)


@kind(also=["automobile"], of=["vehicle"])
def _car(pen: Pen) -> None:
    roof = pen.between(-0.55, -0.35)
    pen.polygon([(-0.6, 0), (-0.35, roof), (0.35, roof), (0.65, 0)], pen.main)
    pen.polygon([(-0.4, -0.02), (-0.25, roof + 0.12), (0.25, roof + 0.12), (0.45, -0.02)], pen.accent)
    pen.box(-1, 0, 1, 0.4, pen.main)
    _wheels(pen, 0.42, pen.between(0.2, 0.27), -0.55, 0.55)


@kind(also=["lorry"], of=["vehicle"])
def _truck(pen: Pen) -> None:
    x = pen.between(0.25, 0.45)
    pen.box(-1, -0.65, x - 0.05, 0.4, pen.main)
    pen.polygon([(x, -0.3), (0.75, -0.3), (1, 0.05), (1, 0.4), (x, 0.4)], pen.accent)
    pen.polygon([(x + 0.12, -0.2), (0.72, -0.2), (0.85, 0.05), (x + 0.12, 0.05)], pen.paper)
    _wheels(pen, 0.45, 0.22, -0.6, 0.6)


@kind(also=["coach"], of=["vehicle"])
def _bus(pen: Pen) -> None:
    top = pen.between(-0.7, -0.5)
    pen.box(-1, top, 1, 0.45, pen.main)
    for i in range(5):
        pen.box(-0.9 + 0.37 * i, top + 0.15, -0.63 + 0.37 * i, top + 0.5, pen.accent)
    _wheels(pen, 0.48, 0.2, -0.6, 0.6)


@kind(also=["locomotive"], of=["vehicle"])
def _train(pen: Pen) -> None:
    pen.box(-0.95, -0.15, 0.4, 0.4, pen.main)
    pen.box(0.2, -0.75, 0.9, 0.4, pen.main)
    pen.box(0.35, -0.55, 0.75, -0.2, pen.accent)
    pen.box(-0.75, -pen.between(0.6, 0.8), -0.5, -0.1, pen.accent)
    _wheels(pen, 0.5, 0.2, -0.7, -0.2, 0.3, 0.75)


@kind(also=["bike"], of=["vehicle"])
def _bicycle(pen: Pen) -> None:
    r = pen.between(0.36, 0.42)
    for x in (-0.55, 0.55):
        pen.ring(x, 0.35, r, 0.09, pen.accent)
    pen.line([(-0.55, 0.35), (-0.2, -0.3), (0.4, -0.3), (0, 0.35), (-0.55, 0.35)], 0.09, pen.main)
    pen.line([(0, 0.35), (-0.25, -0.45)], 0.09, pen.main)
    pen.line([(0.55, 0.35), (0.35, -0.6), (0.6, -0.65)], 0.09, pen.main)
    pen.line([(-0.4, -0.48), (-0.1, -0.48)], 0.12, pen.ink)


@kind(also=["airplane", "jet"], of=["vehicle", "aircraft"])
def _plane(pen: Pen) -> None:
    sweep = pen.between(0.2, 0.5)
    for s in (-1, 1):
        pen.polygon([(0.2, 0), (sweep, s * 0.95), (sweep - 0.3, s * 0.95), (-0.3, 0)], pen.accent)
        pen.polygon([(-0.6, 0), (-0.85, s * 0.45), (-1, s * 0.45), (-0.9, 0)], pen.accent)
    pen.oval(0, 0, 0.98, 0.18, pen.main)
    pen.dot(0.75, 0, 0.08, pen.trim)


@kind(also=["chopper"], of=["vehicle", "aircraft"])
def _helicopter(pen: Pen) -> None:
    pen.line([(0, 0), (0.95, -0.15)], 0.15, pen.main)
    pen.line([(0.95, -0.4), (0.95, 0.1)], 0.1, pen.trim)
    pen.oval(-0.3, 0.1, 0.55, pen.between(0.35, 0.45), pen.main)
    pen.oval(-0.5, 0, 0.25, 0.2, pen.accent)
    pen.line([(-0.3, -0.2), (-0.3, -0.55)], 0.1, pen.ink)
    pen.line([(-1, -0.58), (0.45, -0.58)], 0.1, pen.ink)
    pen.line([(-0.8, 0.7), (0.2, 0.7)], 0.1, pen.trim)


@kind(also=["spaceship"], of=["vehicle", "aircraft"])
def _rocket(pen: Pen) -> None:
    w = pen.between(0.25, 0.35)
    pen.polygon([(-0.2, 0.5), (0.2, 0.5), (0, 1)], pen.trim)
    for s in (-1, 1):
        pen.polygon([(s * w * 0.8, 0.05), (s * 0.65, 0.65), (s * w * 0.7, 0.5)], pen.accent)
    pen.polygon(mirrored([(0, -1), (w * 0.7, -0.6), (w, -0.1), (w * 0.7, 0.55)]), pen.main)
    pen.dot(0, -0.25, 0.15, pen.accent)


@kind(also=["ship", "sailboat"], of=["vehicle"])
def _boat(pen: Pen) -> None:
    pen.line([(0, 0.3), (0, -0.95)], 0.08, pen.ink)
    pen.polygon([(0.08, -0.9), (pen.between(0.6, 0.85), 0.2), (0.08, 0.2)], pen.accent)
    pen.polygon([(-0.08, -0.7), (-0.55, 0.2), (-0.08, 0.2)], pen.trim)
    pen.polygon([(-0.9, 0.3), (0.9, 0.3), (0.55, 0.8), (-0.55, 0.8)], pen.main)


@kind(of=["vehicle"])
def _submarine(pen: Pen) -> None:
    pen.line([(0, -0.2), (0, -0.85), (0.25, -0.85)], 0.1, pen.accent)
    pen.box(-0.25, -0.5, 0.3, 0, pen.main)
    pen.polygon([(-0.7, 0.2), (-1, -0.15), (-1, 0.55)], pen.accent)
    pen.oval(0, 0.2, 0.85, pen.between(0.35, 0.45), pen.main)
    for x in (-0.35, 0, 0.35):
        pen.dot(x, 0.15, 0.11, pen.trim)


@kind(also=["blimp"], of=["vehicle", "aircraft"])
def _hot_air_balloon(pen: Pen) -> None:
    r = pen.between(0.6, 0.7)
    for x in (-0.3, 0.3):
        pen.line([(x * 1.8, -0.1), (x * 0.6, 0.65)], 0.05, pen.ink)
    pen.polygon([*arc(0, -0.35, r, 0.65, 160, 380), (0.15, 0.42), (-0.15, 0.42)], pen.main)
    pen.oval(0, -0.3, 0.22, 0.68, pen.accent)
    pen.box(-0.2, 0.62, 0.2, 0.95, pen.trim)


@kind(also=["cottage", "home"], of=["building"])
def _house(pen: Pen) -> None:
    w = pen.between(0.6, 0.8)
    if pen.chance(0.5):
        pen.box(0.3, -0.85, 0.5, -0.3, pen.trim)
    pen.box(-w, -0.1, w, 0.9, pen.main)
    pen.polygon([(-w - 0.15, -0.08), (0, -pen.between(0.7, 1)), (w + 0.15, -0.08)], pen.accent)
    pen.box(-0.15, 0.35, 0.15, 0.9, pen.trim)
    for s in (-1, 1):
        pen.box(s * w * 0.6 - 0.12, 0.1, s * w * 0.6 + 0.12, 0.35, pen.paper)


@kind(also=["fortress"], of=["building"])
def _castle(pen: Pen) -> None:
    h = pen.between(-0.7, -0.5)
    pen.box(-0.7, -0.15, 0.7, 0.9, pen.main)
    for i in range(4):
        pen.box(-0.4 + 0.22 * i, -0.32, -0.28 + 0.22 * i, -0.1, pen.main)
    for s in (-1, 1):
        pen.box(s * 0.7 - 0.25, h, s * 0.7 + 0.25, 0.9, pen.main)
        pen.polygon([(s * 0.7 - 0.32, h), (s * 0.7, h - 0.35), (s * 0.7 + 0.32, h)], pen.accent)
    pen.polygon([*arc(0, 0.5, 0.2, 0.25, 180, 360), (0.2, 0.9), (-0.2, 0.9)], pen.ink)


@kind(also=["skyscraper"], of=["building"])
def _tower(pen: Pen) -> None:
    w = pen.between(0.35, 0.5)
    pen.box(-w, -0.8, w, 1, pen.main)
    pen.line([(0, -0.8), (0, -1)], 0.08, pen.trim)
    for row in range(5):
        for x in (-0.55, 0, 0.55):
            pen.box(x * w - 0.08, -0.65 + 0.32 * row, x * w + 0.08, -0.48 + 0.32 * row, pen.accent)


@kind(also=["beacon"], of=["building"])
def _lighthouse(pen: Pen) -> None:
    w = pen.between(0.2, 0.28)
    for i in range(4):
        y, k = -0.5 + 0.37 * i, w + 0.05 * i
        pen.polygon([(-k, y), (k, y), (k + 0.05, y + 0.38), (-k - 0.05, y + 0.38)], pen.accent if i % 2 else pen.main)
    pen.box(-w * 0.8, -0.8, w * 0.8, -0.5, pen.trim)
    pen.polygon([(-w - 0.1, -0.78), (0, -1), (w + 0.1, -0.78)], pen.main)


@kind(of=["building"])
def _windmill(pen: Pen) -> None:
    pen.polygon([(-0.25, -0.4), (0.25, -0.4), (0.42, 1), (-0.42, 1)], pen.main)
    start = pen.between(0, math.pi / 2)
    for i in range(4):
        a = start + math.pi * i / 2
        c, s = math.cos(a), math.sin(a)
        tip = (0.8 * c, -0.3 + 0.7 * s)
        pen.polygon([(0, -0.3), tip, (tip[0] - 0.22 * s, tip[1] + 0.22 * c), (-0.1 * s, -0.3 + 0.1 * c)], pen.accent)
    pen.dot(0, -0.3, 0.1, pen.ink)


@kind(of=["building"])
def _bridge(pen: Pen) -> None:
    pen.box(-1, -0.2, 1, 0.05, pen.main)
    r = pen.between(0.3, 0.36)
    for x in (-0.95, -0.3, 0.3, 0.95):
        pen.box(x - 0.08, 0, x + 0.08, 0.7, pen.main)
    for x in (-0.62, 0, 0.62):
        pen.line(arc(x, 0.35, r, r, 180, 360), 0.12, pen.main)
    pen.line([(-1, -0.42), (1, -0.42)], 0.07, pen.accent)
    for i in range(6):
        pen.line([(-0.95 + 0.38 * i, -0.42), (-0.95 + 0.38 * i, -0.2)], 0.06, pen.accent)


@kind(also=["teepee"], of=["building"])
def _tent(pen: Pen) -> None:
    w = pen.between(0.7, 1)
    pen.polygon([(-w, 0.75), (0, -0.75), (w, 0.75)], pen.main)
    pen.polygon([(-0.3, 0.75), (0, -0.3), (0.3, 0.75)], pen.accent)
    for s in (-1, 1):
        pen.line([(0, -0.75), (s * 0.13, -0.95)], 0.07, pen.trim)


@kind(also=["signal"], of=["sign"])
def _traffic_light(pen: Pen) -> None:
    pen.line([(0, 0.5), (0, 1)], 0.14, pen.ink)
    w = pen.between(0.28, 0.38)
    pen.box(-w, -1, w, 0.6, pen.main)
    for y, color in ((-0.7, (225, 40, 35)), (-0.2, (245, 200, 40)), (0.3, (40, 180, 70))):
        pen.dot(0, y, 0.2, color)


@kind(also=["banner"], of=["sign"])
def _flag(pen: Pen) -> None:
    wave = pen.between(0.05, 0.15)
    pen.line([(-0.7, -0.95), (-0.7, 1)], 0.12, pen.trim)
    pen.polygon([(-0.65, -0.9), (0, -0.9 + wave), (0.85, -0.9), (0.85, 0.1), (0, 0.1 + wave), (-0.65, 0.1)], pen.main)
    pen.polygon(
        [(-0.65, -0.55), (0, -0.55 + wave), (0.85, -0.55), (0.85, -0.2), (0, -0.2 + wave), (-0.65, -0.2)], pen.accent
    )


@kind(also=["pointer"], of=["sign", "shape"])
def _arrow(pen: Pen) -> None:
    h, w = pen.between(0.45, 0.7), pen.between(0.15, 0.25)
    pen.polygon([(-1, -w), (0.2, -w), (0.2, -h), (1, 0), (0.2, h), (0.2, w), (-1, w)], pen.main)


@kind(of=["tool"])
def _anchor(pen: Pen) -> None:
    pen.ring(0, -0.75, 0.16, 0.1, pen.main)
    pen.line([(0, -0.6), (0, 0.85)], 0.15, pen.main)
    pen.line([(-0.4, -0.35), (0.4, -0.35)], 0.13, pen.main)
    r = pen.between(0.6, 0.75)
    pen.line(arc(0, 0.15, r, 0.7, 10, 170), 0.15, pen.main)
    for s in (-1, 1):
        pen.polygon([(s * r * 1.3, 0.35), (s * r, -0.05), (s * r * 0.6, 0.35)], pen.main)


@kind(also=["tire"], of=["machine"])
def _wheel(pen: Pen) -> None:
    pen.ring(0, 0, 0.82, pen.between(0.16, 0.26), pen.main)
    for i in range(3):
        a = math.pi * i / 3
        x, y = 0.75 * math.cos(a), 0.75 * math.sin(a)
        pen.line([(-x, -y), (x, y)], 0.1, pen.accent)
    pen.dot(0, 0, 0.18, pen.trim)


@kind(also=["cog"], of=["machine"])
def _gear(pen: Pen) -> None:
    for i in range(8):
        a = math.pi * i / 4
        pen.line([(0, 0), (0.85 * math.cos(a), 0.85 * math.sin(a))], 0.26, pen.main)
    pen.ring(0, 0, 0.5, 0.4, pen.main)
    pen.dot(0, 0, pen.between(0.22, 0.32), pen.accent)
