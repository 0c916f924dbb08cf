"""Use ready-made embeddings in place of an encoder: list them as a manifest, and import them as the embeddings table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.listing.columns import LISTING
from raycluster.images.listing.duplicates import refuse_duplicates
from raycluster.images.listing.run_folders import without_runs
from raycluster.images.listing.spill import Spill
from raycluster.storage.location import Location, locate
from raycluster.storage.parallel import map_threads
from raycluster.tables.files import write_pieces
from raycluster.tables.rows import Span, among, rows_by_id
from raycluster.tables.schemas import embeddings_schema

BATCH = 4096
PIECE_ROWS = 4096
"""Rows of a piece of the embeddings table."""
SLICE_ROWS = 65_536
"""Rows of a slice, if the row groups of the file are not larger."""


def find_files(sources: tuple[str, ...], storage: StorageConfig, output: Location) -> list[Location]:
    """Return the Parquet files of all sources, without those in run folders such as `output`.

    Raises :class:`ConfigError` for a source without any Parquet file.
    """
    files: list[Location] = []
    for source in sources:
        place = locate(source, storage)
        if place.path == output.path:
            raise ConfigError(
                f"output: {source} is the folder of the embeddings; give the output its own folder, which may lie in that one"
            )
        found = [place] if place.is_file() else without_runs(place, place.list(recursive=True), output)
        found = [file for file in found if file == place or file.name.endswith(".parquet")]
        if not found:
            raise ConfigError(
                f"embeddings: {source}: no Parquet file is there; give a Parquet file, or a folder that holds some"
            )
        files += found
    return files


@dataclass(frozen=True)
class Slice:
    """Some row groups of a file: the work of one task."""

    file: Location
    groups: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class ProvidedListing:
    """The ready-made embeddings."""

    rows: Spill
    """One row an embedding, schema `LISTING`, in the order of the files. `etag` is a hash of the vector, so that a changed embedding counts
    as a changed image."""
    slices: tuple[Slice, ...]
    """The slices of the files, whose rows these are, in order."""
    dim: int
    """Length of the embeddings."""


MapSlices = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Calls a function for each slice, and gives the results in order."""


def list_provided(files: list[Location], map_slices: MapSlices = map_threads) -> ProvidedListing:
    """List the rows of Parquet files with `image_id`, `embedding`, optional `label`, `uri`. The rows lie on this machine's disk.

    `map_slices` reads the files; a run reads them in tasks. Raises :class:`ConfigError` if no row has an embedding, embeddings have
    different lengths, or an `image_id` is missing or occurs twice.
    """
    slices = tuple(each for some in map_threads(_cut, files) for each in some)
    rows, lengths = Spill(LISTING), set[int]()
    for each, (table, found) in zip(slices, map_slices(_list_slice, slices), strict=True):
        rows.append(table)
        lengths |= found
        if len(lengths) > 1:
            raise _different_lengths(each.file, lengths)
    if not any(lengths):
        raise ConfigError(
            f"embeddings: no row of {files[0].uri} or of the other files has an embedding; fill the column `embedding`"
        )
    refuse_duplicates(rows, "embeddings", "make them unique")
    return ProvidedListing(rows, slices, lengths.pop())


def _cut(file: Location) -> list[Slice]:
    """Return the file in slices of about `SLICE_ROWS` rows."""
    metadata = _open(file).metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    of = np.cumsum([0, *sizes[:-1]]) // SLICE_ROWS
    groups = [tuple(np.flatnonzero(of == number).tolist()) for number in np.unique(of)]
    return [Slice(file, some, sum(sizes[group] for group in some)) for some in groups if sizes]


def _list_slice(some: Slice) -> tuple[pa.Table, set[int]]:
    """Return the rows of a slice (schema LISTING), and the lengths of its embeddings."""
    tables, lengths = [LISTING.empty_table()], set[int]()
    for batch in _batches(some):
        ids = batch.column("image_id").cast(pa.string())
        if ids.null_count:
            raise ConfigError(f"embeddings: {some.file.uri}: some rows have no image_id; give each row a unique one")
        vectors, valid = _vectors(batch, some.file)
        lengths |= {vectors.shape[1]} if len(vectors) else set()
        etags = np.full(len(batch), None, object)
        etags[valid] = [hashlib.sha256(vector).hexdigest()[:16] for vector in vectors]
        columns = {
            "image_id": ids,
            "uri": _optional(batch, "uri") if "uri" in batch.schema.names else ids,
            "size": pa.nulls(len(batch), pa.int64()),
            "etag": pa.array(etags, pa.string()),
            "modified": pa.nulls(len(batch), pa.timestamp("us", tz="UTC")),
            "label": _optional(batch, "label"),
        }
        tables.append(pa.table(columns).cast(LISTING))
    return pa.concat_tables(tables), lengths


def dimension(files: list[Location]) -> int | None:
    """Return the length of the first embedding that is not null; None if all are null."""
    batches = ((file, _open(file).iter_batches(BATCH, columns=["embedding"])) for file in files)
    found = (_vectors(batch, file)[0] for file, some in batches for batch in some)
    return next((vectors.shape[1] for vectors in found if len(vectors)), None)


@dataclass(frozen=True)
class Provided:
    """Ready-made embeddings whose rows are numbered."""

    slices: tuple[Slice, ...]
    row_ids: np.ndarray
    """int64 [n]: ids of the rows of all slices, in order."""
    dim: int

    def missing(self, wanted: np.ndarray) -> Iterator[tuple[Slice, np.ndarray, np.ndarray]]:
        """Yield the slices that have rows with an id in `wanted` (ascending), with the ids of their rows and which of them are wanted."""
        start = 0
        for each in self.slices:
            ids = self.row_ids[start : start + each.rows]
            start += each.rows
            new = among(ids, wanted)[0]
            if new.any():
                yield each, ids, new


def import_slice(
    work: tuple[Slice, np.ndarray, np.ndarray], dim: int, manifest: Sequence[Span], folder: Location
) -> int:
    """Write the embeddings of some rows of a slice, and return their number. `work` is an item of :meth:`Provided.missing`.

    `manifest`: its part files. Raises :class:`ConfigError` if the file no longer has the rows that were listed.
    """
    some, row_ids, wanted = work
    if some not in _cut(some.file):
        raise _changed(some.file)
    start = 0
    for batch in _batches(some, PIECE_ROWS):
        ids, new = row_ids[start : start + len(batch)], wanted[start : start + len(batch)]
        start += len(batch)
        image_ids = batch.column("image_id").cast(pa.string())
        if not _as_listed(manifest, ids[new], image_ids.filter(pa.array(new))):
            raise _changed(some.file)
        if new.any():
            vectors, valid = _vectors(batch, some.file)
            write_pieces(folder, _part(ids, image_ids, vectors, valid, dim).filter(pa.array(new)))
    return int(wanted.sum())


def _as_listed(manifest: Sequence[Span], row_ids: np.ndarray, image_ids: pa.Array) -> bool:
    """Return whether the manifest has these image_ids under these numbers."""
    if not len(row_ids):
        return True
    order = np.argsort(row_ids)
    listed = rows_by_id(manifest, row_ids[order], ["image_id"]).column("image_id")
    return bool(listed.equals(pa.chunked_array([image_ids.take(pa.array(order))])))


def _changed(file: Location) -> ConfigError:
    return ConfigError(f"embeddings: {file.uri} has changed since its rows were listed; run again")


def _part(ids: np.ndarray, image_ids: pa.Array, vectors: np.ndarray, valid: np.ndarray, dim: int) -> pa.Table:
    """Return rows of the embeddings table. `vectors` [m, dim]: the embeddings of the rows that are `valid`, bool [n]."""
    with np.errstate(over="ignore"):
        halves = vectors.reshape(-1, dim).astype(np.float16)
    reasons = np.full(len(ids), "the embedding is null", object)
    finite, nonzero = np.isfinite(halves).all(axis=1), halves.any(axis=1)
    beyond = "the embedding holds NaN, infinite values or values beyond float16"
    reasons[valid] = np.select([~finite, ~nonzero], [beyond, "the embedding is zero"], default="")
    reasons[reasons == ""] = None
    good = finite & nonzero
    embeddings = np.zeros((len(ids), dim), np.float16)
    embeddings[np.flatnonzero(valid)[good]] = halves[good]
    failed = np.array([reason is not None for reason in reasons])
    return pa.table(
        [
            pa.array(ids, pa.int64()),
            image_ids,
            pa.array(np.where(failed, "failed", "ok"), pa.string()),
            pa.array(reasons, pa.string()),
            pa.nulls(len(ids), pa.int32()),
            pa.nulls(len(ids), pa.int32()),
            pa.nulls(len(ids), pa.binary(16)),
            pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), dim, mask=pa.array(failed)),
        ],
        schema=embeddings_schema(dim),
    )


def _open(file: Location) -> pq.ParquetFile:
    """Open a file and check its columns."""
    try:
        parquet = pq.ParquetFile(file.path, filesystem=file.filesystem)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"embeddings: {file.uri} is not a Parquet file ({error}); give Parquet files") from None
    schema = parquet.schema_arrow
    missing = {"image_id", "embedding"} - set(schema.names)
    if missing:
        raise ConfigError(
            f"embeddings: {file.uri} lacks the column {' and '.join(sorted(missing))}; it has {', '.join(schema.names)}"
        )
    kind = schema.field("embedding").type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    # A column that holds only nulls has the type null, unless its writer gave it another.
    if not pa.types.is_null(kind) and not (listed and pa.types.is_floating(kind.value_type)):
        raise ConfigError(f"embeddings: {file.uri}: column `embedding` holds {kind}; it must hold lists of floats")
    return parquet


def _batches(some: Slice, rows: int = BATCH) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a slice, `rows` at a time."""
    parquet = _open(some.file)
    wanted = [name for name in ("image_id", "embedding", "label", "uri") if name in parquet.schema_arrow.names]
    yield from parquet.iter_batches(rows, row_groups=list(some.groups), columns=wanted)


def _vectors(batch: pa.RecordBatch, file: Location) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of a batch that are not null, [m, d], and which rows they belong to, bool [n]."""
    column = batch.column("embedding")
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if not valid.any():
        return np.empty((0, 0), np.float32), valid
    given = column.drop_null()
    lengths = set(pc.unique(pc.list_value_length(given)).to_pylist())
    if len(lengths) > 1:
        raise _different_lengths(file, lengths)
    return given.flatten().to_numpy(zero_copy_only=False).reshape(len(given), -1), valid


def _different_lengths(file: Location, lengths: set[int]) -> ConfigError:
    return ConfigError(
        f"embeddings: {file.uri}: the embeddings have different lengths ({sorted(lengths)}); use one encoder for all"
    )


def _optional(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(name).cast(pa.string()) if name in batch.schema.names else pa.nulls(len(batch), pa.string())
