"""Exact nearest neighbors by inner product, in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 2**28
"""Largest similarity matrix held at once."""


def nearest_neighbors(x: Tensor, k: int, *, include_self: bool = False) -> Tensor:
    """Indices [N, k] int64 of the rows with the largest inner product, best first.

    `x` [N, d]; for unit rows this is the cosine. A row is left out of its own neighbors by its index, so that a duplicate of it
    stays in; with `include_self` it comes first. `k` is cut to the number of other rows.
    """
    n = len(x)
    others = min(k - include_self, n - 1)
    found = torch.empty(n, others, dtype=torch.int64, device=x.device)
    rows = max(1, CHUNK_BYTES // (4 * n))
    for start in range(0, n, rows):
        scores = x[start : start + rows] @ x.T
        here = torch.arange(len(scores), device=x.device)
        scores[here, start + here] = -torch.inf
        found[start : start + rows] = scores.topk(others, dim=1).indices
    if not include_self:
        return found
    return torch.cat([torch.arange(n, device=x.device).unsqueeze(1), found], dim=1)
