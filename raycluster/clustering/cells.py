"""Cells: small groups of neighboring rows, among which neighbors are searched and small clusters are made in time that grows as N.

The cells are those of a short k-means, as in an inverted file index (Jégou et al. 2011). A row's neighbors are looked for in the cells
whose centers are nearest to the center of its own cell, which is one dense product for each cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import kmeans
from raycluster.clustering.neighbors import merge_best, nearest_neighbors
from raycluster.clustering.whitening import class_means

CELL_ROWS = 200
"""Mean number of rows of a cell."""
OVERSIZE = 10
"""Largest size of a cell, as a multiple of the mean size."""
CHUNK_BYTES = 2**27
"""Bytes of the largest matrix of scores that is held at once."""
SPLIT_ITERATIONS = 6
"""Lloyd steps that divide a cell into small clusters."""


class Cells:
    """A partition of N rows. `order` [N] int64 lists the rows cell by cell; those of cell c begin at `starts[c]` and end at `starts[c + 1]`."""

    def __init__(self, labels: Tensor, count: int) -> None:
        """`labels` [N] int64 in 0…count−1: the cell of each row. A cell may be empty."""
        self.labels, self.count = labels, count
        self.order = labels.argsort(stable=True)
        self.sizes = torch.bincount(labels, minlength=count)
        self.starts: list[int] = [0, *self.sizes.cumsum(0).tolist()]

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        """Yield the number of each cell that has rows, and the slice of `order` that lists them."""
        for cell in range(self.count):
            if self.starts[cell] < self.starts[cell + 1]:
                yield cell, self.rows(cell)

    def rows(self, cell: int) -> slice:
        """Return the slice of `order` that lists the rows of a cell."""
        return slice(self.starts[cell], self.starts[cell + 1])

    def centers(self, x: Tensor) -> Tensor:
        """Return the unit mean [count, d] of the cells' rows of `x` [N, d]; zero for an empty cell."""
        return normalize(class_means(x, self.labels, self.count), dim=1)


def make_cells(x: Tensor, *, seed: int, count: int | None = None) -> Cells:
    """Divide unit rows [N, d] float32 into `count` cells, by default one for every CELL_ROWS rows.

    Cells need not be good clusters, so a few iterations on a few rows are enough. A cell of more than OVERSIZE times the mean is cut into
    pieces. So copies of one image, however many, do not make the search quadratic.
    """
    count = count or max(1, round(len(x) / CELL_ROWS))
    labels = kmeans(x, count, seed=seed, rows_a_center=24, max_iterations=6, tolerance=1e-2, warn=False).labels
    order, sizes = labels.argsort(stable=True), torch.bincount(labels)
    place = torch.arange(len(x), device=x.device) - (sizes.cumsum(0) - sizes)[labels[order]]
    piece = torch.empty_like(labels).index_copy_(0, order, place // math.ceil(OVERSIZE * len(x) / count))
    used, labels = (labels * len(x) + piece).unique(return_inverse=True)
    return Cells(labels, len(used))


def cell_neighbors(x: Tensor, k: int, cells: Cells, candidates: int) -> Tensor:
    """Return the indices [N, k'] int32 of near other rows by cosine, best first, where k' is `k` cut to the number of other rows.

    `x` [N, d] float32 unit rows. Each row is compared with the rows of its own cell and of the nearest cells, `candidates` of them or
    more. With as many candidates as rows, the search is exact. A row is never its own neighbor, but a duplicate of it may be.
    """
    k = min(k, len(x) - 1)
    near, needed = _near_cells(cells, cells.centers(x), max(candidates, k + 1))
    ordered, found = x[cells.order], torch.empty(len(x), k, dtype=torch.int32, device=x.device)
    for cell, rows in cells:
        parts = [cells.rows(other) for other in near[cell][: needed[cell]]]
        database, numbers = (torch.cat([whole[part] for part in parts]) for whole in (ordered, cells.order))
        size = max(1, CHUNK_BYTES // (4 * len(database)))
        for start in range(rows.start, rows.stop, size):
            queries = ordered[start : min(start + size, rows.stop)]
            scores = queries @ database.T
            # The own cell comes first in the database.
            scores.diagonal(start - rows.start).fill_(-torch.inf)
            best, index = scores.new_full((len(queries), k), -torch.inf), numbers.new_zeros(len(queries), k).int()
            merge_best(best, index, scores, 0)
            found[cells.order[start : start + len(queries)]] = numbers[index.long()].int()
    return found


def _near_cells(cells: Cells, centers: Tensor, rows: int) -> tuple[list[list[int]], list[int]]:
    """Return for each cell the nearest cells, itself before all others, and how many of them hold at least `rows` rows."""
    closeness = centers @ centers.T
    closeness.fill_diagonal_(2)
    # Empty cells come last.
    closeness[:, cells.sizes == 0] = -2
    near = closeness.argsort(dim=1, descending=True, stable=True)
    needed = (cells.sizes[near].cumsum(dim=1) < rows).sum(dim=1) + 1
    return near[:, : int(needed.max())].tolist(), needed.tolist()


def find_neighbors(x: Tensor, k: int, cells: Cells, *, exact_rows: int, candidates: int) -> Tensor:
    """Return the nearest other rows [N, k'] int32 of unit rows [N, d]: exact for up to `exact_rows` rows, else by :func:`cell_neighbors`."""
    return nearest_neighbors(x, k) if len(x) <= exact_rows else cell_neighbors(x, k, cells, candidates)


def small_clusters(x: Tensor, count: int, *, seed: int) -> tuple[Tensor, int]:
    """Divide unit rows [N, d] into about `count` small clusters, in two levels; return labels [N] int64 and the number of clusters.

    There are about √count cells times two. Each is divided by a few Lloyd steps that start from rows of its own. So a row is compared with
    a multiple of √count centers instead of `count`.
    """
    cells = make_cells(x, seed=seed, count=max(1, min(len(x), round(2 * math.sqrt(count)))))
    ordered, labels, used = x[cells.order], torch.empty_like(cells.labels), 0
    generator = torch.Generator().manual_seed(seed)
    for _, rows in cells:
        size = rows.stop - rows.start
        parts = max(1, min(size, round(size * count / len(x))))
        labels[cells.order[rows]] = used + _split(ordered[rows], parts, generator)
        used += parts
    return labels, used


def _split(rows: Tensor, parts: int, generator: torch.Generator) -> Tensor:
    """Return labels [n] of spherical k-means from random rows; unlike :func:`kmeans` it has no overhead, and may leave parts empty."""
    centers = rows[torch.randperm(len(rows), generator=generator)[:parts].to(rows.device)]
    for _ in range(SPLIT_ITERATIONS):
        means = class_means(rows, (rows @ centers.T).argmax(dim=1), parts)
        centers = torch.where(means.any(dim=1, keepdim=True), normalize(means, dim=1), centers)
    return (rows @ centers.T).argmax(dim=1)
