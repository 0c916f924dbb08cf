"""Removal: a table is written again without some of its rows, file by file.

A kill at any moment loses no other row and doubles none. The file of a partition gets a new generation, and a piece whose name tells its
rows is replaced by one that begins within them; the file before does not count from then on. Any other piece is replaced by one of the same
name. Files that do not count any more must be deleted first, because what covers them may be removed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycluster.storage.location import Location
from raycluster.tables.files import split_files
from raycluster.tables.footers import KEY, map_files, with_footer
from raycluster.tables.names import named_ids, part_name, partition_and_generation, partition_name
from raycluster.tables.rows import among, file_ids


@dataclass(frozen=True)
class Removal:
    """A part file, and the ids of those of its rows that are to go: the work of one task."""

    file: Location
    row_ids: np.ndarray
    """int64, ascending."""
    remaining: int
    """Number of the other rows."""


def plan_removals(folder: Location, kept: np.ndarray) -> tuple[list[Removal], list[Location], int]:
    """Find the rows of a table whose ids are not among `kept` (int64, ascending).

    Returns the files that hold such rows, the files in the table's folder that do not count any more, and the number of the table's
    rows that stay.
    """
    files, stale = split_files(folder.list(suffix=".parquet"))
    removals, staying = [], 0
    for file, ids in zip(files, map_files(file_ids, files), strict=True):
        stays = among(ids, kept)[0]
        staying += int(stays.sum())
        if not stays.all():
            removals.append(Removal(file, np.sort(ids[~stays]), int(stays.sum())))
    return removals, stale, staying


def remove_rows(work: Removal) -> int:
    """Write a part file without the rows that are to go, and return their number. The file before is deleted after that.

    If the process dies in between, Ray calls this again on another node: what is done by then is not done again.
    """
    target = _target(work)
    if work.remaining and work.file.exists() and (target == work.file or not target.exists()):
        target.write_bytes(_without(work))
    if target != work.file or not work.remaining:
        work.file.delete()
    return len(work.row_ids)


def _target(work: Removal) -> Location:
    """Return the file that is to hold the rows that stay."""
    number, named = partition_and_generation(work.file), named_ids(work.file)
    if number is not None:
        return work.file.parent / partition_name(number[0], number[1] + 1)
    if named is not None and work.remaining:
        return work.file.parent / part_name(np.setdiff1d(named, work.row_ids))
    return work.file


def _without(work: Removal) -> Any:
    """Return the new file as a buffer. It has the row groups, the compression and the encodings of the old one."""
    sink = pa.BufferOutputStream()
    with pq.ParquetFile(work.file.path, filesystem=work.file.filesystem, pre_buffer=True) as parquet:
        schema = parquet.schema_arrow
        metadata = {key: value for key, value in (schema.metadata or {}).items() if key != KEY}
        with pq.ParquetWriter(sink, schema.with_metadata(metadata), **_written_like(parquet.metadata)) as writer:
            known = []
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group)
                gone = among(rows.column("row_id").to_numpy(), work.row_ids)[0]
                rows = rows.filter(pa.array(~gone)).replace_schema_metadata(metadata)
                if len(rows):
                    writer.write_table(rows, row_group_size=len(rows))
                known.append(rows.select([name for name in ("row_id", "status") if name in rows.column_names]))
            writer.add_key_value_metadata({KEY: with_footer(pa.concat_tables(known)).schema.metadata[KEY]})
    return sink.getvalue()


def _written_like(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Return the options of a Parquet writer with which the columns of a file were written."""
    group = metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    return {
        "compression": {each.path_in_schema: each.compression.replace("UNCOMPRESSED", "NONE") for each in columns},
        "use_dictionary": [each.path_in_schema for each in columns if each.has_dictionary_page],
        "write_statistics": [each.path_in_schema for each in columns if each.is_stats_set],
    }
