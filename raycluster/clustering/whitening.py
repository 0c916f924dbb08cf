"""Whitening by differences that should not matter, and smoothing over a neighbor graph.

What differs between neighbors, or within clusters, says little about clusters: dividing by its covariance makes the directions that
separate them count for more (as in linear discriminant analysis, but without labels).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

NeighborSearch = Callable[[Tensor, int], Tensor]
"""(rows [N, d], k) → indices int32 [N, k] of each row's nearest others by cosine: one process's, or one spread over many."""

CHUNK_ROWS = 65_536
"""Rows of a covariance's sums taken at once."""
SMALLEST_SHARE = 1e-3
"""Of the mean variance of all rows: what directions without any difference between neighbors (copies of one image) keep."""


def neighbor_sums(x: Tensor, neighbors: Tensor) -> Tensor:
    """Sum of each row's neighbors: `x` [N, d] float32, `neighbors` [n, k] int → [n, d]."""
    return embedding_bag(neighbors, x, mode="sum")


def smooth(x: Tensor, neighbors: Tensor, steps: int, share: float) -> Tensor:
    """Unit rows [N, d] drawn towards the mean directions of their neighbors [N, k], `steps` times; `share` of each is the row itself."""
    smoothed = x
    for _ in range(steps):
        smoothed = normalize(share * x + (1 - share) * normalize(neighbor_sums(smoothed, neighbors), dim=1), dim=1)
    return smoothed


def pair_covariance(x: Tensor, neighbors: Tensor) -> Tensor:
    """Mean of (x_i − x_j)(x_i − x_j)ᵀ over all rows i and their neighbors j: `x` [N, d], `neighbors` [N, k] → [d, d] float64.

    From sums over neighbors; the pairs are never formed.
    """
    n, k = neighbors.shape
    uses = k + torch.bincount(neighbors.flatten(), minlength=n)
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for rows in torch.arange(n, device=x.device).split(CHUNK_ROWS):
        cross = x[rows].T @ neighbor_sums(x, neighbors[rows])
        total += (x[rows] * uses[rows].unsqueeze(1)).T @ x[rows] - cross - cross.T
    return total / (n * k)


def within_covariance(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """Mean of (x_i − m)(x_i − m)ᵀ, m the mean of the row's cluster: `x` [N, d], `labels` [N] → [d, d] float64."""
    means = class_means(x, labels, n_clusters)
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(CHUNK_ROWS):
        off = x[rows] - means[labels[rows]]
        total += off.T @ off
    return total / len(x)


def class_means(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """Mean row of each cluster, [C, d]; zero for a cluster without rows."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=n_clusters)
    # Sums of sorted rows: deterministic on GPU too.
    return embedding_bag(order, x, counts.cumsum(0) - counts, mode="sum") / counts.clamp_min(1).unsqueeze(1)


def whitening(x: Tensor, covariance: Tensor, shrinkage: float) -> Tensor:
    """W [d, d] float32 that turns rows into whitened ones, x W: V diag(e + λ ē)^(−½) of the covariance V diag(e) Vᵀ.

    `x` [N, d] centered rows, `covariance` [d, d]; `shrinkage` λ of the mean eigenvalue ē keeps directions without variance finite.
    """
    values, vectors = torch.linalg.eigh(covariance)
    floor = SMALLEST_SHARE * x.square().mean(dtype=torch.float64)
    tiny = torch.finfo(torch.float32).tiny
    kept = values.clamp_min(0) + (shrinkage * values.clamp_min(0).mean()).maximum(floor).clamp_min(tiny)
    return (vectors * kept.rsqrt()).to(x.dtype)


def neighbor_whitened(
    x: Tensor, k: int, shrinkage: float, rounds: int, search: NeighborSearch
) -> tuple[Tensor, Tensor]:
    """Centered rows [N, d] whitened by their neighbors' differences, unit [N, d], and their neighbors there, int32 [N, k].

    Each round finds the neighbors anew where the last one's whitening has put the rows.
    """
    neighbors = search(x, k)
    for _ in range(rounds):
        whitened = normalize(x @ whitening(x, pair_covariance(x, neighbors), shrinkage), dim=1)
        neighbors = search(whitened, k)
    return whitened, neighbors
