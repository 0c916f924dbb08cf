"""What a shard holds of a picture: decoded and judged once, made smaller once, so that later passes read little.

A picture is stored so that an encoder sees the same as in the original, as far as a smaller picture can:

- The sides keep their ratio as exactly as whole pixels allow: the short one may be up to `ROOM` pixels longer than asked for. Rounded
  naively, the encoder's own resize often ends a pixel beside that of the original, and its crop half a pixel: on photographs this made
  more than half of the difference between embeddings, at twice the encoder's side nine tenths.
- Lanczos, and JPEG of quality 95 with all of its color: what quality 90 adds to the difference is more than twice as much.
- The original is kept where it takes no more bytes and is not much larger: small pictures, and what graphics formats are good at.
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
from raycluster.tables import SHARDS

ROOM = 32
"""Pixels by which the short side may exceed `shards.size`."""
QUALITY = 95
KEPT_SIDE = 2
"""An original of as many times the side is not kept, however small its file: every pass would decode all of its pixels."""
LONGEST_JPEG = 65_500
"""Pixels of the longest side that libjpeg writes."""


def shard_rows(rows: pa.Table, fetched: Sequence[Fetched], size: int, max_pixels: int) -> pa.Table:
    """Rows of the manifest and what was fetched of them → rows of a shard (schema SHARDS), in the same order."""
    decoded = [
        decode_batch([item], partial(_stored, data=item.data or b"", size=size), max_pixels, size, enlarges=False)
        for item in fetched
    ]
    columns = {name: [getattr(row, name)[0] for row in decoded] for name in ("status", "error", "width", "height")}
    images = [row.pixels[0] for row in decoded]
    return pa.table(
        {"row_id": rows.column("row_id"), "image_id": rows.column("image_id"), **columns, "image": images},
        schema=SHARDS,
    )


def _stored(image: Image.Image, data: bytes, size: int) -> np.ndarray:
    return np.frombuffer(stored(image, data, size), np.uint8)


def stored(image: Image.Image, data: bytes, size: int) -> bytes:
    """The file that a shard holds of a picture.

    Parameters
    ----------
    image
        The decoded original, mode RGB, perhaps at a reduced scale.
    data
        The original file.
    size
        Pixels of the short side; smaller pictures are not enlarged.
    """
    small = image.resize(stored_size(*image.size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if max(small.size) > LONGEST_JPEG:
        return data
    # Comments and color profiles of the original would be written again.
    small.info = {}
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, subsampling="4:4:4")
    keeps = len(data) <= buffer.tell() and min(image.size) < KEPT_SIDE * size
    return data if keeps else buffer.getvalue()


def stored_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of the stored picture, whose short side has `size` to `size + ROOM` pixels, or its own if those are fewer."""
    short, long = sorted((width, height))
    if short <= size + ROOM:
        return width, height

    def error(side: int) -> tuple[float, int]:
        rest = long * side % short
        return min(rest, short - rest) / side, side

    best = min(range(size, size + ROOM + 1), key=error)
    other = round(long * best / short)
    return (best, other) if width <= height else (other, best)
