"""The shard stage: write many small objects once as few large Parquet files of checked, resized pictures, and read pictures from them.

A part holds up to `PART_ROWS` pictures; a kill costs each task at most that many. Readers read a part by row groups of `GROUP_ROWS`
pictures. A row group is one request to object storage, and a reader needs only one in memory at a time.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycluster.compute.resources import Resources
from raycluster.compute.tasks import map_tasks
from raycluster.config import EncoderConfig, StorageConfig
from raycluster.images.fetch import retry
from raycluster.images.pictures import ORIGINAL, ROW, fetched_slices
from raycluster.images.shard_pictures import shard_rows
from raycluster.storage.location import Location, locate
from raycluster.storage.parallel import map_threads
from raycluster.tables.blocks import Block, check_found, find_blocks
from raycluster.tables.footers import footer_of, map_files
from raycluster.tables.names import part_name
from raycluster.tables.rows import among, wanted_by_file
from raycluster.tables.schemas import SHARDS

PART_ROWS = 1024
"""Pictures of a part file. For photographs at the default size for encoders of 224 pixels: 50 to 80 MB, and half a minute of a core."""
GROUP_ROWS = 64
"""Pictures of a row group. For the same photographs: 3 to 5 MB."""


@dataclass(frozen=True)
class ShardJob:
    """What every task of the stage needs to know."""

    size: int
    """Pixels of the short side of a stored picture (:func:`raycluster.images.shard_pictures.stored_size`)."""
    limits: EncoderConfig
    storage: StorageConfig
    folder: Location


def shard(job: ShardJob, manifest: list[Location], wanted: np.ndarray, resources: Resources) -> Iterator[Counter[str]]:
    """Write shards of the manifest's rows with an id in `wanted` (ascending), and yield the status counts of each part."""
    # A part lies in one partition, as the files of the manifest do. Every block of a file but the last has whole row groups. Few images
    # make smaller blocks, so that every core is still busy.
    shares = wanted_by_file(manifest, wanted)
    fair = math.ceil(4 * max(1, int(resources.cpus)) / max(1, len(shares)))
    blocks = (
        block for file, ids in shares for block in find_blocks([file], ids, PART_ROWS, fair=fair, multiple=GROUP_ROWS)
    )

    def write_part(block: Block) -> Counter[str]:
        rows = block.read((*ROW, *ORIGINAL)).sort_by("row_id")
        return write_groups(job.folder / part_name(rows.column("row_id")), _groups(rows, job))

    yield from map_tasks(write_part, blocks, common=resources.common)


def _groups(rows: pa.Table, job: ShardJob) -> Iterator[pa.Table]:
    """Yield the row groups of a part. Memory holds one of them and some originals (:func:`fetched_slices`), beside the part itself."""
    made: list[pa.Table] = []
    for part, fetched in fetched_slices(rows, job.storage, job.limits.max_bytes, GROUP_ROWS):
        made.append(shard_rows(part, fetched, job.size, job.limits.max_pixels))
        ready = pa.concat_tables(made)
        if len(ready) >= GROUP_ROWS:
            yield ready.slice(0, GROUP_ROWS)
            made = [ready.slice(GROUP_ROWS)]
    if sum(map(len, made)):
        yield pa.concat_tables(made)


def write_groups(part: Location, groups: Iterable[pa.Table]) -> Counter[str]:
    """Write a part group by group, and return its status counts.

    The file is made in memory: a bucket would keep what was written of it before an error, under a name that promises all rows.
    """
    counts: Counter[str] = Counter()
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        SHARDS,
        # Picture files are compressed already, and hardly any are equal.
        compression={name: "NONE" if name == "image" else "ZSTD" for name in SHARDS.names},
        use_dictionary=["status", "error"],
        write_statistics=["row_id"],
    ) as writer:
        ids = []
        for group in groups:
            writer.write_table(group)
            ids.append(group.column("row_id").to_numpy())
            counts.update(group.column("status").to_pylist())
        writer.add_key_value_metadata(footer_of(np.concatenate(ids), dict(counts)).metadata())
    part.write_bytes(sink.getvalue())
    return counts


def find_rows(shards: Sequence[Location], wanted: np.ndarray) -> pa.Table:
    """Return where the pictures of the rows `wanted` (ascending) lie.

    Columns: row_id (ascending), uri (of the part), group (number of the row group in it), place (row in the row group).
    """
    found = map_files(lambda file: _find_in(file, wanted), shards)
    check_found(shards, sum(map(len, found)), len(wanted))
    return pa.concat_tables(found).unify_dictionaries().sort_by("row_id")


def _find_in(file: Location, wanted: np.ndarray) -> pa.Table:
    with pq.ParquetFile(file.path, filesystem=file.filesystem) as parquet:
        ids = parquet.read(columns=["row_id"]).column("row_id").to_numpy()
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    keep = among(ids, wanted)[0]
    groups = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    places = np.arange(len(ids), dtype=np.int32) - np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    uri = pa.DictionaryArray.from_arrays(np.zeros(int(keep.sum()), np.int32), [file.uri])
    return pa.table({"row_id": ids[keep], "uri": uri, "group": groups[keep], "place": places[keep].astype(np.int32)})


def group_ids(rows: pa.Table) -> np.ndarray:
    """Return, for each of the rows (:func:`find_rows`), the smallest of their row ids that lies in the same row group, int64 [n].

    This number stays the same when parts are added.
    """
    ids, groups = rows.column("row_id").to_numpy(), rows.column("group").to_numpy()
    codes = rows.column("uri").combine_chunks().indices.to_numpy().astype(np.int64)
    _, first, of = np.unique(codes << 32 | groups, return_index=True, return_inverse=True)
    return ids[first][of]


class GroupReader:
    """Reads pictures for batches where many batches need the same row group: keeps the groups in use, so that each is read once.

    Groups that memory no longer holds, after a restart or beyond `capacity`, are read again.
    """

    def __init__(self, storage: StorageConfig, capacity: int) -> None:
        """`capacity`: most row groups kept in memory between calls."""
        self.storage, self.capacity = storage, capacity
        self.kept: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self.reads = 0

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return the rows with status, error, image instead of uri, group, place (:func:`find_rows`). Other columns stay."""
        keys = list(zip(rows.column("uri").to_pylist(), rows.column("group").to_pylist(), strict=True))
        places = rows.column("place").to_numpy()
        at: dict[tuple[str, int], list[int]] = {}
        for index, key in enumerate(keys):
            at.setdefault(key, []).append(index)
        self._open(list(at))
        parts = pa.concat_tables(self.kept[key].take(places[indices]) for key, indices in at.items())
        found = parts.take(np.argsort(np.concatenate(list(at.values()))))
        self._forget()
        for name in found.column_names:
            rows = rows.append_column(name, found.column(name))
        return rows.drop_columns(["uri", "group", "place"])

    def _open(self, keys: list[tuple[str, int]]) -> None:
        new = [key for key in keys if key not in self.kept]
        self.kept.update(zip(new, map_threads(self._read, new), strict=True))
        self.reads += len(new)
        for key in keys:
            self.kept.move_to_end(key)

    def _read(self, key: tuple[str, int]) -> pa.Table:
        file = locate(key[0], self.storage)

        def read() -> pa.Table:
            with pq.ParquetFile(file.path, filesystem=file.filesystem, pre_buffer=True) as parquet:
                return parquet.read_row_group(key[1], columns=["status", "error", "image"])

        return retry(read, file.uri)

    def _forget(self) -> None:
        while len(self.kept) > self.capacity:
            self.kept.popitem(last=False)
