"""Make the columns of a listing: collect them row by row in Arrow's memory, read them from tables, or derive them from paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from raycluster.errors import ConfigError
from raycluster.storage.location import Location
from raycluster.tables.schemas import MANIFEST

LISTING = MANIFEST.remove(MANIFEST.get_field_index("row_id"))
"""Schema of a manifest whose rows are not numbered yet."""
CHUNK = 4096
"""Most rows that exist as Python objects at a time."""

Labels = Literal["folder"] | None
"""Values of the configuration's `labels`."""


class Rows:
    """Rows of schema `LISTING` that are added one by one. Few of them (fewer than `CHUNK`) exist as Python objects."""

    def __init__(self, source: str, write: Callable[[pa.Table], None]) -> None:
        """`source`: what is being listed, for messages. `write`: called with the rows that were added since its last call."""
        self._source, self._write = source, write
        self._rows: list[tuple[str, str, int | None, str | None, int | None, str | None]] = []

    def add(
        self,
        image_id: str,
        uri: str,
        size: int | None,
        modified_us: int | None,
        label: str | None,
        etag: str | None = None,
    ) -> None:
        """Add a row; `size` in bytes, `modified_us` in microseconds since 1970 UTC."""
        self._rows.append((image_id, uri, size, etag, modified_us, label))
        if len(self._rows) == CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are not written yet."""
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        try:
            arrays = [_array(column, field.type) for column, field in zip(columns, LISTING, strict=True)]
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"images: {self._source!a}: the file name {os.path.basename(error.object)!a} is not UTF-8; rename the file"
            ) from None
        self._write(pa.table(arrays, schema=LISTING))
        self._rows = []


def _array(values: tuple[object, ...], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else pa.array(values, kind)


def in_order(table: pa.Table, column: str) -> pa.Table:
    """Return the rows sorted by a column without nulls. Rows that are already sorted are not copied."""
    values = table[column]
    if len(values) < 2 or pc.all(pc.less_equal(values[:-1], values[1:])).as_py():
        return table
    return table.sort_by(column)


def folder_of(path: str) -> str | None:
    """Return the name of the folder that holds a relative path; None for a path at the top."""
    return path.rpartition("/")[0].rpartition("/")[2] or None


def parent_folder(paths: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the name of the folder that holds each path or URI; null for one at the top or in a bucket's root."""
    below_bucket = pc.replace_substring_regex(drop_dots(paths), r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*/", "")
    return pc.struct_field(pc.extract_regex(below_bucket, r"(?P<folder>[^/]+)/[^/]*$"), "folder")


def drop_dots(paths: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the paths without a leading `./`."""
    return pc.replace_substring_regex(paths, r"^(?:\./+)+", "")


def text(rows: pa.Table, name: str, file: Location) -> pa.ChunkedArray:
    """Return a column as strings; only nulls if it is absent. NaN becomes null, because some tools write it for an unknown label."""
    if name not in rows.column_names:
        return pa.chunked_array([pa.nulls(rows.num_rows, pa.string())])
    column = rows[name]
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        raise ConfigError(f"images: {file.uri}: column `{name}` holds {column.type}; it must hold text") from None
