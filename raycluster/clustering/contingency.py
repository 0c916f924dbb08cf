"""Scores of a clustering against labels. They follow from the contingency table, which counts the rows of each label and cluster.

The table is sparse: of 10,000 labels and 10,000 clusters, few pairs have rows in common.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import coo_array, csr_array

from raycluster.clustering.matching import full_matching


def contingency_table(labels: np.ndarray, clusters: np.ndarray) -> csr_array:
    """Return the number of rows of each label and cluster, int64 [L, C].

    `labels`: int [n], from 0, negative where unknown; `clusters`: int [n], from 0. L and C are the largest numbers that occur, plus 1.
    """
    known = labels >= 0
    rows, columns = labels[known].astype(np.int64), np.asarray(clusters)[known].astype(np.int64)
    shape = (int(rows.max(initial=-1)) + 1, int(columns.max(initial=-1)) + 1)
    # Only this conversion adds up equal pairs in all versions of SciPy.
    return coo_array((np.ones(len(rows), np.int64), (rows, columns)), shape=shape).tocsr()


def supervised_scores(table: csr_array) -> dict[str, float | int | None]:
    """Return ACC (best one-to-one matching), NMI (arithmetic mean) and ARI, as fractions, of a contingency table, int64 [L, C].

    Without any labeled row all scores are None. If there are more clusters than classes or fewer, some of them stay unmatched, and their
    rows count as wrong.
    """
    n = int(table.sum())
    if not n:
        return {"acc": None, "nmi": None, "ari": None, "n_labelled": 0}
    used = table.tocoo()
    of_label, of_cluster = (np.asarray(table.sum(axis=axis)).ravel() for axis in (1, 0))
    return {
        "acc": _matched(table) / n,
        "nmi": _normalized_information(used.data, of_label[used.row], of_cluster[used.col], of_label, of_cluster),
        "ari": _adjusted_rand(used.data, of_label, of_cluster),
        "n_labelled": n,
    }


def _matched(table: csr_array) -> int:
    """Return the largest number of rows in matched pairs, if each label is matched to one cluster at most and the other way round.

    Each label may also stay without a cluster, which is a column of its own here: then every label has a match, as the algorithm needs.
    Every edge counts one row more than it has, because the algorithm takes no edges of zero.
    """
    n_labels, n_clusters = table.shape
    used = table.tocoo()
    alone = np.arange(n_labels)
    counts = np.concatenate([used.data + 1, np.ones(n_labels, np.int64)]).astype(np.float64)
    edges = np.concatenate([used.row, alone]), np.concatenate([used.col, n_clusters + alone])
    graph = csr_array((counts, edges), shape=(n_labels, n_clusters + n_labels))
    rows, columns = full_matching(graph, maximize=True)
    return int(graph[rows, columns].sum()) - n_labels


def _normalized_information(
    counts: np.ndarray, rows: np.ndarray, columns: np.ndarray, of_label: np.ndarray, of_cluster: np.ndarray
) -> float:
    """Return the mutual information of labels and clusters, divided by the mean of their entropies.

    `counts`: the entries of the table above zero; `rows`, `columns`: the sizes of the label and of the cluster of each.
    """
    n = counts.sum()
    entropies = [_entropy(sizes) for sizes in (of_label, of_cluster)]
    if not any(entropies):
        # There is one label and one cluster.
        return 1.0
    log_ratio = np.log(counts) + math.log(n) - np.log(rows) - np.log(columns)
    information = float((counts / n * log_ratio).sum())
    return max(0.0, information) / (sum(entropies) / 2)


def _entropy(sizes: np.ndarray) -> float:
    used = sizes[sizes > 0]
    return float((used / used.sum() * (math.log(used.sum()) - np.log(used))).sum()) if len(used) > 1 else 0.0


def _adjusted_rand(counts: np.ndarray, of_label: np.ndarray, of_cluster: np.ndarray) -> float:
    """Return the adjusted Rand index from the numbers of ordered pairs of rows (Hubert and Arabie 1985).

    The numbers are exact up to three billion rows.
    """
    n = int(counts.sum())
    both, label, cluster = (int((sizes**2).sum()) - n for sizes in (counts, of_label, of_cluster))
    total = n * n - n
    if label == both == cluster:
        return 1.0
    return 2 * (both * total - label * cluster) / ((label + cluster) * total - 2 * label * cluster)
