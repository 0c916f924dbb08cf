"""The table that sums up each cluster: its size, its mean confidence, and its most and least typical images.

Each part of the assignments gives a :class:`Summary`, and two summaries give that of both parts. So nobody holds all rows: a summary has a
few rows of each cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.tables.schemas import CLUSTERS

EXEMPLAR = CLUSTERS.field("exemplars").type.value_type


@dataclass(frozen=True)
class Shown:
    """How many images of a cluster are shown."""

    most: int
    """Number of the most typical ones, which have the highest confidence."""
    least: int
    """Number of the least typical ones. An image that is one of the most typical is not one of these."""


@dataclass(frozen=True)
class Summary:
    """What some rows of the assignments say of the C clusters."""

    sizes: np.ndarray
    """int64 [C]: number of rows in each cluster."""
    confidence: np.ndarray
    """float64 [C]: sum of the confidences of its rows."""
    cluster: np.ndarray
    """int32 [s]: the clusters of the first and the last rows of each cluster, ascending. Within a cluster, rows are in the order of falling
    confidence, and rows of equal confidence in the order of their ids."""
    row_id: np.ndarray
    """int64 [s]: the ids of these rows."""
    row_confidence: np.ndarray
    """float32 [s]: their confidences."""


def summarize(rows: pa.Table, n_clusters: int, shown: Shown) -> Summary:
    """Sum up rows of the assignments: columns row_id, cluster (null for a row without), confidence."""
    rows = rows.filter(pc.is_valid(rows.column("cluster")))
    cluster, row_id, confidence = (rows.column(name).to_numpy() for name in ("cluster", "row_id", "confidence"))
    sums = np.bincount(cluster, confidence, minlength=n_clusters)
    return _summary(np.bincount(cluster, minlength=n_clusters), sums, cluster, row_id, confidence, shown)


def merge(one: Summary, other: Summary, shown: Shown) -> Summary:
    """Return the summary of the rows of two summaries, which have no row in common."""
    cluster = np.concatenate([one.cluster, other.cluster])
    row_id = np.concatenate([one.row_id, other.row_id])
    confidence = np.concatenate([one.row_confidence, other.row_confidence])
    sums = one.confidence + other.confidence
    return _summary(one.sizes + other.sizes, sums, cluster, row_id, confidence, shown)


def _summary(
    sizes: np.ndarray,
    sums: np.ndarray,
    cluster: np.ndarray,
    row_id: np.ndarray,
    confidence: np.ndarray,
    shown: Shown,
) -> Summary:
    """Return a summary that keeps the first `most` and the last `least` rows of each cluster."""
    # Ties are broken by row id, so that the table does not depend on the order of the parts.
    order = np.lexsort((row_id, -confidence, cluster))
    rank, behind = _ranks(cluster[order], len(sizes))
    order = order[(rank < shown.most) | (behind < shown.least)]
    return Summary(sizes, sums, cluster[order], row_id[order], confidence[order])


def _ranks(cluster: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows of the same cluster stand before each row, and how many behind it; `cluster` is ascending."""
    counts = np.bincount(cluster, minlength=n_clusters)
    rank = np.arange(len(cluster)) - (np.cumsum(counts) - counts)[cluster]
    return rank, counts[cluster] - 1 - rank


def clusters_table(
    summary: Summary, images: pa.Table | None, descriptions: Sequence[dict[str, Any]], shown: Shown
) -> pa.Table:
    """Return the clusters table (schema CLUSTERS) of the summary of all assignments.

    `images`: row_id (ascending), image_id and uri of all rows of the summary; None if it has no rows. `descriptions`: `{name, nouns}` of
    each cluster.
    """
    rank, behind = _ranks(summary.cluster, len(summary.sizes))
    first = np.flatnonzero(rank < shown.most)
    # A cluster with at most `most + least` rows is there as a whole, so that its first rows are known here.
    last = np.flatnonzero((rank >= shown.most) & (behind < shown.least))
    last = last[np.lexsort((-rank[last], summary.cluster[last]))]
    means = summary.confidence / np.maximum(summary.sizes, 1)
    columns = [
        pa.array(np.arange(len(summary.sizes), dtype=np.int32)),
        pa.array([description["name"] for description in descriptions], pa.string()),
        pa.array([description["nouns"] for description in descriptions], pa.list_(pa.string())),
        pa.array(summary.sizes),
        pa.array(means.astype(np.float32), mask=summary.sizes == 0),
        _lists(summary, first, images),
        _lists(summary, last, images),
    ]
    return pa.table(columns, schema=CLUSTERS)


def _lists(summary: Summary, places: np.ndarray, images: pa.Table | None) -> pa.ListArray:
    """Return a list for each cluster: of the rows at these places of the summary, which are in the order of the clusters."""
    counts = np.bincount(summary.cluster[places], minlength=len(summary.sizes))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ids = summary.row_id[places]
    if images is None:
        texts = [pa.array([], pa.string())] * 2
    else:
        at = pa.array(np.searchsorted(images.column("row_id").to_numpy(), ids))
        texts = [images.column(name).take(at).combine_chunks().cast(pa.string()) for name in ("image_id", "uri")]
    values = [pa.array(ids), *texts, pa.array(summary.row_confidence[places])]
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(values, fields=list(EXEMPLAR)))
