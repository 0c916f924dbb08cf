"""Scores of a clustering that need no labels."""

from __future__ import annotations

import math

import numpy as np
import torch

from raycluster.clustering.neighbors import nearest_neighbors

NEIGHBORS = 20


def label_free_scores(
    images: np.ndarray,
    counterparts: np.ndarray | None,
    clusters: np.ndarray,
    confidence: np.ndarray,
    margin: np.ndarray,
    n_clusters: int,
) -> dict[str, float | None]:
    """Return the scores that need no label, of n images (a sample where there are very many).

    `images` [n, d] and `counterparts` [n, d] or None: embeddings, any scale; `clusters` int [n]; `confidence`, `margin` [n].

    - neighborhood_consistency: share of an image's 20 nearest neighbors that are in its cluster (SIC's risk bound);
    - confidence, margin: means of p₁ and of p₁ − p₂;
    - imbalance: 1 − H(cluster sizes) / ln C, 0 for equal sizes, 1 for a single cluster;
    - neighborhood_imbalance: coefficient of variation of how often an image is a neighbor of another (SIC's risk bound);
    - silhouette: mean of (a − b) / max(|1 − a|, |1 − b|) where a, b are the cosines to the own and the best other prototype
      (the simplified silhouette, Hruschka et al. 2004); None with a single cluster in use;
    - image_text_agreement: share of images whose text counterpart is nearest to the counterparts' prototype of their own
      cluster; None without a text side.
    """
    x = torch.nn.functional.normalize(torch.from_numpy(np.asarray(images, np.float32)), dim=1)
    own = torch.from_numpy(np.asarray(clusters, np.int64))
    neighbors = nearest_neighbors(x, NEIGHBORS)
    hits = torch.bincount(neighbors.flatten(), minlength=len(x)).double()
    return {
        "neighborhood_consistency": neighborhood_consistency(neighbors, own) if neighbors.numel() else None,
        "confidence": _mean(torch.from_numpy(np.asarray(confidence, np.float64))),
        "imbalance": size_imbalance(np.bincount(clusters, minlength=n_clusters)),
        "neighborhood_imbalance": float(hits.std(correction=0) / hits.mean()) if hits.sum() > 0 else None,
        "margin": _mean(torch.from_numpy(np.asarray(margin, np.float64))),
        "silhouette": _silhouette(x, own, n_clusters),
        "image_text_agreement": None if counterparts is None else _agreement(counterparts, own, n_clusters),
    }


def neighborhood_consistency(neighbors: torch.Tensor, clusters: torch.Tensor) -> float:
    """Return the share of the neighbors [n, k] (positions) that are in the same of the clusters [n] as their image."""
    return float((clusters[neighbors] == clusters.unsqueeze(1)).double().mean())


def size_imbalance(sizes: np.ndarray) -> float:
    """Return 1 − H(sizes) / ln C for cluster sizes [C]: 0 when all are equal, 1 when one cluster has everything."""
    shares = sizes[sizes > 0] / sizes.sum()
    # Rounding may put the value slightly outside 0 to 1.
    return min(1.0, max(0.0, 1.0 + float((shares * np.log(shares)).sum()) / math.log(len(sizes))))


def _mean(values: torch.Tensor) -> float | None:
    return float(values.mean()) if values.numel() else None


def _cosines(x: torch.Tensor, own: torch.Tensor, n_clusters: int) -> torch.Tensor:
    """Return the cosines [n, C] of unit rows to the clusters' prototypes, −∞ for clusters without images."""
    sums = torch.zeros(n_clusters, x.shape[1]).index_add_(0, own, x)
    cosine = x @ torch.nn.functional.normalize(sums, dim=1).T
    cosine[:, torch.bincount(own, minlength=n_clusters) == 0] = -torch.inf
    return cosine


def _silhouette(x: torch.Tensor, own: torch.Tensor, n_clusters: int) -> float | None:
    if len(torch.unique(own)) < 2:
        return None
    cosine = _cosines(x, own, n_clusters)
    near = 1 - cosine.gather(1, own.unsqueeze(1)).squeeze(1)
    far = 1 - cosine.scatter(1, own.unsqueeze(1), -torch.inf).max(dim=1).values
    # Where both distances are rounding errors, as for identical images, their ratio means nothing. The clamp makes it about 0.
    return _mean((far - near) / torch.maximum(far, near).clamp_min(1e-4))


def _agreement(counterparts: np.ndarray, own: torch.Tensor, n_clusters: int) -> float | None:
    t = torch.nn.functional.normalize(torch.from_numpy(np.asarray(counterparts, np.float32)), dim=1)
    return _mean((_cosines(t, own, n_clusters).argmax(dim=1) == own).double())
