"""Number the rows of a listing: a picture that an earlier manifest has keeps its number there, and every other one gets a new number.

The rows stay on the disk. Memory holds a number and a hash of each row, and of each row of the earlier manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.images.listing.content import content_digest
from raycluster.images.listing.hashes import hash_rows
from raycluster.images.listing.spill import BATCH_ROWS, Spill
from raycluster.storage.location import Location, read_table
from raycluster.storage.parallel import map_threads
from raycluster.tables.files import by_partition
from raycluster.tables.rows import Span, among, find_spans, rows_by_id
from raycluster.tables.schemas import MANIFEST

IDENTITY = ("image_id", "uri", "size", "etag", "modified")
"""The columns that must be equal for a row to be the same picture as before. The label is not one of them."""
BUCKETS = 64
"""Number of temporary files that rows out of order are sorted with. Memory holds one of them at a time."""


@dataclass(frozen=True)
class NumberedListing:
    """A listing whose rows have their numbers."""

    listing: Spill
    row_ids: np.ndarray
    """int64 [n], in the order of the listing."""
    digest: str
    """SHA-256 (hex) of every value. It does not depend on the order of the listing."""
    unchanged: bool
    """Whether the earlier manifest has exactly these rows."""
    grown_only: bool
    """Whether every row of the earlier manifest is still there; also true without an earlier manifest."""
    _sorted: Spill | None = field(default=None, repr=False)

    def partitions(self) -> Iterator[pa.Table]:
        """Yield the rows (schema MANIFEST) partition by partition, with ascending ids."""
        return _partitions(self.listing, self.row_ids, self._sorted)


def number_rows(
    listing: Spill, earlier: Sequence[Location] = (), next_row_id: int = 0, again: np.ndarray | None = None
) -> NumberedListing:
    """Give every row of a listing (schema LISTING) its number.

    A row that equals one of an earlier manifest (its part files) in all columns of `IDENTITY` keeps that number, unless the number is in
    `again`. All other rows are numbered from `next_row_id` on, in order.
    """
    kept, before = _find_earlier(listing, earlier)
    if again is not None:
        kept[np.isin(kept, again)] = -1
    spans = find_spans(earlier)
    while True:
        row_ids = np.where(kept < 0, next_row_id + np.cumsum(kept < 0) - 1, kept)
        ordered = None if (np.diff(row_ids) > 0).all() else _sort(listing, row_ids)
        digest, equal, mistaken = _compare(_partitions(listing, row_ids, ordered), spans, before)
        if not len(mistaken):
            break
        # These rows have the hash of an earlier row and differ from it: they are new.
        kept[np.isin(kept, mistaken)] = -1
    n_kept = int((kept >= 0).sum())
    return NumberedListing(listing, row_ids, digest, equal and n_kept == len(before), n_kept == len(before), ordered)


def _find_earlier(listing: Spill, earlier: Sequence[Location]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the number of the earlier row with the same hash, -1 if there is none; and all earlier numbers, ascending."""
    kept = np.full(len(listing), -1, np.int64)
    if not earlier:
        return kept, np.empty(0, np.int64)
    found = list(map_threads(_hash_file, earlier))
    hashes, ids = np.concatenate([each for each, _ in found]), np.concatenate([each for _, each in found])
    order = np.argsort(hashes)
    hashes, numbers = hashes[order], ids[order]
    start = 0
    for batch in listing.batches():
        own = hash_rows(batch, IDENTITY)
        keep, place = among(own, hashes)
        kept[start : start + len(own)][keep] = numbers[place]
        start += len(own)
    return kept, np.sort(ids)


def _hash_file(file: Location) -> tuple[np.ndarray, np.ndarray]:
    rows = read_table([file], ["row_id", *IDENTITY])
    return hash_rows(rows, IDENTITY), rows.column("row_id").to_numpy()


def _compare(partitions: Iterator[pa.Table], spans: Sequence[Span], before: np.ndarray) -> tuple[str, bool, np.ndarray]:
    """Return the digest of all rows, whether the earlier manifest has the same ones, and the numbers that were kept wrongly."""
    digest, equal, mistaken = hashlib.sha256(), True, [np.empty(0, np.int64)]
    for rows in partitions:
        digest.update(content_digest(rows))
        ids = rows.column("row_id").to_numpy()
        keep = among(ids, before)[0]
        equal = equal and bool(keep.all())
        if not keep.any():
            continue
        rows = rows.filter(pa.array(keep))
        # Two rows with the hash of one earlier row have its number here, both of them.
        numbers, place = np.unique(ids[keep], return_inverse=True)
        known = rows_by_id(spans, numbers, MANIFEST.names[1:]).take(pa.array(place))
        same = _all_equal(rows, known, IDENTITY)
        mistaken.append(ids[keep][~same])
        equal = equal and bool(_all_equal(rows, known, ["label"]).all())
    return digest.hexdigest(), equal, np.concatenate(mistaken)


def _all_equal(left: pa.Table, right: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Return which rows are equal in all of these columns, bool [n]; null equals null."""
    result = np.ones(len(left), bool)
    for name in columns:
        one, other = left.column(name), right.column(name)
        equal = pc.or_(pc.fill_null(pc.equal(one, other), False), pc.and_(pc.is_null(one), pc.is_null(other)))
        result &= equal.to_numpy()
    return result


def _partitions(listing: Spill, row_ids: np.ndarray, ordered: Spill | None) -> Iterator[pa.Table]:
    """Yield the rows partition by partition; from `ordered`, if the numbers in the listing do not ascend."""
    waiting: list[pa.Table] = []
    current = -1
    for rows in _with_ids(listing, row_ids) if ordered is None else ordered.batches():
        for partition, part in by_partition(rows):
            if partition != current and waiting:
                yield pa.concat_tables(waiting)
                waiting = []
            current = partition
            waiting.append(part)
    if waiting:
        yield pa.concat_tables(waiting)


def _with_ids(listing: Spill, row_ids: np.ndarray) -> Iterator[pa.Table]:
    start = 0
    for rows in listing.batches():
        ids = pa.array(row_ids[start : start + len(rows)], pa.int64())
        yield rows.add_column(0, MANIFEST.field("row_id"), ids).cast(MANIFEST)
        start += len(rows)


def _sort(listing: Spill, row_ids: np.ndarray) -> Spill:
    """Return the rows in the order of their numbers: they are dealt to files by ranges of numbers, and each file is sorted alone."""
    first, last = int(row_ids.min()), int(row_ids.max())
    width = -(-(last - first + 1) // BUCKETS)
    spills = [Spill(MANIFEST) for _ in range(-(-(last - first + 1) // width))]
    waiting: list[list[pa.Table]] = [[] for _ in spills]
    for rows in _with_ids(listing, row_ids):
        buckets = (rows.column("row_id").to_numpy() - first) // width
        for bucket in np.unique(buckets).tolist():
            waiting[bucket].append(rows.filter(pa.array(buckets == bucket)))
            if sum(map(len, waiting[bucket])) >= BATCH_ROWS:
                spills[bucket].append(pa.concat_tables(waiting[bucket]))
                waiting[bucket] = []
    result = Spill(MANIFEST)
    for spill, rest in zip(spills, waiting, strict=True):
        result.append(pa.concat_tables([spill.read(), *rest]).sort_by("row_id"))
    return result
