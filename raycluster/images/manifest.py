"""The manifest: one numbered row a picture, whose numbers stay when the prefix grows."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.uri_list import LIST_SUFFIXES, read_list
from raycluster.images.walk import ask, walk
from raycluster.storage import locate
from raycluster.tables import MANIFEST

IDENTITY = ("image_id", "uri", "size", "etag", "modified")
"""The columns that make a row the same picture as before; the label is not one of them."""


@dataclass(frozen=True)
class Listing:
    """What `images:` names."""

    table: pa.Table
    """One row a picture, sorted by image_id: the schema `MANIFEST` without `row_id`."""
    other_files: int
    """Files beside the pictures that are no pictures by their names, or hidden."""


def list_images(sources: tuple[str, ...], storage: StorageConfig, labels: Literal["folder"] | None) -> Listing:
    """List the pictures of all sources.

    Parameters
    ----------
    sources
        Folders or prefixes, single pictures, or `.parquet` and `.csv` lists with a column `uri`.
    labels
        `folder`: the label is the parent folder's name, null directly below the prefix. A list's own column `label`
        goes before it.

    Raises
    ------
    ConfigError
        A source is absent, unreadable, of an unsupported kind or holds no picture; a file name is not UTF-8; an
        image_id occurs twice.
    StorageError
        The storage does not answer.
    """
    tables, other_files = [], 0
    for source in sources:
        table, others = _list_source(source, storage, labels)
        if not table.num_rows:
            raise ConfigError(f"images: no pictures in {source} ({_describe(others)}); {_WANTED}")
        tables.append(table)
        other_files += others.total()
    table = pa.concat_tables(tables).sort_by("image_id").combine_chunks()
    _refuse_duplicates(table["image_id"])
    return Listing(table, other_files)


_WANTED = "give files named .jpg .jpeg .png .webp .gif .bmp .tif .tiff, or a .parquet or .csv list with a column `uri`"


def number_rows(listing: pa.Table, previous: pa.Table | None, next_row_id: int) -> pa.Table:
    """Give every picture its `row_id`; the result has the schema `MANIFEST`, in the order of `listing`.

    A row that equals one of `previous` (a manifest) in all columns of `IDENTITY` keeps its number; new and changed
    ones are numbered from `next_row_id` on, in order.
    """
    kept = np.full(listing.num_rows, -1, dtype=np.int64)
    if previous is not None and previous.num_rows:
        before = pc.index_in(listing["image_id"], value_set=previous["image_id"].combine_chunks())
        candidates = previous.take(before)
        same = pc.is_valid(before)
        for name in IDENTITY:
            same = pc.and_(same, _equal(listing[name], candidates[name]))
        kept = pc.if_else(same, candidates["row_id"], -1).to_numpy()
    fresh = next_row_id + np.cumsum(kept < 0) - 1
    row_ids = pa.array(np.where(kept < 0, fresh, kept), pa.int64())
    return listing.add_column(0, MANIFEST.field("row_id"), row_ids).cast(MANIFEST)


def grown_only(previous: pa.Table, current: pa.Table) -> bool:
    """Whether every row of the previous manifest is still in the current one."""
    return bool(pc.all(pc.is_in(previous["row_id"], value_set=current["row_id"].combine_chunks())).as_py())


def content_digest(table: pa.Table) -> str:
    """SHA-256 (hex) over every value of a manifest; neither row order nor the cut into files and chunks counts."""
    table = table.select(MANIFEST.names).cast(MANIFEST).sort_by("row_id")
    digest = hashlib.sha256(str(table.num_rows).encode())
    for column in table.columns:
        for part in _plain_bytes(column):
            digest.update(part)
    return digest.hexdigest()


def _plain_bytes(column: pa.ChunkedArray) -> Iterator[memoryview]:
    """What a column says, free of how Arrow stores it: no chunks, no offsets, no values under nulls."""
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
    """Row by row; null equals null."""
    return pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(pc.is_null(left), pc.is_null(right)))


def _list_source(
    source: str, storage: StorageConfig, labels: Literal["folder"] | None
) -> tuple[pa.Table, Counter[str]]:
    location = locate(source, storage)
    suffix = os.path.splitext(location.name)[1].lower()
    if suffix == ".tar":
        raise ConfigError(f"images: {source}: tars are not supported yet in this version: extract them into a folder")
    info = ask(lambda: location.filesystem.get_file_info(location.path), source)
    if info.type == fs.FileType.NotFound:
        raise ConfigError(f"images: {source} does not exist; {_WANTED}")
    if suffix in LIST_SUFFIXES and info.type == fs.FileType.File:
        return read_list(location, labels), Counter()
    return walk(location, info, labels)


def _describe(others: Counter[str]) -> str:
    if not others:
        return "it is empty"
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in others.most_common(5))
    return f"{others.total()} other files: {kinds}"


def _refuse_duplicates(image_ids: pa.ChunkedArray) -> None:
    """Raise ConfigError if a value occurs twice; `image_ids` is sorted."""
    twice = image_ids[1:].filter(pc.equal(image_ids[1:], image_ids[:-1]))
    if not len(twice):
        return
    counts = pc.value_counts(twice)
    examples = ", ".join(f"{item['values']!r} ({item['counts'] + 1} times)" for item in counts[:3].to_pylist())
    raise ConfigError(
        f"images: {len(counts)} image_ids occur more than once: {examples}; "
        "give one common folder, or a list whose column `image_id` is unique"
    )
