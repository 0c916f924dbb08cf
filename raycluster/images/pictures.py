"""Where the pictures of some rows come from: the originals, or shards. Whoever reads pictures by rows asks here."""

from __future__ import annotations

import pyarrow as pa

from raycluster.config import StorageConfig
from raycluster.images.fetch import Fetched, fetch_batch

ROW = ("row_id", "image_id")
ORIGINAL = ("uri", "size")
STORED = ("status", "error", "width", "height", "image")
COLUMNS = (*ROW, *ORIGINAL, *STORED)
"""What a reader of pictures takes of a table: a manifest has the columns of `ORIGINAL`, a shard those of `STORED`."""


def pictures(rows: pa.Table, storage: StorageConfig, max_bytes: int) -> list[Fetched]:
    """The pictures of rows of a manifest (columns uri, size) or of a shard (status, error, image), in their order.

    Raises :class:`StorageError` as :func:`fetch_batch` does.
    """
    if "image" not in rows.column_names:
        return fetch_batch(rows.column("uri").to_pylist(), rows.column("size").to_pylist(), storage, max_bytes)
    columns = (rows.column(name).to_pylist() for name in ("image", "status", "error"))
    return [Fetched(*row) for row in zip(*columns, strict=True)]
