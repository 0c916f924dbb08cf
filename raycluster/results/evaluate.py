"""Scores of a finished assignment: scores without labels, and scores against labels if there are any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array, csr_array

from raycluster.clustering.contingency import contingency_table
from raycluster.clustering.modality import HELPS, text_asymmetry

SAMPLE = 10_000
"""Number of images behind the label-free scores. The neighbors of all of a million images would cost more than the clustering."""


@dataclass(frozen=True)
class LabelCounts:
    """How many images have each label and each cluster, of some of the images."""

    labels: pa.Array
    """string [L], each label once."""
    table: csr_array
    """int64 [L, C]."""


def count_labels(labels: pa.ChunkedArray, clusters: np.ndarray, n_clusters: int) -> LabelCounts:
    """Count images by their label, string [n] with nulls where it is unknown, and their cluster, int [n]."""
    found = labels.combine_chunks().cast(pa.string()).dictionary_encode()
    table = contingency_table(pc.fill_null(found.indices, -1).to_numpy(zero_copy_only=False), clusters)
    table.resize(len(found.dictionary), n_clusters)
    return LabelCounts(found.dictionary, table)


def no_labels(n_clusters: int) -> LabelCounts:
    """Return the counts of no image."""
    return LabelCounts(pa.array([], pa.string()), csr_array((0, n_clusters), dtype=np.int64))


def add_counts(one: LabelCounts, other: LabelCounts) -> LabelCounts:
    """Return the counts of the images of both."""
    joined = pa.chunked_array([one.labels, other.labels]).combine_chunks().dictionary_encode()
    labels = joined.indices.to_numpy()
    tables = [part.table.tocoo() for part in (one, other)]
    rows = labels[np.concatenate([tables[0].row, len(one.labels) + tables[1].row])]
    columns = np.concatenate([table.col for table in tables])
    counts = np.concatenate([table.data for table in tables])
    # Entries of the same label and cluster are added.
    # Only this conversion adds up equal pairs in all versions of SciPy.
    table = coo_array((counts, (rows, columns)), shape=(len(joined.dictionary), one.table.shape[1])).tocsr()
    return LabelCounts(joined.dictionary, table)


def count_kept(before: pa.ChunkedArray, after: pa.ChunkedArray) -> np.ndarray:
    """Return how many images have the same cluster in both assignments, and how many have one in both, int64 [2].

    `before`, `after`: the clusters of the same images in the same order, null where an image has none.
    """
    same = pc.equal(before, after)
    return np.array([pc.sum(same).as_py() or 0, len(same) - same.null_count])


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
