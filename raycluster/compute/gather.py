"""Gather some rows of a table: each task reads some of the files and returns the rows that are in them.

The driver holds what is asked for, and no table of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raycluster.compute.node_checks import Common
from raycluster.compute.tasks import map_groups
from raycluster.storage.location import Location
from raycluster.tables import rows


def gather(files: list[Location], wanted: np.ndarray, column: str = "embedding", *, common: Common) -> np.ndarray:
    """Return the vectors of the rows `wanted` (int64 [n], ascending) as one array [n, d] in that order.

    `common`: what the nodes must have. Raises :class:`KeyError` for a row that is not there.
    """

    def part(files: list[Location], wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        places = _held(files, wanted)
        return (places, rows.gather(files, wanted[places], column)) if len(places) else None

    result: np.ndarray | None = None
    found = np.zeros(len(wanted), bool)
    for item in map_groups(part, files, wanted, common=common):
        if item is not None:
            places, vectors = item
            if result is None:
                result = np.empty((len(wanted), vectors.shape[1]), vectors.dtype)
            result[places] = vectors
            found[places] = True
    if result is None or not found.all():
        raise KeyError(f"{int((~found).sum())} of {len(wanted)} rows have no {column}")
    return result


def gather_rows(files: list[Location], wanted: np.ndarray, columns: Sequence[str], *, common: Common) -> pa.Table:
    """Return `row_id` and these columns of the rows `wanted` (int64 [n], ascending, at least one), in that order.

    `common`: what the nodes must have. Raises :class:`KeyError` for a row that is not there.
    """

    def part(files: list[Location], wanted: np.ndarray) -> pa.Table | None:
        places = _held(files, wanted)
        return rows.rows_by_id(rows.find_spans(files), wanted[places], list(columns)) if len(places) else None

    found = [table for table in map_groups(part, files, wanted, common=common) if table is not None]
    missing = len(wanted) - sum(map(len, found))
    if missing or not found:
        raise KeyError(f"{missing} of {len(wanted)} rows are not in the table")
    return pa.concat_tables(found).sort_by("row_id")


def _held(files: list[Location], wanted: np.ndarray) -> np.ndarray:
    """Return the positions in `wanted` of the rows that are in the files, ascending."""
    return np.flatnonzero(rows.among(wanted, np.sort(rows.row_ids(files)))[0])
