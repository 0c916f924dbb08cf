"""Whitening by differences that should not matter, and smoothing over a neighbor graph.

Differences between neighbors, or within clusters, say little about which cluster an image belongs to. Whitening by the covariance of these
differences gives more weight to the directions that separate clusters (as in linear discriminant analysis, but without labels).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from raycluster.clustering.neighbors import nearest_neighbors

CHUNK_ROWS = 65_536
"""Rows that the sums of a covariance take at once."""
MOMENT_ROWS = 50_000
"""Rows that principal directions are measured on."""
SMALLEST_SHARE = 1e-3
"""Least share of the rows' mean variance to add: directions may have no difference between neighbors (copies of one image)."""


def neighbor_sums(x: Tensor, neighbors: Tensor) -> Tensor:
    """Return the sum of each row's neighbors, [n, d], of `x` [N, d] float32 and `neighbors` [n, k] int."""
    return embedding_bag(neighbors, x, mode="sum")


def smooth(x: Tensor, neighbors: Tensor, steps: int, share: float) -> Tensor:
    """Draw unit rows [N, d] towards the mean directions of their neighbors [N, k], `steps` times; each row has the weight `share`."""
    smoothed = x
    for _ in range(steps):
        smoothed = normalize(share * x + (1 - share) * normalize(neighbor_sums(smoothed, neighbors), dim=1), dim=1)
    return smoothed


def pair_covariance(x: Tensor, neighbors: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return the mean of (x_i − x_j)(x_i − x_j)ᵀ over the rows i and their neighbors j, [d, d] float64.

    `x` [N, d], `rows` [n] int64 without repeats (default: all), `neighbors` [n, k], row numbers of `x`. The mean is computed from sums over
    neighbors; the pairs are never formed.
    """
    n, k = neighbors.shape
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    uses = torch.bincount(neighbors.flatten(), minlength=len(x))
    uses[rows] += k
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for some in uses.nonzero().squeeze(1).split(CHUNK_ROWS):
        total += (x[some] * uses[some].unsqueeze(1)).T @ x[some]
    for some, near in zip(rows.split(CHUNK_ROWS), neighbors.split(CHUNK_ROWS), strict=True):
        cross = x[some].T @ neighbor_sums(x, near)
        total -= cross + cross.T
    return total / (n * k)


def within_covariance(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """Return the mean of (x_i − m)(x_i − m)ᵀ, [d, d] float64, where m is the mean of the row's cluster; `x` [N, d], `labels` [N]."""
    means = class_means(x, labels, n_clusters)
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(CHUNK_ROWS):
        off = x[rows] - means[labels[rows]]
        total += off.T @ off
    return total / len(x)


def class_means(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """Return the mean row of each cluster, [C, d]; zero for a cluster without rows."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=n_clusters)
    # Summing sorted rows is deterministic on GPU too.
    return embedding_bag(order, x, counts.cumsum(0) - counts, mode="sum") / counts.clamp_min(1).unsqueeze(1)


def whitening(x: Tensor, covariance: Tensor, shrinkage: float) -> Tensor:
    """Return W [d, d] in the dtype of `x` such that x W is whitened: V diag(e + λ ē)^(−½) of the covariance V diag(e) Vᵀ.

    `x` [N, d] centered rows, `covariance` [d, d]. Adding the share `shrinkage` λ of the mean eigenvalue ē keeps W finite without variance.
    """
    values, vectors = torch.linalg.eigh(covariance)
    floor = SMALLEST_SHARE * x.square().mean(dtype=torch.float64)
    tiny = torch.finfo(torch.float32).tiny
    kept = values.clamp_min(0) + (shrinkage * values.clamp_min(0).mean()).maximum(floor).clamp_min(tiny)
    return (vectors * kept.rsqrt()).to(x.dtype)


def neighbor_whitening(
    x: Tensor, k: int, shrinkage: float, rounds: int, *, queries: int, database: int, seed: int
) -> Tensor:
    """Return W [d, d] that whitens centered rows [N, d] by their neighbors' differences.

    Each round finds the neighbors again in the space that the last round's whitening has made. A covariance of d × d numbers needs few
    rows: `queries` drawn rows ask among `database` drawn rows. They ask for neighbors in proportion, so that these are as near as the `k`
    nearest among all rows.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:database].to(x.device)
    some, asked = x[order], slice(0, min(queries, len(order)))
    k = k if len(order) == len(x) else max(2, round(k * len(order) / len(x)))
    space = torch.eye(x.shape[1], device=x.device)
    for _ in range(rounds):
        neighbors = nearest_neighbors(some @ space, k, rows=asked)
        space = whitening(some, pair_covariance(some, neighbors, torch.arange(asked.stop, device=x.device)), shrinkage)
    return space


def principal_directions(x: Tensor, dims: int, *, seed: int) -> Tensor:
    """Return the directions [d, r] of largest second moment of rows [N, d], r = min(dims, d), measured on up to 50,000 of the rows.

    Where `dims` cut nothing, the directions are the axes, so that rows stay as they are.
    """
    if dims >= x.shape[1]:
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    some = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:MOMENT_ROWS].to(x.device)]
    return torch.linalg.eigh(some.T @ some)[1][:, -dims:]
