"""Use ready-made embeddings in place of an encoder: list them as a manifest, and import them as the embeddings table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.images.listing.run_folders import without_runs
from raycluster.storage.location import Location, locate
from raycluster.tables.files import write_pieces
from raycluster.tables.rows import among
from raycluster.tables.schemas import MANIFEST, embeddings_schema

BATCH = 4096


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


def list_provided(files: list[Location]) -> pa.Table:
    """Return the manifest (schema MANIFEST without row_id) of Parquet files with `image_id`, `embedding`, optional `label`, `uri`.

    `etag` is a hash of the vector, so that a changed embedding counts as a changed image. Raises :class:`ConfigError` if no row has
    an embedding, embeddings have different lengths, or an `image_id` is missing or occurs twice.
    """
    tables, lengths = [], set[int]()
    for file in files:
        for batch in _batches(file):
            ids = batch.column("image_id").cast(pa.string())
            vectors, valid = _vectors(batch, file)
            lengths |= {vectors.shape[1]} if len(vectors) else set()
            if len(lengths) > 1:
                raise _different_lengths(file, lengths)
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
            tables.append(pa.table(columns))
    if not any(lengths):
        raise ConfigError(
            f"embeddings: no row of {files[0].uri} or of the other files has an embedding; fill the column `embedding`"
        )
    table = pa.concat_tables(tables)
    if table.column("image_id").null_count:
        raise ConfigError("embeddings: some rows have no image_id; give each row a unique one")
    counts = table.column("image_id").value_counts()
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if doubled:
        raise ConfigError(
            f"embeddings: {len(doubled)} image_ids occur more than once ({', '.join(doubled[:3])}); make them unique"
        )
    return table.cast(pa.schema([field for field in MANIFEST if field.name != "row_id"]))


def dimension(files: list[Location]) -> int | None:
    """Return the length of the first embedding that is not null; None if all are null."""
    found = (_vectors(batch, file)[0] for file in files for batch in _batches(file, ["embedding"]))
    return next((vectors.shape[1] for vectors in found if len(vectors)), None)


def import_provided(files: list[Location], manifest: pa.Table, done: np.ndarray, folder: Location) -> Iterator[int]:
    """Write the embeddings of the manifest's rows that are not in `done`; yield the number of rows of each part file."""
    row_ids = _row_ids(files, manifest)
    # Find the dimension first: the files may begin with rows that have a null embedding, and writing these rows needs it.
    dim, start, finished = dimension(files), 0, np.sort(done)
    assert dim  # list_provided has found an embedding
    for file in files:
        for batch in _batches(file):
            ids = row_ids[start : start + len(batch)]
            start += len(batch)
            new = (ids >= 0) & ~among(ids, finished)[0]
            if new.any():
                vectors, valid = _vectors(batch, file)
                image_ids = batch.column("image_id").cast(pa.string())
                part = _part(ids, image_ids, vectors, valid, dim).filter(pa.array(new))
                write_pieces(folder, part)
                yield len(part)


def _row_ids(files: list[Location], manifest: pa.Table) -> np.ndarray:
    """Return the manifest's row_id of every row of the sources, in their order, int64 [n]; -1 for a row that was added after the listing."""
    columns = [batch.column("image_id").cast(pa.string()) for file in files for batch in _batches(file, ["image_id"])]
    # Look up all rows in one call, because each call builds a hash table of every id of the manifest.
    place = pc.index_in(pa.chunked_array(columns, pa.string()), value_set=manifest.column("image_id").combine_chunks())
    return pc.fill_null(manifest.column("row_id").take(place), -1).to_numpy()


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


def _batches(file: Location, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
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
    wanted = [name for name in ("image_id", "embedding", "label", "uri") if name in schema.names]
    yield from parquet.iter_batches(BATCH, columns=columns or wanted)


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
