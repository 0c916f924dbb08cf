"""Ward's agglomeration of weighted means, and k-means that starts from its result."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.cells import small_clusters
from raycluster.clustering.kmeans import kmeans
from raycluster.clustering.whitening import class_means

FINE_CENTERS = 4
"""Centers a cluster that the fine k-means finds and Ward's criterion merges."""
MOST_CENTERS = 8192
"""Most centers that are merged, unless there are more clusters than this. The distances take 8 bytes a pair of centers."""
FINE_ITERATIONS, FINE_TOLERANCE = 15, 1e-3
"""Where the fine k-means ends. It may end early, because its centers are merged anyway."""
LAST_ITERATIONS, LAST_TOLERANCE = 25, 1e-4
"""Where the last Lloyd steps end."""


def ward_kmeans(
    x: Tensor, k: int, *, seed: int, fine_rows: int = 16, last_rows: int = 64, split_above: int = 1000
) -> tuple[Tensor, Tensor]:
    """Return labels [N] int64 of spherical k-means that starts from `4 k` small clusters, merged into `k` by Ward's criterion.

    The labels [N] of the small clusters come second. `x` [N, d] float32 unit rows. Merging sees the whole set at once, so that no two seeds
    fall into one cluster while another gets none. This is better than many restarts and takes a fraction of the time.

    The small clusters are those of k-means on `fine_rows` rows for each, or of :func:`small_clusters` if there are more than `split_above`.
    The last Lloyd steps run on `last_rows` rows a cluster.
    """
    count = max(k, min(FINE_CENTERS * k, len(x) // 2, MOST_CENTERS))
    if count > split_above:
        fine, count = small_clusters(x, count, seed=seed)
    else:
        fine = kmeans(
            x,
            count,
            seed=seed,
            rows_a_center=fine_rows,
            max_iterations=FINE_ITERATIONS,
            tolerance=FINE_TOLERANCE,
            warn=False,
        ).labels
    counts = torch.bincount(fine, minlength=count)
    used = (counts > 0).nonzero().squeeze(1)
    merged = torch.zeros_like(counts)
    merged[used] = ward(class_means(x, fine, count)[used], counts[used], k).to(x.device)
    return lloyd(x, merged[fine], k, seed=seed, rows=last_rows), fine


def lloyd(x: Tensor, labels: Tensor, k: int, *, seed: int, rows: int | None = None) -> Tensor:
    """Return labels [N] int64 of spherical k-means that starts from the means of `labels` [N].

    It runs on `rows` rows a cluster; the default is that of :func:`kmeans`.
    """
    start = normalize(class_means(x, labels, k), dim=1)
    return kmeans(
        x,
        k,
        seed=seed,
        start=start,
        rows_a_center=rows,
        max_iterations=LAST_ITERATIONS,
        tolerance=LAST_TOLERANCE,
        warn=False,
    ).labels


def ward(means: Tensor, counts: Tensor, k: int) -> Tensor:
    """Merge K clusters into `k`; each step merges the two that add least to the squared distances from the means (Ward 1963).

    `means` [K, d], `counts` [K] rows of each. Returns labels [K] int64 in 0…k−1 (all different where K ≤ k). The algorithm follows
    chains of nearest neighbors (Murtagh 1983). Its time and memory grow with K².
    """
    m, n = means.double().cpu().numpy(), counts.double().cpu().numpy()
    if len(m) <= k:
        return torch.arange(len(m))
    pairs = _chain(_join_costs(m, n), n)
    # A chain finds the merges in another order. The cheapest of them are the merges that a step-by-step search would make.
    first = pairs[np.argsort(pairs[:, 0], kind="stable")[: len(m) - k], 1:].astype(np.int64)
    graph = coo_matrix((np.ones(len(first)), (first[:, 0], first[:, 1])), shape=(len(m), len(m)))
    return torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))


def _join_costs(means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return n_i n_j / (n_i + n_j) · |m_i − m_j|², [K, K], infinite on the diagonal."""
    squares = (means**2).sum(axis=1)
    costs = squares[:, None] + squares - 2 * means @ means.T
    costs *= counts[:, None] * counts / (counts[:, None] + counts)
    np.fill_diagonal(costs, math.inf)
    return np.maximum(costs, 0)


def _chain(costs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return all K − 1 merges as rows (cost, i, j), where i and j are members of the two clusters. `costs` is overwritten."""
    counts, alive = counts.copy(), np.ones(len(counts), bool)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < len(counts) - 1:
        if not chain:
            chain.append(int(alive.argmax()))
        row = costs[chain[-1]]
        nearest = int(row.argmin())
        if len(chain) < 2 or row[nearest] < row[chain[-2]]:
            chain.append(nearest)
            continue
        i, j = chain.pop(), chain.pop()
        merges.append((costs[i, j], i, j))
        # The cost of joining the union with each other cluster (Lance & Williams 1967).
        total = counts[i] + counts[j] + counts
        joined = ((counts[i] + counts) * costs[i] + (counts[j] + counts) * costs[j] - counts * costs[i, j]) / total
        joined[~alive] = math.inf
        joined[[i, j]] = math.inf
        costs[j], costs[:, j] = joined, joined
        costs[i], costs[:, i] = math.inf, math.inf
        counts[j] += counts[i]
        alive[i] = False
    return np.array(merges)
