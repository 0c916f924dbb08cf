"""Read a table of pictures: a Parquet or CSV file with a column `uri`, or a Parquet file with a column `image`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from raycluster.errors import ConfigError
from raycluster.images.listing.columns import LISTING, Labels, drop_dots, parent_folder, text
from raycluster.images.listing.image_tables import list_rows
from raycluster.images.listing.walk import call_storage
from raycluster.storage.location import Location

_ABSOLUTE = r"^(?:/|~/|[A-Za-z][A-Za-z0-9+.-]*://)"
# Facts about the object that a list may contain. A column of another type means something else and is ignored.
_FACTS = {
    "size": pa.types.is_integer,
    "etag": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "modified": pa.types.is_timestamp,
}
_READ = ("uri", "image_id", "label", *_FACTS)


def read_list(file: Location, labels: Labels) -> Iterator[pa.Table]:
    """Return the rows of the table, in its order, as tables of schema `LISTING`: one a row group of a list in Parquet, else one for all.

    URIs that are neither absolute nor have a scheme are relative to the list's folder. Without a column `image_id` the
    URI as written is the id. A column `label` takes precedence over `labels`.

    Raises
    ------
    ConfigError
        The file is damaged. It has neither a column `uri` nor (Parquet) a column `image`, or it has both; or a row has no URI.
    StorageError
        The storage does not answer.
    """
    if file.name.lower().endswith(".csv"):
        return iter([_listing(call_storage(lambda: _read_csv(file), file.uri), file, labels, 0)])
    parquet, size = call_storage(lambda: _open(file), file.uri)
    names = parquet.schema_arrow.names
    if "image" not in names:
        _require_uri(names, file)
        return _row_groups(parquet, file, labels)
    if "uri" in names:
        raise ConfigError(
            f"images: {file.uri} has both a column `uri` and a column `image`, and either could be the pictures; drop one"
        )
    mtime_ns = call_storage(lambda: file.filesystem.get_file_info(file.path), file.uri).mtime_ns
    modified_us = None if mtime_ns is None else mtime_ns // 1000
    return iter([call_storage(lambda: list_rows(parquet, file, size, modified_us), file.uri)])


def _open(file: Location) -> tuple[pq.ParquetFile, int]:
    stream = file.filesystem.open_input_file(file.path)
    return pq.ParquetFile(stream), stream.size()


def _row_groups(parquet: pq.ParquetFile, file: Location, labels: Labels) -> Iterator[pa.Table]:
    columns, start = [name for name in _READ if name in parquet.schema_arrow.names], 0
    for group in range(parquet.num_row_groups):
        rows = call_storage(partial(parquet.read_row_group, group, columns=columns), file.uri)
        yield _listing(rows, file, labels, start)
        start += len(rows)


def _listing(rows: pa.Table, file: Location, labels: Labels, start: int) -> pa.Table:
    written = text(rows, "uri", file)
    lacking = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(written), ""), True)
    if pc.any(lacking).as_py():
        first = start + pc.index(lacking, True).as_py() + 1
        raise ConfigError(f"images: {file.uri}: row {first} has no uri; give each row a uri, or remove such rows")
    by_folder = labels == "folder" and "label" not in rows.column_names
    columns = {
        # Without a column `image_id`, the columns `image_id` and `uri` can share the same memory.
        "image_id": pc.coalesce(text(rows, "image_id", file), written) if "image_id" in rows.column_names else written,
        "uri": _resolve(written, file.parent),
        "label": parent_folder(written) if by_folder else text(rows, "label", file),
    }
    for name, is_type in _FACTS.items():
        usable = name in rows.column_names and is_type(rows.schema.field(name).type)
        columns[name] = rows[name] if usable else pa.nulls(rows.num_rows)
    # `safe=False` is needed only to cut off nanoseconds.
    return pa.table({name: columns[name] for name in LISTING.names}).cast(LISTING, safe=False)


def _read_csv(file: Location) -> pa.Table:
    # Only an empty field is null: "NA" is the code of a country and may be a label.
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(("uri", "image_id", "label", "etag"), pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    with file.filesystem.open_input_stream(file.path) as stream:
        table = pyarrow.csv.read_csv(stream, convert_options=options)
    _require_uri(table.column_names, file)
    return table


def _require_uri(names: list[str], file: Location) -> None:
    if names.count("uri") != 1:
        raise ConfigError(
            f"images: {file.uri}: a list needs one column `uri`, or in Parquet a column `image` with the pictures; found: {', '.join(names) or 'no column'}"
        )


def _resolve(written: pa.ChunkedArray, folder: Location) -> pa.ChunkedArray:
    absolute = pc.match_substring_regex(written, _ABSOLUTE)
    # Most lists have only absolute URIs. Avoid a copy of them, because a list may have millions.
    if pc.all(absolute).as_py():
        return written
    joined = pc.binary_join_element_wise(folder.uri.rstrip("/"), drop_dots(written), "/")
    return pc.if_else(absolute, written, joined)
