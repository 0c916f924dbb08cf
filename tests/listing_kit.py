"""Listings and manifests as tables, for tests: those are small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raycluster.config import StorageConfig
from raycluster.images.listing.columns import LISTING, Labels
from raycluster.images.listing.manifest import list_images
from raycluster.images.listing.numbering import NumberedListing, number_rows
from raycluster.images.listing.spill import Spill
from raycluster.storage.location import Location
from raycluster.tables.schemas import MANIFEST

LOCAL = StorageConfig()


def spilled(rows: pa.Table) -> Spill:
    """The rows (schema LISTING) as a listing."""
    spill = Spill(LISTING)
    spill.append(rows)
    return spill


def numbered(
    rows: pa.Table | Spill, earlier: Sequence[Location] = (), next_row_id: int = 0, again: np.ndarray | None = None
) -> NumberedListing:
    """The rows with numbers (:func:`number_rows`)."""
    return number_rows(rows if isinstance(rows, Spill) else spilled(rows), earlier, next_row_id, again)


def as_table(listed: NumberedListing) -> pa.Table:
    """The manifest of a numbered listing, with ascending ids."""
    return pa.concat_tables([MANIFEST.empty_table(), *listed.partitions()])


def manifest_of(sources: Sequence[object], storage: StorageConfig = LOCAL, labels: Labels = None) -> pa.Table:
    """The manifest of some sources."""
    return as_table(number_rows(list_images(tuple(map(str, sources)), storage, labels).rows))
