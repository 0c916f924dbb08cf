"""Names for clusters, from the nouns that describe them best, and the table that sums up each cluster."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import linear_sum_assignment

from raycluster.config import ReportConfig
from raycluster.tables.schemas import CLUSTERS

NOUNS = 5
"""Number of nouns that describe a cluster."""
TEMPERATURE = 0.03
CHUNK = 4096
"""Number of images in a chunk. The votes of one chunk at a time are in memory."""
CANDIDATES = 50
"""Number of nouns considered for the name of a cluster. With more, the one-to-one matching costs more than it gains."""


def noun_affinity(embeddings: np.ndarray, clusters: np.ndarray, nouns: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return how well each noun describes each cluster, float32 [C, M]; -inf for an empty cluster.

    `embeddings` [N, d] and `nouns` [M, d] have unit rows; `clusters` is int [N]. Every image spreads one vote over the nouns,
    softmax(v·t / 0.03). The affinity is log P(noun | cluster) − ½ log P(noun). With a whole log P(noun), the pointwise mutual
    information, rare nouns would win; without this term a noun close to all pictures would name every cluster.
    """
    votes = np.zeros((n_clusters, len(nouns)), np.float64)
    for start in range(0, len(embeddings), CHUNK):
        scores = embeddings[start : start + CHUNK] @ nouns.T / TEMPERATURE
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        np.add.at(votes, clusters[start : start + CHUNK], weights / weights.sum(axis=1, keepdims=True))
    sizes = np.bincount(clusters, minlength=n_clusters)[:, None]
    affinity = np.log(votes / np.maximum(sizes, 1) + 1e-12) - 0.5 * np.log(votes.sum(axis=0) / len(embeddings) + 1e-12)
    return np.where(sizes > 0, affinity, -np.inf).astype(np.float32)


def name_clusters(affinity: np.ndarray, nouns: list[str]) -> list[dict[str, Any]]:
    """Give each cluster a name of its own, by the one-to-one matching with the largest total affinity [C, M].

    Returns `{name, nouns}` for each cluster. An empty cluster is named by its number, and so is one for which no noun is left.
    """
    used = np.flatnonzero(np.isfinite(affinity).all(axis=1))
    result: list[dict[str, Any]] = [{"name": f"cluster {cluster}", "nouns": []} for cluster in range(len(affinity))]
    if not nouns or not len(used):
        return result
    scores = affinity[used]
    best = np.argsort(-scores, axis=1, kind="stable")[:, : max(CANDIDATES, NOUNS)]
    columns = np.unique(best)
    rows, matched = linear_sum_assignment(-scores[:, columns])
    for row, column in zip(rows, columns[matched], strict=True):
        others = [nouns[index] for index in best[row] if index != column]
        result[used[row]] = {"name": nouns[column], "nouns": [nouns[column], *others][:NOUNS]}
    return result


def summarize(
    assignments: pa.Table,
    images: Callable[[np.ndarray], pa.Table],
    clusters: list[dict[str, Any]],
    report: ReportConfig,
) -> pa.Table:
    """Return the clusters table (schema CLUSTERS) for all assignments, with the most and the least confident images of each cluster.

    `assignments`: columns row_id, cluster, confidence. `images` takes row ids, int64 ascending, and returns row_id, image_id, uri and
    confidence of these rows, in that order.
    """
    rows = assignments.filter(pc.is_valid(assignments.column("cluster")))
    ids = rows.column("row_id").to_numpy()
    cluster, confidence = rows.column("cluster").to_numpy(), rows.column("confidence").to_numpy()
    # Ties are broken by row id, so that the table does not depend on the order of the parts.
    order = np.lexsort((ids, -confidence, cluster))
    starts = np.searchsorted(cluster[order], np.arange(len(clusters) + 1))
    members = [order[start:end] for start, end in pairwise(starts)]
    typical = [each[: report.most_typical] for each in members]
    least = [each[report.most_typical :][::-1][: report.least_typical] for each in members]
    shown = np.unique(ids[np.concatenate([np.empty(0, np.int64), *typical, *least])])
    known = {row["row_id"]: row for row in images(shown).to_pylist()} if len(shown) else {}
    table = [
        {
            "cluster": index,
            "name": description["name"],
            "nouns": description["nouns"],
            "size": len(members[index]),
            "mean_confidence": float(confidence[members[index]].mean()) if len(members[index]) else None,
            "exemplars": [known[row_id] for row_id in ids[typical[index]].tolist()],
            "least_typical": [known[row_id] for row_id in ids[least[index]].tolist()],
        }
        for index, description in enumerate(clusters)
    ]
    return pa.Table.from_pylist(table, CLUSTERS)
