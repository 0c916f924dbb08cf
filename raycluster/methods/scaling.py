"""The default profile's one rule: training constants that follow from the numbers of images N and clusters C.

The published constants were tuned to sets of 5,000 to 1.3 million images. Below that, and with many clusters, they break: a batch
holds less than a row a cluster, 50 neighbors reach into other clusters, and "100 epochs" are a handful of steps.
"""

from __future__ import annotations

STEPS = 400
"""Optimizer steps, at least; more where an epoch has more than a fifth of them."""
ROWS_A_CLUSTER = 16
"""Rows of a batch for each cluster: the contrasts compare columns of a batch, which are noise below a few."""


def neighbors(n_rows: int, n_clusters: int, most: int) -> int:
    """A third of a mean cluster, from 3 to `most`: with more, most of an image's neighbors lie outside its cluster."""
    return max(3, min(most, round(n_rows / n_clusters / 3)))


def batch_size(n_rows: int, n_clusters: int) -> int:
    """A power of two from 256 to 8192 that holds 16 rows a cluster, and at most half of the rows."""
    wanted = max(256, power_of_two_below(ROWS_A_CLUSTER * n_clusters))
    return max(32, min(8192, wanted, power_of_two_below(n_rows / 2)))


def schedule(n_rows: int, n_clusters: int, steps: int = STEPS) -> dict[str, int]:
    """`batch_size`, and `epochs` that make at least `steps` steps, five at least."""
    batch = batch_size(n_rows, n_clusters)
    return {"batch_size": batch, "epochs": max(5, -(-steps // max(1, n_rows // batch)))}


def power_of_two_below(x: float) -> int:
    """The largest power of two that is not above x; 1 for x below 1."""
    return 1 << max(0, int(x).bit_length() - 1)
