"""Small JPEG copies of pictures for the report."""

from __future__ import annotations

import io

import pyarrow as pa
from PIL import Image

from raycluster.config import EncoderConfig, StorageConfig
from raycluster.images.decode import Rejected, decode
from raycluster.images.pictures import fetched_slices

QUALITY = 70
"""JPEG quality. A photograph of 96 pixels takes about 2.5 kB, so 200 clusters of 18 pictures take about 12 MB as data URIs."""


def thumbnails(rows: pa.Table, side: int, encoder: EncoderConfig, storage: StorageConfig) -> dict[int, bytes]:
    """Return row id → thumbnail for rows of a manifest or of shards. Pictures that cannot be read any more have none."""
    made = {}
    for part, fetched in fetched_slices(rows, storage, encoder.max_bytes):
        for row_id, item in zip(part.column("row_id").to_pylist(), fetched, strict=True):
            if item.data is None:
                continue
            try:
                made[row_id] = thumbnail(decode(item.data, encoder.max_pixels, min_side=side).image, side)
            except Rejected:
                continue
    return made


def thumbnail(image: Image.Image, side: int) -> bytes:
    """Return a JPEG of `image` with its longest side at most `side` pixels; smaller pictures keep their size."""
    scale = min(1.0, side / max(image.size))
    width, height = (max(1, round(length * scale)) for length in image.size)
    small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    # Comments, XMP and color profiles of the original can be many times larger than the thumbnail.
    small.info = {}
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
