"""Refuse a listing in which an image_id occurs twice."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.errors import ConfigError
from raycluster.images.listing.hashes import hash_rows
from raycluster.images.listing.spill import Spill

EXAMPLES = 3
"""Number of ids that the message names."""
COMPARED = 1000
"""Most ids with equal hashes whose text is compared. If there are more, hardly one of them has the hash of another id by chance."""


def refuse_duplicates(listing: Spill, field: str, remedy: str) -> None:
    """Raise :class:`ConfigError` if an image_id occurs twice. The message names two places for each of the first three such ids.

    `field` of the configuration and `remedy` are for the message.
    """
    hashes = np.sort(np.concatenate([hash_rows(rows, ["image_id"]) for rows in listing.batches()]))
    doubled = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(doubled):
        return
    suspects = _rows_with(listing, doubled[:COMPARED])
    counts = suspects.group_by("image_id").aggregate([([], "count_all")])
    counts = counts.filter(pc.greater(counts["count_all"], 1)).sort_by("image_id")
    number = len(counts) + max(0, len(doubled) - COMPARED)
    if not number:
        return
    examples = []
    for item in counts.slice(0, EXAMPLES).to_pylist():
        places = suspects.filter(pc.equal(suspects["image_id"], item["image_id"]))["uri"].to_pylist()
        examples.append(f"{item['image_id']!r} ({item['count_all']} times: {places[0]}, {places[1]})")
    raise ConfigError(f"{field}: {number} image_ids occur more than once: {', '.join(examples)}; {remedy}")


def _rows_with(listing: Spill, hashes: np.ndarray) -> pa.Table:
    """Return image_id and uri of the rows whose id has one of these hashes."""
    found = [
        rows.select(["image_id", "uri"]).filter(pa.array(np.isin(hash_rows(rows, ["image_id"]), hashes)))
        for rows in listing.batches()
    ]
    return pa.concat_tables(found)
