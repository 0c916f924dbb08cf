"""Make the pictures that a shard holds: decoded, checked and made smaller once, so that later passes read little.

A stored picture should give an encoder the same input as the original, as far as a smaller picture can:

- The sides keep their ratio as exactly as whole pixels allow. For that, the short side may be up to `ROOM` pixels longer than asked for.
  With naive rounding, the encoder's own resize often gives a side that is one pixel off from that of the original, and a crop that is
  half a pixel off. On photographs this caused more than half of the difference between embeddings, and nine tenths of it if the stored
  side was twice the encoder's.
- Pictures are resized with Lanczos and written as JPEG of quality 95 without color subsampling. Quality 90 adds more than twice as much
  to the difference.
- The original is kept if it takes no more bytes and is not much larger. This holds for small pictures, and for content that graphics
  formats compress well.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from PIL import Image

from raycluster.images.decode import decode_batch
from raycluster.images.fetch import Fetched
from raycluster.tables.schemas import SHARDS

ROOM = 32
"""Most pixels by which the short side may exceed `shards.size`."""
QUALITY = 95
KEPT_SIDE = 2
"""An original with this many times the side is not kept, however small its file, because every pass would decode all of its pixels."""
LONGEST_JPEG = 65_500
"""Most pixels of a side that libjpeg can write."""


def shard_rows(rows: pa.Table, fetched: Sequence[Fetched], size: int, max_pixels: int) -> pa.Table:
    """Turn rows of the manifest and their fetched pictures into rows of a shard (schema `SHARDS`), in the same order."""
    decoded = [
        decode_batch([item], partial(_stored, data=item.data or b"", size=size), max_pixels, size, enlarges=False)
        for item in fetched
    ]
    columns = {name: [getattr(row, name)[0] for row in decoded] for name in ("status", "error", "width", "height")}
    images = [row.pixels[0] for row in decoded]
    return pa.table(
        {
            "row_id": rows.column("row_id"),
            "image_id": rows.column("image_id"),
            **columns,
            "content": [item.content for item in fetched],
            "image": images,
        },
        schema=SHARDS,
    )


def _stored(image: Image.Image, data: bytes, size: int) -> np.ndarray:
    return np.frombuffer(stored(image, data, size), np.uint8)


def stored(image: Image.Image, data: bytes, size: int) -> bytes:
    """Return the picture file that a shard holds for a picture.

    Parameters
    ----------
    image
        The decoded original, mode RGB, perhaps at a reduced scale.
    data
        The original file.
    size
        Pixels of the short side. Smaller pictures are not enlarged.
    """
    small = image.resize(stored_size(*image.size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if max(small.size) > LONGEST_JPEG:
        return data
    # Otherwise Pillow would write the comments and color profiles of the original again.
    small.info = {}
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, subsampling="4:4:4")
    keeps = len(data) <= buffer.tell() and min(image.size) < KEPT_SIDE * size
    return data if keeps else buffer.getvalue()


def stored_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return width and height of the stored picture.

    Its short side has `size` to `size + ROOM` pixels. A picture with a short side of at most `size + ROOM` pixels keeps its size.
    """
    short, long = sorted((width, height))
    if short <= size + ROOM:
        return width, height

    def error(side: int) -> tuple[float, int]:
        rest = long * side % short
        return min(rest, short - rest) / side, side

    best = min(range(size, size + ROOM + 1), key=error)
    other = round(long * best / short)
    return (best, other) if width <= height else (other, best)
