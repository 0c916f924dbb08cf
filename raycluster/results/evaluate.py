"""Scores of a finished assignment: scores without labels, and scores against labels if there are any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.clustering.modality import HELPS, text_asymmetry
from raycluster.clustering.scores import label_free_scores, supervised_scores
from raycluster.randomness import sampled
from raycluster.storage.location import Location
from raycluster.tables.rows import gather

SAMPLE = 10_000
"""Number of images behind the label-free scores. The neighbors of all of a million images would cost more than the clustering."""


def evaluate(
    assignments: pa.Table,
    manifest: pa.Table,
    embedded: np.ndarray,
    embeddings: list[Location],
    counterparts: list[Location] | None,
    n_clusters: int,
    seed: int,
    advise: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all scores for `metrics.json`, and the result of :func:`text_advice` (empty without `advise` or counterparts).

    `manifest`: columns row_id, label; `assignments`: columns row_id, cluster, confidence, margin; `embedded`: ids of the rows that have
    an embedding in `embeddings`. Rows without a cluster count in `n_rows` only. Rows that only the tuned encoder has embedded count in
    no label-free score.
    """
    rows = assignments.filter(pc.is_valid(assignments.column("cluster"))).sort_by("row_id")
    ids, clusters = rows.column("row_id").to_numpy(), rows.column("cluster").to_numpy()
    labels = _labels(manifest, ids)
    sample = sampled(np.intersect1d(ids, embedded), SAMPLE, seed)
    at = np.searchsorted(ids, sample)
    images = gather(embeddings, sample)
    paired = None if counterparts is None else gather(counterparts, sample, "counterpart")
    free = label_free_scores(
        images,
        paired,
        clusters[at],
        rows.column("confidence").to_numpy()[at],
        rows.column("margin").to_numpy()[at],
        n_clusters,
    )
    scores = {**supervised_scores(labels, clusters), "n_rows": len(assignments), **free}
    return scores, text_advice(images, paired, n_clusters, seed) if advise and paired is not None else {}


def share_kept(before: pa.Table, after: pa.Table) -> float | None:
    """Return the share of images that kept their cluster, among those with a cluster in both assignments; None if there are none."""
    one, other = (table.sort_by("row_id").column("cluster") for table in (before, after))
    return pc.mean(pc.cast(pc.equal(one, other), pa.float64())).as_py()


def text_advice(images: np.ndarray, paired: np.ndarray, n_clusters: int, seed: int) -> dict[str, Any]:
    """Return whether the text side helps or hurts: `text_asymmetry`, `text_hurts`, and `text_advice` in words.

    `images` and their counterparts `paired` are [n, d]. No labels are needed. The result only advises and stops nothing, because the
    measure is sometimes wrong (:mod:`raycluster.clustering.modality`).
    """
    asymmetry = text_asymmetry(images, paired, n_clusters, seed)
    if asymmetry > HELPS:
        words = "text helps: the nouns explain which images are neighbors better than the images explain the nouns"
    elif asymmetry < 1 / HELPS:
        words = (
            "text hurts rather than helps: the nouns divide groups of similar images; try a vocabulary that names "
            "what the images show, or `method.name: consensus` with `method.text_weight: 0`"
        )
    else:
        words = "it is not clear whether text helps or hurts"
    facts = {"text_asymmetry": round(asymmetry, 3), "text_hurts": asymmetry < 1 / HELPS}
    return {**facts, "text_advice": f"{words} (asymmetry {asymmetry:.2f})"}


def _labels(manifest: pa.Table, ids: np.ndarray) -> np.ndarray:
    """Return the label of each row as a number, -1 where it is unknown."""
    order = np.argsort(manifest.column("row_id").to_numpy())
    place = np.searchsorted(manifest.column("row_id").to_numpy()[order], ids)
    labels = manifest.column("label").take(pa.array(order[place])).combine_chunks().dictionary_encode()
    return pc.fill_null(labels.indices, -1).to_numpy(zero_copy_only=False)
