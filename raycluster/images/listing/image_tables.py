"""List and read pictures inside Parquet files: a column `image` of bytes, or of structs with a field `bytes`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycluster.errors import ConfigError
from raycluster.images.addresses import row_uri
from raycluster.images.listing.columns import LISTING, text
from raycluster.storage.location import Location

log = logging.getLogger(__name__)

COLUMN = "image"
BUFFER = 2**20
"""Bytes of a column that Arrow reads at a time. Without this limit it would read the pictures of a whole row group into memory."""
BATCH = 16
"""Pictures decoded from the table at a time."""
LARGE_GROUP = 4096
"""Rows of a row group above which a warning is logged.

A batch of pictures is found only by reading its row group from the beginning, so a large group is read again and again.
"""


def list_rows(parquet: pq.ParquetFile, file: Location, file_size: int, modified_us: int | None) -> pa.Table:
    """Return the pictures of a table as rows of schema `LISTING`, in its order.

    Sizes are null, because only reading the pictures would tell them. The columns `image_id` and `label` are used if they exist; without
    an `image_id` the address of the row is the id. Raises :class:`ConfigError`.
    """
    _image_column(parquet.schema_arrow, file)
    names = [name for name in ("image_id", "label") if name in parquet.schema_arrow.names]
    count = parquet.metadata.num_rows
    rows = parquet.read(columns=names) if names else pa.table({"": pa.nulls(count)})
    largest = max((parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)), default=0)
    if largest > LARGE_GROUP:
        log.warning(
            "images: %s has row groups of up to %d pictures, and a task reads its row group from the beginning to reach its own "
            "pictures; write the file with row groups of a few hundred pictures",
            file.uri,
            largest,
        )
    numbers = pa.array(np.arange(count)).cast(pa.string())
    ids = pc.binary_join_element_wise(row_uri(file.uri, ""), numbers, "")
    columns = {
        "image_id": pc.coalesce(text(rows, "image_id", file), ids),
        "uri": pc.binary_join_element_wise(ids, str(file_size), "/"),
        "size": pa.nulls(count, pa.int64()),
        "etag": pa.nulls(count, pa.string()),
        "modified": pa.repeat(pa.scalar(modified_us, pa.int64()).cast(LISTING.field("modified").type), count),
        "label": text(rows, "label", file),
    }
    return pa.table(columns, schema=LISTING)


def read_rows(source: pa.NativeFile, rows: Sequence[int]) -> Iterator[bytes | int | Exception | None]:
    """Yield the pictures in these rows (ascending, repeats allowed), in that order: bytes, or None for a null.

    For a row beyond the end it yields the table's number of rows, and for a row in a damaged part of the file the error. Every row group
    is read once, up to the last row wanted of it. Raises :class:`pyarrow.ArrowException` or :class:`OSError` for a file that cannot be
    opened as Parquet, and :class:`ConfigError` for one without pictures.
    """
    parquet = pq.ParquetFile(source, buffer_size=BUFFER)
    column = _image_column(parquet.schema_arrow, None)
    wanted = np.asarray(rows, np.int64)
    start = 0
    for group in range(parquet.num_row_groups):
        stop = start + parquet.metadata.row_group(group).num_rows
        inside = wanted[(wanted >= start) & (wanted < stop)]
        if len(inside):
            yield from _read_group(parquet, column, group, start, inside)
        start = stop
    for _ in range(int((wanted >= start).sum())):
        yield start


def _read_group(
    parquet: pq.ParquetFile, column: str, group: int, start: int, wanted: np.ndarray
) -> Iterator[bytes | Exception | None]:
    done = 0
    try:
        for batch in parquet.iter_batches(BATCH, row_groups=[group], columns=[column], use_threads=False):
            stop = start + len(batch)
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")
            while done < len(wanted) and wanted[done] < stop:
                yield images[int(wanted[done]) - start].as_py()
                done += 1
            if done == len(wanted):
                return
            start = stop
    except (pa.ArrowException, OSError) as error:
        for _ in wanted[done:]:
            yield error


def _image_column(schema: pa.Schema, file: Location | None) -> str:
    """Return the path of the column or its field `bytes`, for Parquet. Raises :class:`ConfigError` if it holds no bytes."""
    where = f"images: {file.uri}: " if file else ""
    if schema.names.count(COLUMN) != 1:
        raise ConfigError(f"{where}the table has no column `image`, or several; it needs exactly one")
    kind = schema.field(COLUMN).type
    if _is_bytes(kind):
        return COLUMN
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type):
        return f"{COLUMN}.bytes"
    raise ConfigError(
        f"{where}column `image` holds {kind}; it must hold the bytes of picture files, or structs with a field `bytes`"
    )


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
