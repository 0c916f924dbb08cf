"""Make one labeling out of several: give all the same cluster numbers, then let the majority decide for each row."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor


def agreement(labelings: list[Tensor]) -> np.ndarray:
    """Return the normalized mutual information [R, R] of each pair of the R labelings [N]; 1 on the diagonal."""
    plain = [labels.cpu().numpy() for labels in labelings]
    found = np.eye(len(plain))
    for a in range(len(plain)):
        for b in range(a):
            found[a, b] = found[b, a] = normalized_mutual_info_score(plain[a], plain[b])
    return found


def aligned(labels: Tensor, reference: Tensor, n_clusters: int) -> Tensor:
    """Return the labels [N], renumbered so that as many as possible equal the reference's (Hungarian matching)."""
    table = torch.bincount(labels * n_clusters + reference, minlength=n_clusters**2).view(n_clusters, n_clusters)
    _, columns = linear_sum_assignment(table.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(labels.device)[labels]


def vote(labelings: list[Tensor], reference: int, n_clusters: int, rounds: int = 3) -> Tensor:
    """Return the majority of the labelings [N] int64, aligned first to the one with index `reference`, then to the majority itself.

    If labels have equally many votes, the smallest wins. The rounds end early once nothing changes.
    """
    winner = labelings[reference]
    for _ in range(rounds):
        ballots = torch.stack([aligned(labels, winner, n_clusters) for labels in labelings])
        votes = torch.stack([(ballots == ballot).sum(dim=0) for ballot in ballots])
        # The label with most votes wins, and among equals the smallest.
        best = (votes * n_clusters - ballots).argmax(dim=0)
        before, winner = winner, ballots.gather(0, best.unsqueeze(0)).squeeze(0)
        if torch.equal(before, winner):
            break
    return winner
