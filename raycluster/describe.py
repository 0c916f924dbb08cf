"""Names for clusters, from the nouns nearest to them, and the table that sums each cluster up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import linear_sum_assignment

from raycluster.config import ReportConfig
from raycluster.tables import CLUSTERS

NOUNS = 5
"""Nouns that describe a cluster."""
CANDIDATES = 50
"""Nouns considered for the name of a cluster; with more, the one-to-one matching costs more than it gives."""


def prototypes(embeddings: np.ndarray, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """[N, d] unit rows and their clusters [N] → [C, d] unit means; a zero row for an empty cluster."""
    sums = np.zeros((n_clusters, embeddings.shape[1]), np.float64)
    np.add.at(sums, clusters, embeddings)
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def name_clusters(prototypes: np.ndarray, nouns: list[str], noun_embeddings: np.ndarray) -> list[dict[str, Any]]:
    """Name each cluster, no two alike.

    `prototypes` [C, d] and `noun_embeddings` [M, d] have unit rows. Both are compared after their means are taken out:
    CLIP's pictures and texts lie in two narrow cones, and a noun close to the pictures' cone would fit every cluster
    best (the modality gap, Liang et al. 2022). Returns `{name, nouns}` for each cluster; an empty cluster, and one for
    which no noun is left, is called by its number.
    """
    used = np.flatnonzero(np.linalg.norm(prototypes, axis=1) > 0)
    result = [{"name": f"cluster {cluster}", "nouns": []} for cluster in range(len(prototypes))]
    if not nouns or not len(used):
        return result
    scores = _centered(prototypes[used]) @ _centered(noun_embeddings).T
    best = np.argsort(-scores, axis=1, kind="stable")[:, : max(CANDIDATES, NOUNS)]
    columns = np.unique(best)
    rows, matched = linear_sum_assignment(-scores[:, columns])
    for row, column in zip(rows, columns[matched], strict=True):
        others = [nouns[index] for index in best[row] if index != column]
        result[used[row]] = {"name": nouns[column], "nouns": [nouns[column], *others][:NOUNS]}
    return result


def _centered(rows: np.ndarray) -> np.ndarray:
    # With one row only there is no mean to take out.
    centered = rows - rows.mean(axis=0) if len(rows) > 1 else rows
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)


def summarize(assignments: pa.Table, clusters: list[dict[str, Any]], report: ReportConfig) -> pa.Table:
    """The clusters table (schema CLUSTERS) from all assignments, with the most and the least confident images of each."""
    rows = assignments.filter(pc.is_valid(assignments.column("cluster")))
    cluster, confidence = rows.column("cluster").to_numpy(), rows.column("confidence").to_numpy()
    # Ties are broken by row id, so that the table does not depend on the order of the parts.
    order = np.lexsort((rows.column("row_id").to_numpy(), -confidence, cluster))
    starts = np.searchsorted(cluster[order], np.arange(len(clusters) + 1))
    table = []
    for index, description in enumerate(clusters):
        members = order[starts[index] : starts[index + 1]]
        typical, rest = members[: report.most_typical], members[report.most_typical :]
        table.append(
            {
                "cluster": index,
                "name": description["name"],
                "nouns": description["nouns"],
                "size": len(members),
                "mean_confidence": float(confidence[members].mean()) if len(members) else None,
                "exemplars": _images(rows, typical),
                "least_typical": _images(rows, rest[::-1][: report.least_typical]),
            }
        )
    return pa.Table.from_pylist(table, CLUSTERS)


def _images(rows: pa.Table, positions: np.ndarray) -> list[dict[str, Any]]:
    return rows.select(["row_id", "image_id", "uri", "confidence"]).take(pa.array(positions)).to_pylist()
