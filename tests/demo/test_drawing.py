"""Test the drawn pictures: they depend only on kind and seed, and the kinds look different."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from raycluster.demo.drawing import BACKGROUNDS, HUES, draw_dataset, draw_picture, imagine, picture_seed
from raycluster.demo.kinds import KINDS, SHOWN_KINDS
from raycluster.demo.pen import Pen


def bare_sketch(kind: str, seed: int = 0) -> np.ndarray:
    """Draw a kind upright and centered, in three fixed grays on black, so that only its shape varies with the seed."""
    image = Image.new("RGB", (64, 64))
    palette = ((200, 200, 200), (120, 120, 120), (80, 80, 80))
    KINDS[kind].sketch(Pen(ImageDraw.Draw(image), (28, 0, 32, 0, 28, 32), palette, Random(seed)))
    return np.asarray(image.convert("L"), dtype=np.float32)


def test_same_kind_and_seed_give_the_same_bytes() -> None:
    assert draw_picture("fish", 7, size=72).tobytes() == draw_picture("fish", 7, size=72).tobytes()
    assert draw_picture("fish", 7, size=72).tobytes() != draw_picture("fish", 8, size=72).tobytes()


def test_a_dataset_is_written_the_same_twice_and_differently_under_another_seed(tmp_path: Path) -> None:
    kinds = ["fish", "ice cream"]
    first, again, other = (
        draw_dataset(tmp_path / name, 6, kinds, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert [p.relative_to(tmp_path / "a").as_posix() for p in first[:3]] == [
        "fish/0000.jpg",
        "ice cream/0000.jpg",
        "fish/0001.jpg",
    ]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    assert not {p.read_bytes() for p in first} & {p.read_bytes() for p in other}
    with Image.open(first[0]) as picture:
        assert picture.mode == "RGB"
        assert 64 <= picture.width == picture.height <= 96


def test_demo_and_training_seeds_never_meet() -> None:
    demo = {picture_seed("demo", seed, kind, i) for seed in range(3) for kind in KINDS for i in range(40)}
    training = {picture_seed("train", seed, kind, i) for seed in range(3) for kind in KINDS for i in range(40)}
    assert len(demo) == len(training) == 3 * len(KINDS) * 40
    assert not demo & training


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_sketch_covers_a_visible_part_of_its_box_and_varies(kind: str) -> None:
    sketches = [bare_sketch(kind, seed) for seed in range(4)]
    for sketch in sketches:
        assert 0.06 < (sketch > 0).mean() < 0.9
    assert not all(np.array_equal(sketches[0], sketch) for sketch in sketches[1:])


def test_no_two_kinds_look_the_same() -> None:
    sketches = {kind: np.mean([bare_sketch(kind, seed) for seed in range(3)], axis=0) for kind in KINDS}
    for one, other in combinations(sketches, 2):
        assert np.abs(sketches[one] - sketches[other]).mean() > 4, (one, other)


def test_things_differ_from_their_background_in_color() -> None:
    scenes = [imagine("cup", seed) for seed in range(300)]
    assert all(scene.color != scene.background_color for scene in scenes)
    assert {scene.color for scene in scenes} == set(HUES)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_there_are_many_more_kinds_than_the_dozen_shown() -> None:
    assert len(KINDS) >= 60
    assert len(set(SHOWN_KINDS)) == 12
    assert set(SHOWN_KINDS) <= set(KINDS)
