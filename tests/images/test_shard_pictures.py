"""Test the pictures that a shard holds: their size and format, and what a row keeps of the original."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raycluster.config import StorageConfig
from raycluster.images.decode import decode
from raycluster.images.fetch import Fetched
from raycluster.images.pictures import pictures
from raycluster.images.shard_pictures import ROOM, shard_rows, stored, stored_size
from raycluster.tables.schemas import SHARDS

LIMIT = 10**8


def grainy(width: int, height: int, seed: int = 0) -> Image.Image:
    """Waves and noise, which are as hard to compress as a photograph."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([128 + 90 * np.sin(x / (9 + c) + y / (7 + 2 * c)) for c in range(3)], axis=2)
    noise = np.random.default_rng(seed).normal(0, 12, waves.shape)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("sides", [(4000, 3000), (640, 427), (301, 977), (5000, 333), (1921, 1080), (1000, 1000)])
def test_the_ratio_of_sides_is_kept_to_a_fraction_of_a_pixel(sides: tuple[int, int]) -> None:
    for width, height in (sides, sides[::-1]):
        new = stored_size(width, height, 256)
        assert 256 <= min(new) <= 256 + ROOM
        assert (new[0] < new[1]) == (width < height)
        # The long sides, before they are cut, that an encoder of 224 pixels would make of both.
        long = [224 * max(pair) / min(pair) for pair in (new, (width, height))]
        assert abs(long[0] - long[1]) < 0.15


@pytest.mark.parametrize("sides", [(256, 256), (288, 4000), (100, 70), (1, 90_000)])
def test_small_pictures_keep_their_size(sides: tuple[int, int]) -> None:
    assert stored_size(*sides, 256) == sides


def test_an_original_is_kept_where_nothing_is_gained() -> None:
    small = encoded(grainy(200, 150), quality=75)
    assert stored(decode(small, LIMIT).image, small, 256) == small
    flat = encoded(Image.new("RGB", (400, 300), "teal"), "PNG")
    assert stored(decode(flat, LIMIT).image, flat, 256) == flat
    # This file is small too, but every pass would have to decode 36 times the pixels.
    huge = encoded(Image.new("RGB", (2400, 1800), "teal"), "PNG", optimize=True)
    assert min(Image.open(io.BytesIO(stored(decode(huge, LIMIT).image, huge, 64))).size) < 100


def test_a_large_picture_becomes_a_small_jpeg_with_all_of_its_color() -> None:
    data = encoded(grainy(900, 600), quality=92)
    image = Image.open(io.BytesIO(stored(decode(data, LIMIT).image, data, 128)))
    assert image.format == "JPEG"
    assert image.size == (192, 128)
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    expected = decode(data, LIMIT).image.resize((192, 128), Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(image, float) - np.asarray(expected, float))
    assert difference.mean() < 3


def test_rows_keep_what_happened_and_the_size_of_the_original() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: the picture lies on its side
    turned = encoded(grainy(400, 300), quality=90, exif=exif)
    clear = encoded(Image.new("RGBA", (300, 300), (255, 0, 0, 0)), "PNG")
    narrow = encoded(grainy(1, 3000), "PNG")
    given = [
        Fetched(turned),
        Fetched(clear),
        Fetched(narrow),
        Fetched(None, "missing", "no such file"),
        Fetched(b"not a picture"),
        Fetched(encoded(grainy(400, 300), quality=90)[:900]),
    ]
    rows = pa.table({"row_id": np.arange(6), "image_id": [f"i{i}" for i in range(6)]})
    table = shard_rows(rows, given, 64, LIMIT)
    assert table.schema == SHARDS
    assert table["status"].to_pylist() == ["ok", "ok", "ok", "missing", "undecodable", "undecodable"]
    assert [error is None for error in table["error"].to_pylist()] == [True] * 3 + [False] * 3
    assert table["width"].to_pylist() == [300, 300, 1, None, None, None]
    assert table["height"].to_pylist() == [400, 300, 3000, None, None, None]
    assert [image is None for image in table["image"].to_pylist()] == [False] * 3 + [True] * 3
    # The hash is of the original, even if that cannot be decoded.
    assert [content is None for content in table["content"].to_pylist()] == [False] * 3 + [True] + [False] * 2
    assert table["content"][1].as_py() == hashlib.blake2b(clear, digest_size=16).digest()

    back = pictures(table, StorageConfig(), max_bytes=1)
    assert back[3:] == [Fetched(None, row["status"], row["error"]) for row in table.slice(3).to_pylist()]
    upright, white, thin = (decode(item.data or b"", LIMIT).image for item in back[:3])
    assert upright.width < upright.height
    assert np.asarray(white).min() > 250
    assert thin.size == (1, 3000)


def test_the_size_of_the_original_is_that_of_its_header() -> None:
    """A JPEG that libjpeg decodes at a quarter still has the size that its header says."""
    data = encoded(grainy(1600, 1200), quality=80)
    table = shard_rows(pa.table({"row_id": [7], "image_id": ["a"]}), [Fetched(data)], 64, LIMIT)
    row = table.to_pylist()[0]
    assert (row["width"], row["height"]) == (1600, 1200)
    assert 64 <= min(Image.open(io.BytesIO(row["image"])).size) <= 64 + ROOM
