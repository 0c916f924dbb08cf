"""Read a list of pictures: a Parquet or CSV file with a column `uri`."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from raycluster.errors import ConfigError
from raycluster.images.walk import LISTING, ask, drop_dots, parent_folder
from raycluster.storage import Location

LIST_SUFFIXES = frozenset({".parquet", ".csv"})

_ABSOLUTE = r"^(?:/|~/|[A-Za-z][A-Za-z0-9+.-]*://)"
# Facts about the object that a list may bring along; of another type they mean something else and are left alone.
_FACTS = {
    "size": pa.types.is_integer,
    "etag": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "modified": pa.types.is_timestamp,
}
_READ = ("uri", "image_id", "label", *_FACTS)


def read_list(file: Location, labels: Literal["folder"] | None) -> pa.Table:
    """The rows of the list as schema `LISTING`, in its order.

    URIs that are neither absolute nor have a scheme are relative to the list's folder. Without a column `image_id` the
    URI as written is the id. A column `label` goes before `labels`.

    Raises
    ------
    ConfigError
        The file is damaged, has no column `uri`, or a row lacks its URI.
    """
    reader = _read_csv if file.name.lower().endswith(".csv") else _read_parquet
    rows = ask(lambda: reader(file), file.uri)
    written = _text(rows, "uri", file)
    lacking = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(written), ""), True)
    if pc.any(lacking).as_py():
        first = pc.index(lacking, True).as_py() + 1
        raise ConfigError(f"images: {file.uri}: {pc.sum(lacking)} rows have no uri, the first is row {first}")
    by_folder = labels == "folder" and "label" not in rows.column_names
    columns = {
        "image_id": pc.coalesce(_text(rows, "image_id", file), written),
        "uri": _resolve(written, file.parent),
        "label": parent_folder(written) if by_folder else _text(rows, "label", file),
    }
    for name, is_type in _FACTS.items():
        usable = name in rows.column_names and is_type(rows.schema.field(name).type)
        columns[name] = rows[name] if usable else pa.nulls(rows.num_rows)
    # Unsafe only in that nanoseconds are cut off.
    return pa.table({name: columns[name] for name in LISTING.names}).cast(LISTING, safe=False)


def _read_parquet(file: Location) -> pa.Table:
    with file.filesystem.open_input_file(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        names = parquet.schema_arrow.names
        if "image" in names and "uri" not in names:
            raise ConfigError(
                f"images: {file.uri}: pictures inside a table (column `image`) are not supported yet in this version: "
                "extract them into files and list those in a column `uri`"
            )
        _require_uri(names, file)
        return parquet.read(columns=[name for name in _READ if name in names])


def _read_csv(file: Location) -> pa.Table:
    # Only an empty field is null: "NA" is a country and may be a label.
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
            f"images: {file.uri}: a list needs one column `uri`; found: {', '.join(names) or 'no column'}"
        )


def _text(rows: pa.Table, name: str, file: Location) -> pa.ChunkedArray:
    """A column as strings; nulls if it is absent, and for NaN, which is how some tools write an unknown label."""
    if name not in rows.column_names:
        return pa.chunked_array([pa.nulls(rows.num_rows, pa.string())])
    column = rows[name]
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        raise ConfigError(f"images: {file.uri}: column `{name}` holds {column.type}; it must hold text") from None


def _resolve(written: pa.ChunkedArray, folder: Location) -> pa.ChunkedArray:
    joined = pc.binary_join_element_wise(folder.uri.rstrip("/"), drop_dots(written), "/")
    return pc.if_else(pc.match_substring_regex(written, _ABSOLUTE), written, joined)
