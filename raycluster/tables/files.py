"""The part files of a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raycluster.storage.location import Location


def part_files(folder: Location) -> list[Location]:
    """Return the part files in a table's folder, finished or not."""
    return [file for file in folder.list(suffix=".parquet") if file.name.startswith("part-")]


def part_name(row_ids: pa.ChunkedArray | pa.Array | np.ndarray) -> str:
    """Return the file name for a block, which is made from its smallest row id.

    A row lies in one file only, so no other block has this name. A block that Ray computes twice replaces its own file.
    """
    return f"part-{int(np.min(np.asarray(row_ids))):012d}.parquet"
