"""The rule of the default profile: training constants follow from the numbers of images N and clusters C.

The published constants were tuned to sets of 5,000 to 1.3 million images. With fewer images or many clusters they fail: a batch
holds less than one row for each cluster, 50 neighbors reach into other clusters, and "100 epochs" are a handful of steps.
"""

from __future__ import annotations

STEPS = 400
"""Least number of optimizer steps. There are more if an epoch has more than a fifth of them, because there are at least five epochs."""
ROWS_A_CLUSTER = 16
"""Rows of a batch for each cluster. The contrasts compare columns of a batch, and columns of only a few rows are noise."""


def neighbors(n_rows: int, n_clusters: int, most: int) -> int:
    """Return the number of neighbors: a third of a mean cluster, from 3 to `most`.

    With more neighbors, most of them lie outside the image's cluster.
    """
    return max(3, min(most, round(n_rows / n_clusters / 3)))


def batch_size(n_rows: int, n_clusters: int) -> int:
    """Return the largest power of two that is at most 16 rows for each cluster, but from 256 to 8192.

    A batch holds at most half of the rows, but not less than 32.
    """
    wanted = max(256, power_of_two_below(ROWS_A_CLUSTER * n_clusters))
    return max(32, min(8192, wanted, power_of_two_below(n_rows / 2)))


def schedule(n_rows: int, n_clusters: int, steps: int = STEPS) -> dict[str, int]:
    """Return `batch_size` and `epochs`: enough epochs for at least `steps` steps, and at least five."""
    batch = batch_size(n_rows, n_clusters)
    return {"batch_size": batch, "epochs": max(5, -(-steps // max(1, n_rows // batch)))}


def power_of_two_below(x: float) -> int:
    """Return the largest power of two that is not above x; 1 for x below 1."""
    return 1 << max(0, int(x).bit_length() - 1)
