"""The part files of a table: which of them count, and how they are written. :mod:`raycluster.tables.names` tells their names.

While a stage works, it writes small pieces, so that a kill costs seconds. When all rows of a partition are there, they are compacted into
one file (:mod:`raycluster.tables.compaction`). No finished file is overwritten: if rows are added to a partition, its next file has another
generation. Pieces and earlier generations are deleted after that. Until then they are there but do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from raycluster.storage.location import Location
from raycluster.tables.footers import map_files, read_footer, with_footer
from raycluster.tables.names import (
    PARTITION_ROWS,
    first_and_end,
    part_name,
    partition_and_generation,
    partition_name,
)
from raycluster.tables.rows import file_ids

GROUP_ROWS = 4_096
"""Rows of a row group: a task that needs few rows of a file reads one of them."""


def write_pieces(folder: Location, rows: pa.Table) -> None:
    """Write rows of a table as pieces, one for each partition that they lie in. The footers tell ids and statuses."""
    for _, part in by_partition(rows):
        (folder / part_name(part.column("row_id"))).write_table(with_footer(part), GROUP_ROWS)


def write_partitions(folder: Location, rows: pa.Table) -> None:
    """Write some rows of a table as one file a partition, of which these must be all rows."""
    for number, part in by_partition(rows):
        (folder / partition_name(number, 0)).write_table(with_footer(part), GROUP_ROWS)


def by_partition(rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
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
    counting = set(finished)
    pieces = _pieces(files)
    firsts = _first_rows([file for file, first, _ in pieces if first // PARTITION_ROWS in newest])
    followed_by = [*(first for _, first, _ in pieces[1:]), None]
    for (file, first, end), following in zip(pieces, followed_by, strict=False):
        footer = footers.get(first // PARTITION_ROWS)
        covered = footer is not None and footer.covers(firsts[file])
        # A row lies in one piece only. So a piece that begins within another one has replaced it.
        if not covered and (following is None or following >= end):
            counting.add(file)
    every = [*(file for file, _, _ in pieces), *(file for file, _ in numbered)]
    ours = sorted(every, key=lambda file: file.path)
    return [file for file in ours if file in counting], [file for file in ours if file not in counting]


def _pieces(files: Sequence[Location]) -> list[tuple[Location, int, int]]:
    """Return the pieces with the numbers in their names, in the order of their first rows; if those are equal, the longer name first."""
    pieces = [(file, *numbers) for file in files if (numbers := first_and_end(file))]
    return sorted(pieces, key=lambda piece: (piece[1], -piece[2]))


def _first_rows(pieces: Sequence[Location]) -> dict[Location, int]:
    """Return the smallest row id of each piece. The row that a piece of an earlier version is named after may have been removed since."""
    ids = map_files(file_ids, pieces)
    return {file: int(each.min()) if len(each) else -1 for file, each in zip(pieces, ids, strict=True)}
