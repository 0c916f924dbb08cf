"""The projection of embeddings onto a plane, for the map of the report."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

DIMENSIONS = 50
"""Principal components that t-SNE works on."""
PERPLEXITY = 30.0
SMALLEST = 10
"""With fewer rows than this, neighborhoods mean nothing, so the first two principal components are the map."""
MANY = 5_000
"""With more rows than this, t-SNE does half its iterations."""


def project(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """Place each row of `embeddings` [n, d] on a plane; return float32 [n, 2], centered, with the farthest coordinate at ±1.

    Rows are scaled to unit length, reduced to 50 principal components and laid out by t-SNE (van der Maaten and Hinton
    2008; Barnes-Hut, started from the first two components). The result depends on the rows and `seed` only. To ensure
    this, one thread computes it: the order in which several threads sum would change the layout. 2,000 rows with 512
    dimensions take about 7 seconds, 20,000 about 90 and 50,000 about 8 minutes. Rows that are all alike lie at the origin.
    """
    rows = np.asarray(embeddings, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    n = len(rows)
    if n < 2 or np.allclose(rows, rows[0], atol=1e-6):
        return np.zeros((n, 2), np.float32)
    with threadpool_limits(1):
        components = PCA(min(DIMENSIONS, n, rows.shape[1]), svd_solver="full").fit_transform(rows)
        if components.shape[1] < 2:
            components = np.hstack([components, np.zeros_like(components)])
        plane = components[:, :2] if n < SMALLEST else _tsne(components, seed)
    plane = plane - (plane.max(axis=0) + plane.min(axis=0)) / 2
    return (plane / np.abs(plane).max()).astype(np.float32)


def _tsne(components: np.ndarray, seed: int) -> np.ndarray:
    n = len(components)
    start = components[:, :2] / components[:, 0].std() * 1e-4
    return TSNE(
        perplexity=min(PERPLEXITY, (n - 1) / 3),
        init=start.astype(np.float32),
        max_iter=1000 if n <= MANY else 500,
        random_state=seed,
        n_jobs=1,
    ).fit_transform(components.astype(np.float32))
