"""The part files of a table: how they are named, which of them count, and how they are written.

Partition p of a table holds the rows with the ids from p·16,384 on. While a stage works, it writes small pieces, `part-<first row id>`, so
that a kill costs seconds. When all rows of a partition are there, they are compacted into one file, `partition-<p>-<generation>`
(:mod:`raycluster.tables.compaction`). No finished file is overwritten: if rows are added to a partition, its next file has another
generation. Pieces and earlier generations are deleted after that. Until then they are there but do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from raycluster.storage.location import Location
from raycluster.tables.footers import map_files, read_footer, with_footer
from raycluster.tables.rows import file_ids

PARTITION_ROWS = 16_384
"""Row ids of a partition."""
GROUP_ROWS = 4_096
"""Rows of a row group: a task that needs few rows of a file reads one of them."""

_PIECE = re.compile(r"part-(\d+)\.parquet")
_PARTITION = re.compile(r"partition-(\d+)-(\d+)\.parquet")


def part_name(row_ids: pa.ChunkedArray | pa.Array | np.ndarray) -> str:
    """Return the file name for a piece, which is made from its smallest row id.

    A row lies in one piece only, so no other piece has this name. A piece that Ray computes twice replaces its own file.
    """
    return f"part-{int(np.min(np.asarray(row_ids))):012d}.parquet"


def partition_name(partition: int, generation: int) -> str:
    """Return the file name of a whole partition."""
    return f"partition-{partition:08d}-{generation}.parquet"


def partition_and_generation(file: Location) -> tuple[int, int] | None:
    """Return the numbers in the name of a partition's file; None for any other file."""
    found = _PARTITION.fullmatch(file.name)
    return None if found is None else (int(found[1]), int(found[2]))


def write_pieces(folder: Location, rows: pa.Table) -> None:
    """Write rows of a table as pieces, one for each partition that they lie in. The footers tell ids and statuses."""
    for _, part in _by_partition(rows):
        (folder / part_name(part.column("row_id"))).write_table(with_footer(part), GROUP_ROWS)


def write_partitions(folder: Location, rows: pa.Table) -> None:
    """Write all rows of a table as one file a partition. The folder must be empty."""
    for number, part in _by_partition(rows):
        (folder / partition_name(number, 0)).write_table(with_footer(part), GROUP_ROWS)


def _by_partition(rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Yield each partition's number and rows, sorted by id. Sorted once, a table is cut without a pass over it for every partition."""
    rows = rows.sort_by("row_id")
    partitions = rows.column("row_id").to_numpy() // PARTITION_ROWS
    starts = np.flatnonzero(np.diff(partitions, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(rows)]):
        yield int(partitions[start]), rows.slice(start, end - start)


def part_files(folder: Location) -> list[Location]:
    """Return the part files of a table, finished or not. No two of them hold the same row."""
    return split_files(folder.list(suffix=".parquet"))[0]


def split_files(files: Sequence[Location]) -> tuple[list[Location], list[Location]]:
    """Return which of the files in a table's folder count, and which do not count any more because others hold their rows."""
    numbered = [(file, number) for file in files if (number := partition_and_generation(file))]
    newest: dict[int, tuple[int, Location]] = {}
    for file, (partition, generation) in numbered:
        newest[partition] = max(newest.get(partition, (-1, file)), (generation, file), key=lambda found: found[0])
    finished = [file for _, file in newest.values()]
    footers = dict(zip(newest, map_files(read_footer, finished), strict=True))
    pieces = {file: int(found[1]) // PARTITION_ROWS for file in files if (found := _PIECE.fullmatch(file.name))}
    # The row that a piece is named after may have been removed from it since, so its own footer says what is in it.
    beside = [file for file, partition in pieces.items() if partition in newest]
    covered = {
        file
        for file, ids in zip(beside, map_files(file_ids, beside), strict=True)
        if len(ids) and (footer := footers[pieces[file]]) is not None and footer.covers(int(ids.min()))
    }
    counting = (set(finished) | pieces.keys()) - covered
    ours = sorted((*pieces, *(file for file, _ in numbered)), key=lambda file: file.path)
    return [file for file in ours if file in counting], [file for file in ours if file not in counting]
