"""The digest of a manifest's rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.images.listing.columns import in_order
from raycluster.tables.schemas import MANIFEST


def content_digest(rows: pa.Table) -> bytes:
    """Return the SHA-256 of every value of some rows of a manifest. It does not depend on their order or on the split into chunks."""
    rows = in_order(rows.select(MANIFEST.names).cast(MANIFEST), "row_id")
    digest = hashlib.sha256(str(rows.num_rows).encode())
    for column in rows.columns:
        for part in _plain_bytes(column):
            digest.update(part)
    return digest.digest()


def _plain_bytes(column: pa.ChunkedArray) -> Iterator[memoryview]:
    """Yield the bytes of a column's values, independent of how Arrow stores them: no chunks, no offsets, no values under nulls."""
    for chunk in column.chunks:
        yield chunk.is_valid().to_numpy(zero_copy_only=False).data
    if not pa.types.is_string(column.type):
        for chunk in column.chunks:
            yield pc.fill_null(chunk.cast(pa.int64()), 0).to_numpy().data
        return
    texts = [pc.fill_null(chunk, "") for chunk in column.chunks]
    for text in texts:
        yield pc.binary_length(text).to_numpy().data
    for text in texts:
        _, offsets, data = text.buffers()
        bounds = np.frombuffer(offsets, np.int32)
        if data is not None:
            yield memoryview(data)[bounds[text.offset] : bounds[text.offset + len(text)]]
