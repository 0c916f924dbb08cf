"""The names of the part files of a table.

Partition p of a table holds the rows with the ids from p·16,384 on. A whole one is `partition-<p>-<generation>`. A piece, which holds some
rows of it, is `part-<first row id>-<id after the last one>`, or `part-<first row id>` if ids are left out in between.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from raycluster.storage.location import Location

PARTITION_ROWS = 16_384
"""Row ids of a partition."""

_PIECE = re.compile(r"part-(\d+)(?:-(\d+))?\.parquet")
_PARTITION = re.compile(r"partition-(\d+)-(\d+)\.parquet")


def part_name(row_ids: pa.ChunkedArray | pa.Array | np.ndarray) -> str:
    """Return the file name for a piece: its smallest row id and, if no id is left out, the id after its largest one.

    A row lies in one piece only, so no other piece has this name. A piece that Ray computes twice replaces its own file.
    """
    ids = np.asarray(row_ids)
    first, end = int(ids.min()), int(ids.max()) + 1
    return f"part-{first:012d}-{end:012d}.parquet" if end - first == len(ids) else f"part-{first:012d}.parquet"


def first_and_end(file: Location) -> tuple[int, int] | None:
    """Return the numbers in the name of a piece, the first one twice if it tells no other; None for any other file."""
    found = _PIECE.fullmatch(file.name)
    return None if found is None else (int(found[1]), int(found[2] or found[1]))


def named_ids(file: Location) -> np.ndarray | None:
    """Return the row ids of a piece, int64 ascending, if its name tells them."""
    found = first_and_end(file)
    return np.arange(*found) if found and found[1] > found[0] else None


def partition_name(partition: int, generation: int) -> str:
    """Return the file name of a whole partition."""
    return f"partition-{partition:08d}-{generation}.parquet"


def partition_and_generation(file: Location) -> tuple[int, int] | None:
    """Return the numbers in the name of a partition's file; None for any other file."""
    found = _PARTITION.fullmatch(file.name)
    return None if found is None else (int(found[1]), int(found[2]))
