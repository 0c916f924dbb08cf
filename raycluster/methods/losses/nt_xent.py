"""NT-Xent, which contrasts each vector's partner with all other vectors (SimCLR, arXiv 2002.05709), and its form for clusters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the mean over the 2n stacked rows of −log softmax of the partner's score, a scalar.

    `a`, `b` [n, D]: row i of one is the partner of row i of the other. The 2n − 2 other rows are negatives; the row itself is
    left out. Scores are raw inner products / temperature: normalize the rows first if scores should be cosines. DXMC's instance-level
    loss (arXiv 2409.04561, eq. 6) uses raw inner products.
    """
    rows = torch.cat([a, b])
    scores = rows @ rows.T / temperature
    # Fill the diagonal: removing it by boolean indexing costs many times as much.
    scores = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -torch.inf)
    n = len(a)
    partner = torch.arange(2 * n, device=rows.device).roll(n)
    return cross_entropy(scores, partner)


def cluster_contrast(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """Return ℓ(P, Q; τ): NT-Xent of the 2C normalized columns of two assignment matrices [B, C], a scalar (TAC, arXiv 2310.11989).

    The loss is a statistic of the whole batch: gather the rows of all workers first. The column of an empty cluster is zero and is
    still zero after normalization.
    """
    return nt_xent(normalize(p.T, dim=1), normalize(q.T, dim=1), temperature)
