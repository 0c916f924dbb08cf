"""Test the decoding of a batch of pictures: their order, their statuses, and that no damage raises an exception."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from raycluster.images.decode import decode_batch
from raycluster.images.fetch import Fetched

MAX_PIXELS = 10_000_000


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def shapes(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_batch_keeps_order_and_every_fate() -> None:
    good = encoded(shapes(60, 40), "PNG")
    fetched = [
        Fetched(good),
        Fetched(None, "missing", "no such file"),
        Fetched(b"text"),
        Fetched(encoded(Image.new("RGB", (70, 10), "blue"), "PNG")),
    ]

    def to_pixels(image: Image.Image) -> np.ndarray:
        if image.width == 70:
            raise ValueError(f"cannot use {object()}")
        return np.asarray(image.resize((4, 2))).transpose(2, 0, 1)

    batch = decode_batch(fetched, to_pixels, MAX_PIXELS)
    assert batch.status == ["ok", "missing", "undecodable", "failed"]
    assert batch.width == [60, None, None, 70]
    assert batch.height == [40, None, None, 10]
    assert batch.error[:3] == [None, "no such file", "not a picture, or its header is damaged"]
    assert batch.error[3] == "preprocessing: ValueError: cannot use <object object at 0x…>"
    assert [p is None for p in batch.pixels] == [False, True, True, True]
    pixels = np.frombuffer(batch.pixels[0], np.uint8).reshape(3, 2, 4)
    np.testing.assert_array_equal(pixels, to_pixels(shapes(60, 40)))


def test_wrong_dtype_from_preprocessing_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match="float32"):
        decode_batch([Fetched(encoded(shapes(60, 40), "PNG"))], lambda im: np.asarray(im, np.float32), MAX_PIXELS)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_no_damage_ever_raises(fmt: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if fmt in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    data = encoded(shapes(64, 48), fmt, **options, **({"compression": "tiff_lzw"} if fmt == "TIFF" else {}))
    rng = random.Random(fmt)
    damaged = []
    for _ in range(300):
        broken = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.randrange(1, 12) if broken else 0):
            # Headers break in more ways than pixels, so more of the damage is in the first bytes.
            place = rng.randrange(min(len(broken), 200) if rng.random() < 0.6 else len(broken))
            broken[place] ^= 1 << rng.randrange(8)
        damaged.append(Fetched(bytes(broken)))
    batch = decode_batch(damaged, lambda image: np.asarray(image.resize((8, 8))), MAX_PIXELS, min_side=8)
    assert set(batch.status) <= {"ok", "empty", "undecodable", "too_large", "unsupported"}
    assert "undecodable" in batch.status
    assert all((error is None) == (status == "ok") for status, error in zip(batch.status, batch.error, strict=True))
    assert all(len(error) <= 200 and "0x" not in error.replace("0x…", "") for error in batch.error if error)
    again = decode_batch(damaged[:50], lambda image: np.asarray(image.resize((8, 8))), MAX_PIXELS, min_side=8)
    assert again.error == batch.error[:50]
