"""Write embeddings as part files. This module does not import torch: loading it would cost the writing process seconds and memory."""

from __future__ import annotations

import pyarrow as pa

from raycluster.images.fetch import retry
from raycluster.storage.location import Location
from raycluster.tables.files import write_pieces


def write_rows(block: pa.Table, folder: Location) -> pa.Table:
    """Write a block as pieces of the table and return its status counts, one row a status: columns status, rows."""
    if len(block) == 0:
        return pa.table({"status": pa.array([], pa.string()), "rows": pa.array([], pa.int64())})
    retry(lambda: write_pieces(folder, block), folder.uri)
    counts = block.column("status").value_counts()
    return pa.table({"status": counts.field("values"), "rows": counts.field("counts")})
