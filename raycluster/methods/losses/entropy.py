"""Entropy of the mean assignment. It is large when a batch uses all clusters equally."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_assignment_entropy(p: Tensor) -> Tensor:
    """Return the entropy H(p̄) in nats of the mean of assignments [B, C], rows summing to 1. Empty clusters add 0.

    It is a statistic of the whole batch: gather the rows of all workers first.
    """
    # In single precision a mean can be exactly 0, and the derivative is infinite there.
    return torch.special.entr(p.mean(dim=0).clamp_min(torch.finfo(p.dtype).tiny)).sum()
