"""64-bit hashes of rows, by which two listings of any size are compared in a few bytes a row.

Equal rows have equal hashes. Different rows may have equal hashes too, so whoever finds equal ones compares the rows themselves.

pandas takes half a second to import, and most commands do without it, so the function that needs it imports it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_ABSENT = -1
"""Stands for a null number: sizes are not negative, and no picture is from the last microsecond of 1969."""


def hash_rows(rows: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Return a hash of these columns of each row, uint64 [n]. Columns hold text, whole numbers or times."""
    from pandas.util import hash_array

    result = np.zeros(len(rows), np.uint64)
    for name in columns:
        column = rows.column(name)
        if pa.types.is_integer(column.type) or pa.types.is_timestamp(column.type):
            values = pc.fill_null(column.cast(pa.int64()), _ABSENT).to_numpy()
        else:
            values = column.to_numpy()
        result = result * _FACTOR + hash_array(values, categorize=False)
    return result
