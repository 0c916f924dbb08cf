"""Sketches of animals, plants, weather and landscapes."""

from __future__ import annotations

import math

from raycluster.demo.pen import Pen, arc, kind, mirrored


@kind(of=["animal"])
def _fish(pen: Pen) -> None:
    h = pen.between(0.35, 0.6)
    pen.polygon([(0.45, 0), (1, -h), (0.85, 0), (1, h)], pen.accent)
    pen.polygon([(-0.3, -h * 0.8), (0.1, -h - 0.25), (0.3, -h * 0.5)], pen.accent)
    pen.oval(-0.15, 0, 0.75, h, pen.main)
    pen.dot(-0.55, -0.1, 0.1, pen.paper)
    pen.dot(-0.57, -0.1, 0.05, pen.ink)


@kind(also=["sparrow"], of=["animal"])
def _bird(pen: Pen) -> None:
    pen.polygon([(0.4, 0), (1, -pen.between(0, 0.4)), (0.9, 0.25)], pen.accent)
    pen.oval(0, 0.1, 0.6, pen.between(0.35, 0.5), pen.main)
    pen.dot(-0.5, -0.35, 0.32, pen.main)
    pen.polygon([(-0.75, -0.45), (-1, -0.3), (-0.75, -0.22)], pen.trim)
    pen.polygon([(-0.2, 0), (0.5, pen.between(-0.3, 0.1)), (0.2, 0.35)], pen.accent)
    pen.dot(-0.58, -0.4, 0.07, pen.ink)
    for x in (-0.1, 0.15):
        pen.line([(x, 0.5), (x, 0.95)], 0.07, pen.trim)


@kind(of=["animal", "bird"])
def _owl(pen: Pen) -> None:
    pen.oval(0, 0.15, pen.between(0.55, 0.7), 0.85, pen.main)
    for s in (-1, 1):
        pen.polygon([(s * 0.6, -1), (s * 0.1, -0.6), (s * 0.6, -0.3)], pen.main)
        pen.dot(s * 0.28, -0.3, 0.27, pen.paper)
        pen.dot(s * 0.28, -0.3, pen.between(0.1, 0.17), pen.ink)
    pen.oval(0, 0.5, 0.35, 0.4, pen.accent)
    pen.polygon([(-0.1, -0.15), (0.1, -0.15), (0, 0.1)], pen.trim)


@kind(also=["kitten"], of=["animal", "pet"])
def _cat(pen: Pen) -> None:
    ear = pen.between(0.85, 1.05)
    for s in (-1, 1):
        pen.polygon([(s * 0.7, -ear), (s * 0.1, -0.5), (s * 0.75, 0)], pen.main)
    pen.oval(0, 0.1, 0.78, pen.between(0.6, 0.75), pen.main)
    for s in (-1, 1):
        pen.oval(s * 0.3, -0.05, 0.14, 0.17, pen.paper)
        pen.oval(s * 0.3, -0.05, 0.05, 0.15, pen.ink)
        for y in (0.25, 0.4):
            pen.line([(s * 0.25, 0.33), (s * 0.95, y)], 0.03, pen.ink)
    pen.polygon([(-0.12, 0.22), (0.12, 0.22), (0, 0.37)], pen.accent)


@kind(also=["bunny"], of=["animal", "pet"])
def _rabbit(pen: Pen) -> None:
    tall = pen.between(0.4, 0.5)
    for s in (-1, 1):
        pen.oval(s * 0.25, -0.5, 0.17, tall, pen.main)
        pen.oval(s * 0.25, -0.5, 0.08, tall - 0.12, pen.accent)
    pen.oval(0, 0.35, 0.55, 0.55, pen.main)
    for s in (-1, 1):
        pen.dot(s * 0.2, 0.2, 0.08, pen.ink)
    pen.box(-0.09, 0.55, 0.09, 0.75, pen.paper)
    pen.dot(0, 0.45, 0.08, pen.accent)


@kind(also=["moth"], of=["animal", "insect"])
def _butterfly(pen: Pen) -> None:
    w = pen.between(0.4, 0.5)
    for s in (-1, 1):
        pen.oval(s * 0.48, -0.4, w, 0.45, pen.main)
        pen.oval(s * 0.4, 0.45, w * 0.8, 0.38, pen.accent)
        pen.dot(s * 0.5, -0.4, 0.16, pen.trim)
        pen.line([(0, -0.5), (s * 0.25, -0.95)], 0.05, pen.ink)
    pen.oval(0, 0, 0.1, 0.65, pen.ink)


@kind(of=["animal"])
def _snail(pen: Pen) -> None:
    pen.line([(-0.9, 0.6), (0.85, 0.6)], 0.3, pen.accent)
    pen.line([(-0.75, 0.5), (-0.75, -0.1)], 0.2, pen.accent)
    for x in (-0.95, -0.6):
        pen.line([(-0.75, -0.1), (x, -0.5)], 0.06, pen.accent)
    pen.dot(0.2, 0, pen.between(0.5, 0.62), pen.main)
    turns = [(0.2 + 0.45 * t * math.cos(9 * t), 0.45 * t * math.sin(9 * t)) for t in (i / 20 for i in range(21))]
    pen.line(turns, 0.09, pen.trim)


@kind(also=["beetle"], of=["animal", "insect"])
def _ladybug(pen: Pen) -> None:
    pen.dot(0, -0.65, 0.32, pen.ink)
    pen.oval(0, 0.1, 0.75, 0.8, pen.main)
    pen.line([(0, -0.65), (0, 0.88)], 0.06, pen.ink)
    r = pen.between(0.11, 0.18)
    for x, y in ((0.35, -0.25), (0.4, 0.25), (0.22, 0.6)):
        pen.dot(x, y, r, pen.ink)
        pen.dot(-x, y, r, pen.ink)


@kind(of=["animal"])
def _spider(pen: Pen) -> None:
    knee = pen.between(0.5, 0.7)
    for s in (-1, 1):
        for y in (-0.5, -0.15, 0.2, 0.55):
            pen.line([(0, 0), (s * knee, y - 0.25), (s * 0.98, y + 0.2)], 0.07, pen.main)
    pen.oval(0, 0.2, 0.35, 0.42, pen.main)
    pen.dot(0, -0.3, 0.22, pen.accent)


@kind(also=["serpent"], of=["animal", "reptile"])
def _snake(pen: Pen) -> None:
    h, waves = pen.between(0.25, 0.4), pen.between(7, 9)
    body = [(x, h * math.sin(waves * x)) for x in (-0.8 + 0.06 * i for i in range(28))]
    pen.line(body, 0.24, pen.main)
    x, y = body[0]
    pen.oval(x - 0.05, y, 0.22, 0.17, pen.main)
    pen.dot(x - 0.1, y - 0.06, 0.05, pen.paper)
    pen.line([(x - 0.25, y), (x - 0.42, y + 0.04)], 0.04, pen.accent)


@kind(also=["tortoise"], of=["animal", "reptile"])
def _turtle(pen: Pen) -> None:
    for x in (-0.4, 0.4):
        pen.line([(x, 0.3), (x * 1.2, 0.65)], 0.24, pen.accent)
    pen.oval(-0.82, 0.08, 0.2, 0.17, pen.accent)
    pen.line([(-0.7, 0.15), (0.8, 0.4)], 0.14, pen.accent)
    h = pen.between(0.6, 0.85)
    pen.polygon(arc(0, 0.35, 0.7, h, 180, 360), pen.main)
    for x in (-0.3, 0.05, 0.35):
        pen.dot(x, 0.1 - 0.25 * (x < 0.2) * (x > -0.2), 0.11, pen.trim)
    pen.dot(-0.88, 0.03, 0.04, pen.ink)


@kind(also=["oak"], of=["plant"])
def _tree(pen: Pen) -> None:
    pen.box(-0.13, 0.1, 0.13, 1, pen.accent)
    r = pen.between(0.38, 0.5)
    for x, y in ((-0.4, -0.15), (0.4, -0.15), (0, -0.5), (0, -0.05)):
        pen.dot(x, y, r, pen.main)


@kind(also=["pine", "spruce"], of=["plant", "tree"])
def _fir(pen: Pen) -> None:
    pen.box(-0.1, 0.6, 0.1, 1, pen.accent)
    w = pen.between(0.5, 0.75)
    for i in range(3):
        top = -1 + 0.45 * i
        pen.polygon([(0, top), (w * (0.6 + 0.2 * i), top + 0.75), (-w * (0.6 + 0.2 * i), top + 0.75)], pen.main)


@kind(of=["plant", "tree"])
def _palm(pen: Pen) -> None:
    lean = pen.between(-0.3, 0.3)
    pen.line([(lean, 1), (lean / 3, 0.2), (0, -0.4)], 0.16, pen.accent)
    for angle in (-200, -160, -110, -70, -20, 20):
        x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        pen.polygon([(0, -0.4), (0.5 * x - 0.1 * y, -0.55 + 0.4 * y), (0.95 * x, -0.2 + 0.6 * y)], pen.main)
        pen.polygon([(0, -0.4), (0.5 * x, -0.35 + 0.4 * y), (0.95 * x, -0.2 + 0.6 * y)], pen.main)


@kind(also=["blossom", "daisy"], of=["plant"])
def _flower(pen: Pen) -> None:
    pen.line([(0, -0.2), (0, 1)], 0.1, pen.trim)
    pen.oval(0.25, 0.65, 0.24, 0.1, pen.trim)
    petals, r = pen.some(5, 8), pen.between(0.2, 0.26)
    for i in range(petals):
        a = 2 * math.pi * i / petals
        pen.dot(0.42 * math.cos(a), -0.35 + 0.42 * math.sin(a), r, pen.main)
    pen.dot(0, -0.35, 0.24, pen.accent)


@kind(of=["plant", "flower"])
def _tulip(pen: Pen) -> None:
    pen.line([(0, 0), (0, 1)], 0.1, pen.trim)
    for s in (-1, 1):
        pen.polygon([(0, 0.95), (s * 0.45, 0.2), (s * 0.2, 0.8)], pen.trim)
    w = pen.between(0.4, 0.55)
    pen.polygon(
        [(-w, -0.95), (-w / 2, -0.6), (0, -1), (w / 2, -0.6), (w, -0.95), (w, -0.3), (0, 0.1), (-w, -0.3)], pen.main
    )


@kind(also=["saguaro"], of=["plant"])
def _cactus(pen: Pen) -> None:
    pen.line([(0, 0.7), (0, -0.75)], 0.42, pen.main)
    y = pen.between(-0.3, 0.2)
    pen.line([(0, y + 0.2), (0.6, y + 0.2), (0.6, y - 0.35)], 0.25, pen.main)
    pen.line([(0, 0.25), (-0.6, 0.25), (-0.6, -0.25)], 0.25, pen.main)
    pen.polygon([(-0.45, 0.6), (0.45, 0.6), (0.32, 1), (-0.32, 1)], pen.accent)


@kind(also=["toadstool"], of=["fungus", "food"])
def _mushroom(pen: Pen) -> None:
    pen.polygon([(-0.2, 0), (0.2, 0), (pen.between(0.2, 0.35), 0.95), (-0.28, 0.95)], pen.accent)
    pen.polygon(arc(0, 0.15, 0.9, pen.between(0.8, 1.05), 180, 360), pen.main)
    for x, y in ((-0.45, -0.15), (0.1, -0.5), (0.5, -0.1)):
        pen.dot(x, y, 0.13, pen.trim)


@kind(also=["foliage"], of=["plant"])
def _leaf(pen: Pen) -> None:
    w = pen.between(0.4, 0.6)
    pen.polygon(mirrored([(0, -1), (w * 0.7, -0.5), (w, 0), (w * 0.6, 0.45), (0, 0.7)]), pen.main)
    pen.line([(0, -0.7), (0, 1)], 0.07, pen.accent)
    for y in (-0.3, 0, 0.3):
        for s in (-1, 1):
            pen.line([(0, y + 0.15), (s * w * 0.6, y - 0.15)], 0.05, pen.accent)


@kind(also=["sunshine"], of=["sky"])
def _sun(pen: Pen) -> None:
    pen.star(0, 0, 1, 0.55, pen.some(10, 14), pen.accent)
    pen.dot(0, 0, pen.between(0.5, 0.62), pen.main)


@kind(also=["crescent"], of=["sky"])
def _moon(pen: Pen) -> None:
    inner = pen.between(0.45, 0.8)
    pen.polygon([*arc(-0.2, 0, 0.95, 0.95, -75, -285), *arc(0.05, 0, inner * 0.75, 0.9, -265, -95)], pen.main)


@kind(of=["shape"])
def _star(pen: Pen) -> None:
    pen.star(0, 0, 1, pen.between(0.36, 0.5), 5, pen.main)


@kind(of=["sky", "weather"])
def _cloud(pen: Pen) -> None:
    pen.line([(-0.6, 0.3), (0.6, 0.3)], 0.6, pen.main)
    pen.dot(-0.3, 0, pen.between(0.35, 0.48), pen.main)
    pen.dot(0.3, -0.05, pen.between(0.35, 0.48), pen.main)


@kind(also=["thunderbolt"], of=["sky", "weather"])
def _lightning(pen: Pen) -> None:
    x = pen.between(0.1, 0.3)
    pen.polygon([(0.3, -1), (-0.5, 0.1), (-0.05, 0.1), (-x, 1), (0.55, -0.2), (0.1, -0.2), (0.6, -1)], pen.main)


@kind(also=["raindrop"], of=["water", "weather"])
def _drop(pen: Pen) -> None:
    r = pen.between(0.5, 0.6)
    pen.polygon([(0, -1), *arc(0, 0.4, r, r, -25, 205)], pen.main)
    pen.oval(-0.2, 0.45, 0.1, 0.2, pen.paper)


@kind(of=["weather"])
def _snowflake(pen: Pen) -> None:
    twig = pen.between(0.2, 0.35)
    for i in range(6):
        a = math.pi * i / 3
        c, s = math.cos(a), math.sin(a)
        pen.line([(0, 0), (0.95 * c, 0.95 * s)], 0.1, pen.main)
        for turn in (-0.8, 0.8):
            x, y = 0.55 * c, 0.55 * s
            pen.line([(x, y), (x + twig * math.cos(a + turn), y + twig * math.sin(a + turn))], 0.08, pen.main)


@kind(also=["peak", "hill"], of=["landscape"])
def _mountain(pen: Pen) -> None:
    x, y = pen.between(-0.4, 0), pen.between(-0.2, 0.1)
    pen.polygon([(0.05, 0.7), (0.55, y), (1, 0.7)], pen.accent)
    pen.polygon([(-1, 0.7), (x, -0.8), (0.7, 0.7)], pen.main)
    pen.polygon([(x, -0.8), (x + 0.25, -0.3), (x + 0.05, -0.4), (x - 0.1, -0.25), (x - 0.25, -0.3)], pen.paper)


@kind(of=["landscape"])
def _volcano(pen: Pen) -> None:
    for x, y in ((-0.15, -0.65), (0.1, -0.8), (0.2, -0.55)):
        pen.dot(x, y, pen.between(0.13, 0.22), pen.trim)
    pen.polygon([(-1, 0.8), (-0.28, -0.35), (0.28, -0.35), (1, 0.8)], pen.main)
    pen.polygon(
        [(-0.28, -0.35), (0.28, -0.35), (0.3, 0.1), (0.1, -0.1), (0, 0.35), (-0.15, -0.1), (-0.35, 0)], pen.accent
    )
