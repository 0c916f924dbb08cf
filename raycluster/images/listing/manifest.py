"""The manifest: one numbered row a picture. The numbers stay the same when the prefix grows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.listing.columns import Labels, in_order
from raycluster.images.listing.patterns import kind_of, matching
from raycluster.images.listing.tars import list_tar
from raycluster.images.listing.uri_list import read_list
from raycluster.images.listing.walk import call_storage, walk
from raycluster.storage.location import Location, locate
from raycluster.tables.schemas import MANIFEST

IDENTITY = ("image_id", "uri", "size", "etag", "modified")
"""The columns that must be equal for a row to be the same picture as before. The label is not one of them."""
FILE_THREADS = 8
"""Number of tars and tables that are read at a time."""
SAMPLES = 5
"""Number of pictures taken as a sample of each source."""


@dataclass(frozen=True)
class Listing:
    """The pictures that the configuration's `images:` names."""

    table: pa.Table
    """One row a picture, the schema `MANIFEST` without `row_id`. Rows are ordered by source. Those of a folder or list are sorted by
    image_id; those inside tars and tables keep the order of the file, so that neighbors are read together."""
    samples: tuple[tuple[str, ...], ...]
    """URIs of a few pictures of each source, evenly spread."""
    other_files: int
    """Number of files (in a tar, members) that have no picture's name or are hidden."""


def list_images(
    sources: tuple[str, ...],
    storage: StorageConfig,
    labels: Labels,
    progress: Callable[[int], None] = lambda images: None,
    output: Location | None = None,
) -> Listing:
    """List the pictures of all sources. Rows lie in Arrow's memory; no Python object is kept for a row.

    Parameters
    ----------
    sources
        Folders or prefixes, single pictures, `.tar` shards (WebDataset), `.parquet` and `.csv` lists with a column `uri`,
        `.parquet` files with a column `image`. A glob or a range `{000..099}` names several such files.
    labels
        `folder`: the label is the parent folder's name, null directly below the prefix. A list's own column `label`
        and a shard's `.cls` members take precedence.
    progress
        Called, from several threads, with the number of further pictures that were found.
    output
        The run folder. It may lie below a source; files in it are not listed.

    Raises
    ------
    ConfigError
        A source is absent, unreadable, damaged, of an unsupported kind or holds no picture; a file name is not UTF-8; an
        image_id occurs twice.
    StorageError
        The storage does not answer.
    """
    tables, other_files = [], 0
    for source in sources:
        table, others = _list_source(source, storage, labels, progress, output)
        if not table.num_rows:
            raise ConfigError(f"images: no pictures in {source} ({_describe(others)}); {_WANTED}")
        tables.append(table)
        other_files += others.total()
    table = pa.concat_tables(tables)
    _refuse_duplicates(table)
    return Listing(table, tuple(map(_samples, tables)), other_files)


_WANTED = "give files named .jpg .jpeg .png .webp .gif .bmp .tif .tiff, .tar shards, or a .parquet or .csv list with a column `uri`, or .parquet files with a column `image`"


def number_rows(
    listing: pa.Table, previous: pa.Table | None, next_row_id: int, again: np.ndarray | None = None
) -> pa.Table:
    """Give every picture its `row_id`; the result has the schema `MANIFEST`, in the order of `listing`.

    A row that equals one of `previous` (a manifest) in all columns of `IDENTITY` keeps its number, unless that number is in `again`.
    All other rows are numbered from `next_row_id` on, in order.
    """
    kept = np.full(listing.num_rows, -1, dtype=np.int64)
    if previous is not None and previous.num_rows:
        before = pc.index_in(listing["image_id"], value_set=previous["image_id"].combine_chunks())
        candidates = previous.take(before)
        same = pc.is_valid(before)
        for name in IDENTITY:
            same = pc.and_(same, _equal(listing[name], candidates[name]))
        kept = pc.if_else(same, candidates["row_id"], -1).to_numpy()
        if again is not None:
            kept = np.where(np.isin(kept, again), -1, kept)
    fresh = next_row_id + np.cumsum(kept < 0) - 1
    row_ids = pa.array(np.where(kept < 0, fresh, kept), pa.int64())
    return listing.add_column(0, MANIFEST.field("row_id"), row_ids).cast(MANIFEST)


def grown_only(previous: pa.Table, current: pa.Table) -> bool:
    """Return whether every row of the previous manifest is still in the current one."""
    return bool(pc.all(pc.is_in(previous["row_id"], value_set=current["row_id"].combine_chunks())).as_py())


def content_digest(table: pa.Table) -> str:
    """Return the SHA-256 (hex) of every value of a manifest. It does not depend on row order or on the split into files and chunks."""
    table = in_order(table.select(MANIFEST.names).cast(MANIFEST), "row_id")
    digest = hashlib.sha256(str(table.num_rows).encode())
    for column in table.columns:
        for part in _plain_bytes(column):
            digest.update(part)
    return digest.hexdigest()


def _plain_bytes(column: pa.ChunkedArray) -> Iterator[memoryview]:
    """Yield the bytes of a column's values, independent of how Arrow stores them: no chunks, no offsets, no values under nulls."""
    for chunk in column.chunks:
        yield chunk.is_valid().to_numpy(zero_copy_only=False).data
    if not pa.types.is_string(column.type):
        for chunk in column.chunks:
            yield pc.fill_null(chunk.cast(pa.int64()), 0).to_numpy().data
        return
    texts = [pc.fill_null(chunk, "") for chunk in column.chunks]
    for text in texts:
        yield pc.binary_length(text).to_numpy().data
    for text in texts:
        _, offsets, data = text.buffers()
        bounds = np.frombuffer(offsets, np.int32)
        if data is not None:
            yield memoryview(data)[bounds[text.offset] : bounds[text.offset + len(text)]]


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """Compare two columns row by row; null equals null."""
    return pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(pc.is_null(left), pc.is_null(right)))


def _list_source(
    source: str, storage: StorageConfig, labels: Labels, progress: Callable[[int], None], output: Location | None
) -> tuple[pa.Table, Counter[str]]:
    location, kind = locate(source, storage), kind_of(source)
    info = call_storage(lambda: location.filesystem.get_file_info(location.path), source)
    if info.type == fs.FileType.Directory or (kind is None and info.type == fs.FileType.File):
        return walk(location, info, labels, progress, output)
    files = [location] if info.type == fs.FileType.File else matching(location, output) if kind else []
    if not files:
        raise ConfigError(f"images: {source} does not exist{_bucket_too(location)}; {_WANTED}")
    read = partial(_list_tar if kind == ".tar" else _list_table, labels=labels, progress=progress)
    # `pool.map` keeps the order of the files, whichever is read first.
    with ThreadPoolExecutor(FILE_THREADS) as pool:
        tables, others = zip(*pool.map(read, files), strict=True)
    return pa.concat_tables(tables), sum(others, Counter())


def _samples(table: pa.Table) -> tuple[str, ...]:
    places = np.unique(np.linspace(0, len(table) - 1, SAMPLES).round().astype(np.int64))
    return tuple(table["uri"][int(place)].as_py() for place in places)


def _bucket_too(location: Location) -> str:
    if location.scheme == "file":
        return ""
    bucket = location.bucket_and_key[0]
    info = call_storage(lambda: location.filesystem.get_file_info(bucket), f"s3://{bucket}")
    return f", nor does the bucket {bucket}" if info.type == fs.FileType.NotFound else ""


def _list_tar(file: Location, labels: Labels, progress: Callable[[int], None]) -> tuple[pa.Table, Counter[str]]:
    return call_storage(lambda: list_tar(file, labels, progress), file.uri)


def _list_table(file: Location, labels: Labels, progress: Callable[[int], None]) -> tuple[pa.Table, Counter[str]]:
    table = call_storage(lambda: read_list(file, labels), file.uri)
    progress(len(table))
    return table, Counter()


def _describe(others: Counter[str]) -> str:
    if not others:
        return "it is empty"
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in others.most_common(5))
    hint = "; to read these shards, give the pattern <folder>/*.tar" if others[".tar"] else ""
    return f"{others.total()} other files: {kinds}{hint}"


def _refuse_duplicates(table: pa.Table) -> None:
    """Raise ConfigError if an image_id occurs twice. The message names two places for each of the first three such ids."""
    ordered = in_order(table.select(["image_id", "uri"]), "image_id")
    ids = ordered["image_id"]
    same = pc.equal(ids[1:], ids[:-1])
    if not pc.any(same).as_py():
        return
    at = np.flatnonzero(same.to_numpy())
    counts = pc.value_counts(ids.take(pa.array(at)))
    examples = []
    for item in counts[:3].to_pylist():
        place = pc.index(ids, item["values"]).as_py()
        one, other = (ordered["uri"][place + offset].as_py() for offset in (0, 1))
        examples.append(f"{item['values']!r} ({item['counts'] + 1} times: {one}, {other})")
    raise ConfigError(
        f"images: {len(counts)} image_ids occur more than once: {', '.join(examples)}; "
        "give one folder that holds them all, or a list whose column `image_id` is unique"
    )
