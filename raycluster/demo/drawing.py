"""Draw pictures of the kinds. A picture depends only on its kind and its seed.

A picture shows a `Scene` (the facts that a caption can mention: kind, color, size, background). All else is random (place, turn,
shear, proportions, noise, blur, specks). Nothing in this module reads or keeps state.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from raycluster.demo.kinds import KINDS
from raycluster.demo.pen import Color, Pen

SUPERSAMPLING = 3

HUES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-0.02, 0.02), (0.75, 1.0), (0.7, 0.95)),
    "orange": ((0.06, 0.09), (0.8, 1.0), (0.85, 1.0)),
    "yellow": ((0.13, 0.17), (0.7, 1.0), (0.85, 1.0)),
    "green": ((0.28, 0.40), (0.5, 0.95), (0.4, 0.8)),
    "blue": ((0.56, 0.66), (0.6, 1.0), (0.5, 0.95)),
    "purple": ((0.74, 0.80), (0.45, 0.85), (0.4, 0.75)),
    "pink": ((0.88, 0.95), (0.3, 0.6), (0.9, 1.0)),
    "brown": ((0.05, 0.09), (0.55, 0.8), (0.3, 0.5)),
    "gray": ((0.0, 1.0), (0.0, 0.07), (0.4, 0.65)),
    "black": ((0.0, 1.0), (0.0, 0.15), (0.05, 0.18)),
    "white": ((0.0, 1.0), (0.0, 0.06), (0.92, 1.0)),
}
"""Color names and their ranges of hue, saturation and value."""

BACKGROUNDS = ("plain", "shaded", "striped", "checked", "spotted", "cluttered")
SIZES = {"small": (0.29, 0.34), "medium": (0.34, 0.40), "large": (0.40, 0.47)}
"""Half the extent of a thing's box, as a fraction of the picture's side."""


@dataclass(frozen=True)
class Scene:
    """The facts that a caption can mention about a picture."""

    kind: str
    color: str
    size: str
    background: str
    background_color: str
    noisy: bool


def picture_seed(purpose: str, seed: int, kind: str, index: int) -> int:
    """Return the seed (64 bits) of picture `index` of a kind; different purposes ("demo", "train") have different seeds."""
    key = "\0".join((purpose, str(seed), kind, str(index)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def imagine(kind: str, seed: int) -> Scene:
    """Return the scene that the picture (kind, seed) shows."""
    return _imagine(kind, Random(seed))


def draw_picture(kind: str, seed: int, size: int = 80, nuisance: float = 1.0) -> Image.Image:
    """Draw the picture (kind, seed) as RGB, `size` pixels square.

    `nuisance` from 0 to 1 scales the effects that hide the thing: shift, turn, shear, the background's contrast, noise, blur.
    All pictures of the demo have 1; training begins with less.

    Raises:
        KeyError: the kind is not in `KINDS`.
    """
    random = Random(seed)
    scene = _imagine(kind, random)
    side = size * SUPERSAMPLING
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    _draw_background(draw, side, scene, nuisance, random)
    palette = (_tint(scene.color, random), _any_color(random), _any_color(random))
    pen = Pen(draw, _place(side, scene.size, nuisance, random), palette, random)
    KINDS[kind].sketch(pen)
    _draw_specks(draw, side, random)
    image = image.reduce(SUPERSAMPLING)
    if random.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(nuisance * 0.9 * random.random() * size / 64))
    deviation = (12 + 18 * random.random()) if scene.noisy else 4 * random.random()
    noise = np.random.default_rng(seed).normal(0.0, nuisance * deviation, (size, size, 3)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def draw_dataset(folder: str | Path, count: int, kinds: Sequence[str], seed: int) -> list[Path]:
    """Draw `count` pictures, the kinds in turn, as `<folder>/<kind>/<nnnn>.jpg` of varying size and JPEG quality.

    The pictures depend only on `count`, `kinds` and `seed`, and are never among those that `train_clip` draws. Returns their paths.
    """
    folder = Path(folder)
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        kind, index = kinds[i % len(kinds)], i // len(kinds)
        number = picture_seed("demo", seed, kind, index)
        path = folder / kind / f"{index:04d}.jpg"
        draw_picture(kind, number, size=64 + number % 33).save(path, quality=70 + number % 26)
        paths.append(path)
    return paths


def _imagine(kind: str, random: Random) -> Scene:
    color, background_color = random.sample(list(HUES), 2)
    return Scene(
        kind=kind,
        color=color,
        size=random.choice(list(SIZES)),
        background=random.choice(BACKGROUNDS),
        background_color=background_color,
        noisy=random.random() < 0.3,
    )


def _tint(name: str, random: Random) -> Color:
    hue, saturation, value = (random.uniform(*span) for span in HUES[name])
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _any_color(random: Random) -> Color:
    return _tint(random.choice(list(HUES)), random)


def _blend(one: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _place(side: int, size: str, nuisance: float, random: Random) -> tuple[float, float, float, float, float, float]:
    """Choose a random affine map from the unit box to pixels: mirror, stretch, shear, turn, scale, shift."""
    half = random.uniform(*SIZES[size]) * side
    stretch, shear = math.exp(nuisance * random.uniform(-0.15, 0.15)), nuisance * random.uniform(-0.15, 0.15)
    turn = math.radians(nuisance * random.uniform(-20, 20))
    mirror = random.choice((-1, 1))
    c, s = math.cos(turn) * half, math.sin(turn) * half
    room = 0.6 * nuisance * (side / 2 - half)
    x, y = (side / 2 + room * random.uniform(-1, 1) for _ in range(2))
    return mirror * stretch * c, (shear * c - s) / stretch, x, mirror * stretch * s, (shear * s + c) / stretch, y


def _draw_background(draw: ImageDraw.ImageDraw, side: int, scene: Scene, nuisance: float, random: Random) -> None:
    ground = _tint(scene.background_color, random)
    other = _blend(ground, _any_color(random), nuisance * random.uniform(0.2, 0.5))
    draw.rectangle((0, 0, side, side), fill=ground)
    pitch = side * random.uniform(0.1, 0.2)
    cells = math.ceil(side / pitch) + 1
    match scene.background:
        case "shaded":
            other = _blend(ground, _any_color(random), nuisance * 0.8)
            upright = random.random() < 0.5
            for i in range(0, side, 4):
                band = (0, i, side, i + 3) if upright else (i, 0, i + 3, side)
                draw.rectangle(band, fill=_blend(ground, other, i / side))
        case "striped":
            lean = random.uniform(-0.7, 0.7) * side
            upright = random.random() < 0.5
            for i in range(-cells, 2 * cells, 2):
                a, b = i * pitch, (i + 1) * pitch
                stripe = [(a, 0.0), (b, 0.0), (b + lean, float(side)), (a + lean, float(side))]
                draw.polygon(stripe if upright else [(y, x) for x, y in stripe], fill=other)
        case "checked":
            for i in range(cells):
                for j in range(i % 2, cells, 2):
                    draw.rectangle((i * pitch, j * pitch, (i + 1) * pitch, (j + 1) * pitch), fill=other)
        case "spotted":
            r = pitch * random.uniform(0.2, 0.4)
            for i in range(cells):
                for j in range(cells):
                    x, y = (i + 0.5 * (j % 2)) * pitch, j * pitch
                    draw.ellipse((x - r, y - r, x + r, y + r), fill=other)
        case "cluttered":
            for _ in range(random.randint(8, 14)):
                shade = _blend(ground, _any_color(random), nuisance * random.uniform(0.15, 0.55))
                x, y = side * random.random(), side * random.random()
                corners = [(x + random.gauss(0, 0.14) * side, y + random.gauss(0, 0.14) * side) for _ in range(4)]
                draw.polygon(corners, fill=shade)


def _draw_specks(draw: ImageDraw.ImageDraw, side: int, random: Random) -> None:
    for _ in range(random.randint(0, 7)):
        x, y, r = side * random.random(), side * random.random(), side * random.uniform(0.008, 0.022)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_any_color(random))
