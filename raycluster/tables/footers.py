"""What the footer of a part file says of its rows, so that a table is known without reading its columns.

A footer holds the ranges of row ids and the histogram of the column `status`. Files of earlier versions have no such footer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycluster.storage.location import Location
from raycluster.storage.parallel import map_threads

Result = TypeVar("Result")

KEY = b"raycluster"
"""Key of the file's metadata."""


@dataclass(frozen=True)
class Footer:
    """What a part file says of its rows."""

    ranges: np.ndarray
    """int64 [k, 2]: the row ids, as ranges of a first id and the id after the last one, ascending."""
    statuses: dict[str, int]
    """Histogram of the column `status`; empty if there is no such column."""

    def ids(self) -> np.ndarray:
        """Return the row ids, int64 [n], ascending."""
        return np.concatenate([np.arange(first, end) for first, end in self.ranges] or [np.empty(0, np.int64)])

    def covers(self, row_id: int) -> bool:
        """Return whether a row is in the file."""
        place = int(np.searchsorted(self.ranges[:, 0], row_id, side="right")) - 1
        return place >= 0 and row_id < self.ranges[place, 1]

    @property
    def all_ok(self) -> bool:
        """Whether every row has the status `ok`."""
        return self.statuses.keys() == {"ok"}

    def metadata(self) -> dict[bytes, bytes]:
        """Return the footer as metadata of a Parquet file."""
        record = {"ranges": self.ranges.tolist(), "statuses": self.statuses}
        return {KEY: json.dumps(record).encode()}


def footer_of(ids: np.ndarray, statuses: dict[str, int]) -> Footer:
    """Return the footer of a file that holds these row ids, int64 [n] in any order."""
    ordered = np.sort(ids)
    breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
    first, last = ordered[np.r_[0, breaks]], ordered[np.r_[breaks - 1, len(ordered) - 1]]
    return Footer(np.stack([first, last + 1], axis=1), statuses)


def with_footer(table: pa.Table) -> pa.Table:
    """Return the table, which has a column `row_id`, with the metadata that its file's footer is to hold."""
    statuses: dict[str, int] = {}
    if "status" in table.column_names:
        counted = table.column("status").value_counts().to_pylist()
        statuses = {item["values"]: item["counts"] for item in counted}
    footer = footer_of(table.column("row_id").to_numpy(), statuses)
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **footer.metadata()})


def read_footer(file: Location) -> Footer | None:
    """Return what a part file says of its rows; None for a file of an earlier version."""
    metadata = pq.read_metadata(file.path, filesystem=file.filesystem).metadata or {}
    if KEY not in metadata:
        return None
    record: dict[str, Any] = json.loads(metadata[KEY])
    ranges = np.array(record["ranges"], np.int64).reshape(-1, 2)
    return Footer(ranges, record["statuses"])


def map_files(function: Callable[[Location], Result], files: Sequence[Location]) -> list[Result]:
    """Return `function(file)` for each file, computed in several threads."""
    return list(map_threads(function, files)) if len(files) > 1 else [function(file) for file in files]
