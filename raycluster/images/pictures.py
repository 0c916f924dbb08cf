"""Get the pictures of rows, from the originals or from shards. All code that reads pictures by rows uses this module."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from raycluster.config import StorageConfig
from raycluster.images.fetch import Fetched, fetch_batch

ROW = ("row_id", "image_id")
ORIGINAL = ("uri", "size")
STORED = ("status", "error", "width", "height", "content", "image")
COLUMNS = (*ROW, *ORIGINAL, *STORED)
"""The columns that a reader of pictures uses. A manifest has those of `ORIGINAL`, a shard those of `STORED`."""
SLICE_ROWS, SLICE_BYTES = 128, 2**26
"""Most pictures, and most bytes of them, that :func:`fetched_slices` fetches at a time."""
ASSUMED_BYTES = SLICE_BYTES // SLICE_ROWS
"""Assumed bytes of a picture if the manifest does not give its size, as for a row of a table."""


def pictures(rows: pa.Table, storage: StorageConfig, max_bytes: int) -> list[Fetched]:
    """Return the pictures of rows of a manifest (columns uri, size) or of a shard (status, error, image), in their order.

    Raises :class:`StorageError` as :func:`fetch_batch` does.
    """
    if "image" not in rows.column_names:
        return fetch_batch(rows.column("uri").to_pylist(), rows.column("size").to_pylist(), storage, max_bytes)
    columns = (rows.column(name).to_pylist() for name in ("image", "status", "error"))
    return [Fetched(*row) for row in zip(*columns, strict=True)]


def fetched_slices(
    rows: pa.Table, storage: StorageConfig, max_bytes: int, most_rows: int = SLICE_ROWS
) -> Iterator[tuple[pa.Table, list[Fetched]]]:
    """Yield the rows, slice by slice, with their pictures (:func:`pictures`). The next slice is fetched while the caller works on one.

    So at most two slices of originals are in memory, however many rows there are and however large their pictures. A slice has
    at most `most_rows` rows and `SLICE_BYTES`. A picture larger than that is a slice by itself. Raises as :func:`pictures` does.
    """
    slices = [rows.slice(start, stop - start) for start, stop in _cuts(rows, max_bytes, most_rows)]
    with ThreadPoolExecutor(1, thread_name_prefix="fetch-slice") as pool:
        coming = [pool.submit(pictures, part, storage, max_bytes) for part in slices[:1]]
        for index, part in enumerate(slices):
            found = coming.pop().result()
            coming += [pool.submit(pictures, after, storage, max_bytes) for after in slices[index + 1 : index + 2]]
            yield part, found


def _cuts(rows: pa.Table, max_bytes: int, most_rows: int) -> Iterator[tuple[int, int]]:
    """Yield where each slice begins and ends."""
    if "size" in rows.column_names:
        sizes = rows.column("size").fill_null(ASSUMED_BYTES).to_numpy()
        # A picture that is too large is not read.
        sizes = np.where(sizes > max_bytes, 0, sizes)
    else:
        # The pictures of shards are in the rows already.
        sizes = np.zeros(len(rows), np.int64)
    start, held = 0, 0
    for index, size in enumerate(sizes.tolist()):
        if index > start and (index - start == most_rows or held + size > SLICE_BYTES):
            yield start, index
            start, held = index, 0
        held += size
    if start < len(rows):
        yield start, len(rows)
