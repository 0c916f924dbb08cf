"""All kinds of things that the demo can draw, and the dozen that it shows."""

from __future__ import annotations

from raycluster.demo import kinds_food, kinds_home, kinds_nature, kinds_travel, kinds_wear  # noqa: F401  (they register)
from raycluster.demo.pen import KINDS, Kind

__all__ = ["KINDS", "SHOWN_KINDS", "Kind"]

SHOWN_KINDS = (
    "house",
    "tent",
    "car",
    "truck",
    "tree",
    "mushroom",
    "umbrella",
    "fish",
    "bird",
    "star",
    "flower",
    "cup",
)
"""The kinds in the demo's folder, fixed before the tiny CLIP was trained and before any clustering of them was seen.
Some resemble each other: house and tent, car and truck, mushroom and umbrella, star and flower."""
