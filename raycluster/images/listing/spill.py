"""Rows of a table on this machine's disk, so that memory holds few of them however many there are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

BATCH_ROWS = 4096
"""Most rows of a batch."""


class Spill:
    """A table that is written once, batch by batch, and then read as often as needed.

    It lies in a temporary file without a name (in `$TMPDIR`), which the operating system deletes when the process ends, however it ends.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._file = tempfile.TemporaryFile(prefix="raycluster-")  # noqa: SIM115 - it lives as long as this object
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), schema, options=options)
        self._sizes: list[int] = []
        self._keys: list[tuple[int, str]] = []
        self._section = 0
        self._reader: pa.RecordBatchFileReader | None = None

    def __len__(self) -> int:
        return sum(self._sizes)

    def begin_section(self) -> None:
        """Begin a section: its rows come after all rows of the sections before it."""
        self._section += 1

    def append(self, rows: pa.Table, key: str = "") -> None:
        """Add rows. Within a section they are ordered by the keys of their calls, and with equal keys by the order of the calls."""
        for batch in rows.combine_chunks().to_batches(BATCH_ROWS):
            self._writer.write_batch(batch)
            self._sizes.append(len(batch))
            self._keys.append((self._section, key))

    def batches(self) -> Iterator[pa.Table]:
        """Yield all rows in order. After the first call nothing can be added."""
        for number in self._order():
            yield self._batch(number)

    def read(self) -> pa.Table:
        """Return all rows as one table. Call it only where they are few."""
        return pa.concat_tables([self.schema.empty_table(), *self.batches()])

    def take(self, positions: np.ndarray) -> pa.Table:
        """Return the rows at these positions, int64 ascending."""
        order = self._order()
        ends = np.cumsum([self._sizes[number] for number in order])
        found = [self.schema.empty_table()]
        for place in np.unique(np.searchsorted(ends, positions, side="right")).tolist():
            start = int(ends[place]) - self._sizes[order[place]]
            inside = positions[(positions >= start) & (positions < ends[place])] - start
            found.append(self._batch(order[place]).take(pa.array(inside)))
        return pa.concat_tables(found)

    def _order(self) -> list[int]:
        return sorted(range(len(self._keys)), key=self._keys.__getitem__)

    def _batch(self, number: int) -> pa.Table:
        if self._reader is None:
            self._writer.close()
            self._reader = pa.ipc.open_file(pa.PythonFile(self._file, mode="r"))
        return pa.Table.from_batches([self._reader.get_batch(number)])
