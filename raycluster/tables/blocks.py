"""Blocks of rows of Parquet tables: some rows of some files, found by their row ids and read by their positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycluster.errors import ArtifactError
from raycluster.storage import credentials
from raycluster.storage.location import Location
from raycluster.tables.footers import map_files
from raycluster.tables.names import named_ids, partition_and_generation
from raycluster.tables.rows import among, file_ids

KEPT_GROUPS, KEPT_STARTS = 4, 256
"""Row groups, and files with the places of their row groups, that a process keeps in memory: its next block often lies in the row group of
the one before. Only files that never change are kept: those of a manifest, whose folder is named after the content, and pieces whose names
tell their rows."""


@dataclass(frozen=True)
class Block:
    """Some rows of some files, the work of one task. It holds positions, no data."""

    pieces: tuple[tuple[Location, np.ndarray], ...]
    """The files, each with the ascending positions of the rows in it."""

    def __len__(self) -> int:
        return sum(len(positions) for _, positions in self.pieces)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return the rows, with those of `columns` that the files have. Beside the rows, some row groups are in memory."""
        parts = [part for file, positions in self.pieces for part in _read_positions(file, positions, columns)]
        # Files of earlier versions lack some columns, which are null then.
        found = pa.concat_tables(parts, promote_options="default")
        credentials.note_readable(self.pieces[0][0])
        return found


def find_blocks(
    files: Sequence[Location], wanted: np.ndarray, largest: int, fair: int, multiple: int = 1
) -> list[Block]:
    """Return the rows with an id in `wanted` (int64, ascending) in blocks, in the order of the files.

    A block has `largest` rows, or fewer if there would otherwise be less than `fair` blocks. The number is always a multiple of `multiple`.
    The last block has the rest.
    """
    found = list(zip(files, map_files(lambda file: _positions(file, wanted), files), strict=True))
    total = sum(len(positions) for _, positions in found)
    check_found(files, total, len(wanted))
    size = min(largest, -(-total // fair))
    return list(_cut(found, max(multiple, -(-size // multiple) * multiple)))


def check_found(files: Sequence[Location], found: int, wanted: int) -> None:
    """Raise :class:`ArtifactError` if rows of a finished table are not in its files."""
    if found < wanted:
        place = files[0].parent.uri if files else "the folder"
        raise ArtifactError(
            f"{place}: {wanted - found} of {wanted} rows are no longer there; restore the files, or delete the folder _stages of "
            "this run and run again: what is still there is not done again"
        )


def _cut(found: list[tuple[Location, np.ndarray]], size: int) -> Iterator[Block]:
    pieces: list[tuple[Location, np.ndarray]] = []
    room = size
    for file, positions in found:
        while len(positions):
            pieces.append((file, positions[:room]))
            positions, room = positions[room:], room - len(pieces[-1][1])
            if not room:
                yield Block(tuple(pieces))
                pieces, room = [], size
    if pieces:
        yield Block(tuple(pieces))


def _positions(file: Location, wanted: np.ndarray) -> np.ndarray:
    ids = file_ids(file)
    return np.flatnonzero(among(ids, wanted)[0]).astype(np.int32)


def _read_positions(file: Location, positions: np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
    fixed = partition_and_generation(file) is not None or named_ids(file) is not None
    starts = _kept_starts(file) if fixed else _group_starts(file)
    read = _kept_group if fixed else _read_group
    groups = np.searchsorted(starts, positions, side="right") - 1
    for group in np.unique(groups).tolist():
        yield read(file, group, tuple(columns)).take(positions[groups == group] - starts[group])


def _group_starts(file: Location) -> np.ndarray:
    """Return the position of the first row of each row group."""
    metadata = pq.read_metadata(file.path, filesystem=file.filesystem)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return np.cumsum([0, *sizes[:-1]])


def _read_group(file: Location, group: int, columns: tuple[str, ...]) -> pa.Table:
    with pq.ParquetFile(file.path, filesystem=file.filesystem, pre_buffer=True) as parquet:
        return parquet.read_row_group(group, columns=[name for name in columns if name in parquet.schema_arrow.names])


_kept_starts = lru_cache(maxsize=KEPT_STARTS)(_group_starts)
_kept_group = lru_cache(maxsize=KEPT_GROUPS)(_read_group)
