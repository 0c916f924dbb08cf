"""Compaction: the small pieces that a stage has written become one file a partition.

A kill at any moment loses no row and doubles none. The new file is written whole, under a name of its own. From then on its footer tells
that the pieces do not count any more, and they are deleted after that.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycluster.storage.location import Location, delete_files
from raycluster.storage.parallel import map_threads
from raycluster.tables.files import GROUP_ROWS, split_files
from raycluster.tables.footers import map_files, with_footer
from raycluster.tables.gates import check_rows
from raycluster.tables.names import PARTITION_ROWS, partition_and_generation, partition_name
from raycluster.tables.rows import among, file_ids


@dataclass(frozen=True)
class Merge:
    """The files that hold the rows of one partition, and the name of the file that is to hold them: the work of one task."""

    files: tuple[Location, ...]
    name: str


def plan_merges(folder: Location, expected: np.ndarray) -> tuple[list[Merge], list[Location]]:
    """Return the merges that a table is ready for, and the files in its folder that do not count any more.

    A partition is ready when it has pieces, and all of the ids `expected` (int64, ascending) that lie in it are there. A piece of an
    earlier version may reach into two partitions; these stay as they are.
    """
    files, stale = split_files(folder.list(suffix=".parquet"))
    held: dict[int, list[tuple[Location, np.ndarray]]] = defaultdict(list)
    crossed: set[int] = set()
    for file, ids in zip(files, map_files(file_ids, files), strict=True):
        partitions = np.unique(ids // PARTITION_ROWS).tolist()
        crossed |= set(partitions if len(partitions) > 1 else ())
        for partition in partitions:
            held[partition].append((file, ids))
    merges = []
    for partition, parts in held.items():
        numbers = [number for file, _ in parts if (number := partition_and_generation(file))]
        if partition in crossed or len(numbers) == len(parts):
            continue
        ids = np.sort(np.concatenate([each for _, each in parts]))
        if among(_expected_in(expected, partition), ids)[0].all():
            generation = max((number[1] for number in numbers), default=-1) + 1
            merges.append(Merge(tuple(file for file, _ in parts), partition_name(partition, generation)))
    return merges, stale


def merge(work: Merge) -> None:
    """Write the file of a partition, and then delete the files that held its rows before.

    If the process dies in between, Ray calls this again on another node: the file is there by then, and only the rest is deleted.
    Raises :class:`DataQualityError`, and deletes nothing, if a row is there twice.
    """
    target = work.files[0].parent / work.name
    if not target.exists():
        # The whole files are needed, so each of them is one request.
        tables = [pq.read_table(pa.BufferReader(content)) for content in map_threads(Location.read_bytes, work.files)]
        rows = pa.concat_tables(tables, promote_options="default").sort_by("row_id")
        ids = rows.column("row_id").to_numpy()
        check_rows(target.uri, ids, np.unique(ids), exact=True)
        target.write_table(with_footer(rows), GROUP_ROWS)
    delete_files(work.files)


def _expected_in(expected: np.ndarray, partition: int) -> np.ndarray:
    first, end = np.searchsorted(expected, [partition * PARTITION_ROWS, (partition + 1) * PARTITION_ROWS])
    return expected[first:end]
