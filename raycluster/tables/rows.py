"""Rows of Parquet tables as arrays: their ids, vectors and statuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.storage.location import Location, iter_tables, read_table
from raycluster.tables.footers import map_files, read_footer
from raycluster.tables.names import named_ids


def file_ids(file: Location) -> np.ndarray:
    """Return the row ids of one part file, int64 [n]: from its name or its footer, or from its column if it is of an earlier version."""
    named = named_ids(file)
    if named is not None:
        return named
    footer = read_footer(file)
    return read_table([file], ["row_id"]).column("row_id").to_numpy() if footer is None else footer.ids()


def row_ids(files: Iterable[Location]) -> np.ndarray:
    """Return all row ids of a table, int64 [n]."""
    return np.concatenate([np.empty(0, np.int64), *map_files(file_ids, list(files))])


@dataclass(frozen=True)
class Span:
    """A part file, and its smallest and largest row id."""

    file: Location
    first: int
    last: int


def find_spans(files: Iterable[Location]) -> list[Span]:
    """Return the files of a table with what is needed to find rows in them."""
    listed = list(files)
    held = zip(listed, map_files(file_ids, listed), strict=True)
    return [Span(file, int(ids.min()), int(ids.max())) for file, ids in held if len(ids)]


def wanted_by_file(files: Iterable[Location], wanted: np.ndarray) -> list[tuple[Location, np.ndarray]]:
    """Return the files that may hold some of the rows `wanted` (ids, int64 ascending), each with those that may be in it."""
    shares = []
    for span in find_spans(files):
        ids = wanted[np.searchsorted(wanted, span.first) : np.searchsorted(wanted, span.last, side="right")]
        if len(ids):
            shares.append((span.file, ids))
    return shares


def rows_by_id(spans: Iterable[Span], wanted: np.ndarray, columns: list[str]) -> pa.Table:
    """Return `row_id` and these columns of the rows `wanted` (int64, ascending), in that order. Raises :class:`KeyError` for an absent row."""
    files = [span.file for span in spans if span.first <= wanted[-1] and span.last >= wanted[0]]
    found = [
        table.filter(pa.array(among(table.column("row_id").to_numpy(), wanted)[0]))
        for table in iter_tables(files, ["row_id", *columns])
    ]
    if sum(map(len, found)) < len(wanted):
        raise KeyError(f"{len(wanted) - sum(map(len, found))} of {len(wanted)} rows are not in the table")
    return pa.concat_tables(found).sort_by("row_id")


def vectors(table: pa.Table, column: str = "embedding") -> np.ndarray:
    """Return a fixed-size-list column without nulls as an array [n, d]. If the column is one chunk, no copy is made."""
    values = table.column(column)
    width = values.type.list_size
    chunks = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in values.chunks]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate(chunks) if chunks else np.empty((0, width), values.type.value_type.to_pandas_dtype())


def vector_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """Return an array [n, d] as a fixed-size-list column: the inverse of :func:`vectors`."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def binary_rows(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a fixed-size binary column as a read-only array, uint8 [n, *shape].

    If the column is one chunk, no copy is made. The rows of nulls hold arbitrary bytes.
    """
    values = column.combine_chunks()
    width = int(np.prod(shape))
    if not len(values):
        return np.empty((0, *shape), np.uint8)
    flat = np.frombuffer(values.buffers()[1], np.uint8, count=len(values) * width, offset=values.offset * width)
    return flat.reshape(-1, *shape)


def unit(values: np.ndarray) -> np.ndarray:
    """Return rows [..., d] scaled to length 1, float32; zero rows stay zero."""
    values = values.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


def among(ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the `ids` are in `wanted` (ascending), bool [len(ids)], and the positions of those in `wanted`."""
    place = np.searchsorted(wanted, ids)
    keep = place < len(wanted)
    keep[keep] = wanted[place[keep]] == ids[keep]
    return keep, place[keep]


def gather(files: Iterable[Location], wanted: np.ndarray, column: str = "embedding") -> np.ndarray:
    """Return the vectors of the rows `wanted` (int64 [n], ascending) as one array [n, d] in that order.

    It reads file by file, so that memory holds the result and one file. Raises :class:`KeyError` for a row that is not there.
    """
    result: np.ndarray | None = None
    found = np.zeros(len(wanted), bool)
    for table in iter_tables(list(files), ["row_id", column]):
        keep, place = among(table.column("row_id").to_numpy(), wanted)
        if not len(place):
            continue
        part = vectors(table.filter(pa.array(keep)), column)
        if result is None:
            result = np.empty((len(wanted), part.shape[1]), part.dtype)
        result[place] = part
        found[place] = True
    if result is None or not found.all():
        raise KeyError(f"{int((~found).sum())} of {len(wanted)} rows have no {column}")
    return result


def statuses(files: Iterable[Location], wanted: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Return which rows `wanted` (ascending) of an embeddings table are `ok`, as ascending ids, and the status histogram of all rows `wanted`."""
    found = map_files(lambda file: _file_statuses(file, wanted), list(files))
    counts = sum((counts for _, counts in found), Counter[str]())
    return np.sort(np.concatenate([np.empty(0, np.int64), *(ok for ok, _ in found)])), dict(counts)


def _file_statuses(file: Location, wanted: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
    footer = read_footer(file)
    if footer is not None and footer.all_ok:
        ids = footer.ids()
        ok = ids[among(ids, wanted)[0]]
        return ok, Counter({"ok": len(ok)} if len(ok) else {})
    table = read_table([file], ["row_id", "status"])
    table = table.filter(pa.array(among(table.column("row_id").to_numpy(), wanted)[0]))
    counts = Counter({item["values"]: item["counts"] for item in table.column("status").value_counts().to_pylist()})
    return table.filter(pc.equal(table.column("status"), "ok")).column("row_id").to_numpy(), counts


def failed(files: Iterable[Location]) -> np.ndarray:
    """Return the ids of the rows of an embeddings table with another status than `ok`, int64 [n]."""
    columns = [
        table.filter(pc.not_equal(table.column("status"), "ok")).column("row_id").to_numpy()
        for table in iter_tables(_with_failures(files), ["row_id", "status"])
    ]
    return np.concatenate(columns) if columns else np.empty(0, np.int64)


def _with_failures(files: Iterable[Location]) -> list[Location]:
    """Return the files that hold rows with another status than `ok`, or do not say so in their footer."""
    listed = list(files)
    footers = map_files(read_footer, listed)
    return [file for file, footer in zip(listed, footers, strict=True) if footer is None or not footer.all_ok]


def failures(
    files: Iterable[Location], wanted: np.ndarray, manifest: Iterable[Location], examples: int = 3
) -> dict[str, list[tuple[str, str]]]:
    """Return for each status but `ok` the first `examples` of the rows `wanted` (ascending) with it, as (uri, reason).

    `files`: of a table with a column `status`; `manifest`: its part files.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for table in iter_tables(_with_failures(files), ["row_id", "status", "error"]):
        table = table.filter(pa.array(among(table.column("row_id").to_numpy(), wanted)[0]))
        for status in pc.unique(table.column("status")).to_pylist():
            reasons = found.setdefault(status, [])
            some = table.filter(pc.equal(table.column("status"), status)).slice(0, examples - len(reasons))
            reasons += [(row["row_id"], row["error"] or "") for row in some.to_pylist()]
    found.pop("ok", None)
    shown = np.array(sorted(row_id for reasons in found.values() for row_id, _ in reasons), np.int64)
    if not len(shown):
        return {}
    named = rows_by_id(find_spans(manifest), shown, ["uri"])
    uris = dict(zip(shown.tolist(), named.column("uri").to_pylist(), strict=True))
    return {status: [(uris[row_id], reason) for row_id, reason in reasons] for status, reasons in found.items()}
