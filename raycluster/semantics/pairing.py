"""The text side of each image: which nouns of the vocabulary to keep, and the text counterpart made of them.

Source: Image Clustering with External Guidance (TAC), ICML 2024, arXiv 2310.11989, section 3.2 and the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import spherical_kmeans

IMAGES_A_CENTER = 300
NOUNS_A_CENTER = 5
TEMPERATURE = 0.005
CHUNK_BYTES = 2**28


def semantic_center_count(n_images: int, n_clusters: int) -> int:
    """Number of semantic centers: one for 300 images where clusters are larger than that, else three a cluster (TAC)."""
    large = n_images / n_clusters > IMAGES_A_CENTER
    return min(n_images, round(n_images / IMAGES_A_CENTER) if large else 3 * n_clusters)


def select_nouns(
    images: Tensor, nouns: Tensor, n_centers: int, *, per_center: int = NOUNS_A_CENTER, seed: int
) -> Tensor:
    """Indices of the kept nouns, ascending, int64, at most `per_center · n_centers`.

    `images` [N, d] and `nouns` [M, d]: float32 unit rows. Images are grouped into semantic centers by spherical k-means;
    :func:`nouns_of_centers` does the rest.
    """
    result = spherical_kmeans(images, n_centers, seed=seed)
    return nouns_of_centers(result.centers, nouns, per_center)


def nouns_of_centers(centers: Tensor, nouns: Tensor, per_center: int = NOUNS_A_CENTER) -> Tensor:
    """Reverse classification: each noun goes to its most probable center, each center keeps its most probable nouns.

    `centers` [K, d], `nouns` [M, d]: float32 unit rows; p(center | noun) is a softmax over the centers without temperature. In
    half precision 2.5 to 5 % of the kept nouns would change. Returns their union, ascending, int64.
    """
    rows = max(1, CHUNK_BYTES // (4 * len(centers)))
    parts = [(chunk @ centers.T).softmax(dim=1).max(dim=1) for chunk in torch.split(nouns, rows)]
    probability, center = torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
    # Sorted by center, within it by falling probability: the rank in the group is the distance to the group's start.
    order = torch.argsort(probability, descending=True, stable=True)
    order = order[torch.argsort(center[order], stable=True)]
    counts = torch.bincount(center, minlength=len(centers))
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(nouns), device=nouns.device) - starts[center[order]]
    return order[rank < per_center].sort().values


def text_counterparts(images: Tensor, kept: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Text counterpart of each image: the softmax-weighted mean of all kept nouns, normalized.

    `images` [N, d], `kept` [M, d]: float32 unit rows; weights softmax(v·t / temperature). Returns [N, d] float32 unit rows.
    """
    rows = max(1, CHUNK_BYTES // (4 * len(kept)))
    parts = [(chunk @ kept.T / temperature).softmax(dim=1) @ kept for chunk in torch.split(images, rows)]
    return normalize(torch.cat(parts), dim=1)
