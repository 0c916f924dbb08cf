"""Test thumbnails: their size and colors, and that metadata is removed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from raycluster.results.report.thumbnails import thumbnail

Opened = Callable[[bytes], Image.Image]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 200), (96, 64)),
        ((200, 300), (64, 96)),
        ((96, 96), (96, 96)),
        ((32, 20), (32, 20)),
        ((1, 1), (1, 1)),
        ((5000, 1), (96, 1)),
    ],
)
def test_longest_side_shrinks_to_the_limit_and_never_grows(
    opened: Opened, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert opened(thumbnail(Image.new("RGB", size), 96)).size == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
def test_every_mode_becomes_a_color_jpeg(opened: Opened, mode: str) -> None:
    picture = opened(thumbnail(Image.new(mode, (40, 30)), 20))
    assert (picture.format, picture.mode) == ("JPEG", "RGB")


def test_colors_and_places_are_kept(opened: Opened) -> None:
    image = Image.new("RGB", (200, 100), (220, 30, 30))
    image.paste((30, 30, 220), (100, 0, 200, 100))
    small = np.asarray(opened(thumbnail(image, 50)), int)
    np.testing.assert_allclose(small[12, 5], (220, 30, 30), atol=6)
    np.testing.assert_allclose(small[12, 45], (30, 30, 220), atol=6)


def test_metadata_stays_behind_and_the_picture_is_left_alone() -> None:
    image = Image.new("RGB", (200, 100))
    plain = thumbnail(image, 96)
    image.info = {
        "comment": b"c" * 50_000,
        "exif": b"Exif\0\0" + b"e" * 9000,
        "icc_profile": b"i" * 9000,
        "xmp": b"x" * 9000,
    }
    assert thumbnail(image, 96) == plain
    assert image.size == (200, 100)
    assert len(image.info) == 4
