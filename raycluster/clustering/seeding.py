"""The first centers of k-means: greedy k-means++ on tensors, on CPU or GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raycluster.clustering.neighbors import one_thread

SEEDING_POOL = 1024
"""Candidates of k-means++ in a pool. Their distances to all rows are computed at once."""
ROUNDING = 4e-6
"""Squared distances below this share of the squared norms count as rounding errors."""


def plus_plus(rows: Tensor, squares: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Choose k of the rows [n, d] float32 as centers, [k, d], by greedy k-means++ (Arthur & Vassilvitskii 2007).

    It draws a few candidates by squared distance, and takes the one that lowers the total most. `squares` [n]: the rows' squared norms.

    Candidates are drawn in pools, so that one matrix product gives the distances of a pool. The pool was drawn by the distances of that
    time. A candidate is drawn from it by the ratio of its distance now to its distance then, which together is a draw by its distance now.
    """
    n, tries = len(rows), 2 + int(math.log(k))
    chance = torch.rand(k, max(tries, SEEDING_POOL), generator=generator, dtype=torch.float64).to(rows.device)
    chosen = [(chance[0, :1] * n).long()]
    distance = _distances(rows, squares, chosen[0])[0]
    while len(chosen) < k:
        if n <= 2 * SEEDING_POOL:
            pool, drawn_at, picks = torch.arange(n, device=rows.device), torch.ones(n, device=rows.device), k
        else:
            pool = _draw(distance, chance[len(chosen)])
            drawn_at, picks = distance[pool].clamp_min(1e-12), SEEDING_POOL // tries
        to_pool = _distances(rows, squares, pool)
        with one_thread():
            for _ in range(min(picks, k - len(chosen))):
                tried = _draw(distance.index_select(0, pool) / drawn_at, chance[len(chosen), :tries])
                reduced = torch.minimum(to_pool.index_select(0, tried), distance)
                best = reduced.sum(dim=1).argmin(keepdim=True)
                chosen.append(pool.index_select(0, tried.index_select(0, best)))
                distance = reduced.index_select(0, best).squeeze(0)
    return rows[torch.cat(chosen)]


def _distances(rows: Tensor, squares: Tensor, to: Tensor) -> Tensor:
    """Return half the squared distances [p, n] of the rows with the indices `to` [p] to all rows; 0 where they are rounding errors."""
    both = (squares[to].unsqueeze(1) + squares) / 2
    distances = torch.addmm(both, rows[to], rows.T, alpha=-1)
    return distances.masked_fill_(distances <= ROUNDING * both, 0)


def _draw(weights: Tensor, chance: Tensor) -> Tensor:
    """Draw indices in proportion to `weights` [n], one for each number of `chance` in [0, 1). If all weights are 0, any index may come."""
    cumulative = weights.double().cumsum(0)
    return torch.searchsorted(cumulative, chance * cumulative[-1], right=True).clamp_max_(len(weights) - 1)
