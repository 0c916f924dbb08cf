"""Entropy of the mean assignment: large when a batch uses all clusters alike."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_assignment_entropy(p: Tensor) -> Tensor:
    """H(p̄) in nats of assignments [B, C], rows summing to 1; a statistic of the whole batch. Empty clusters add 0."""
    # At exactly 0, which single precision reaches, the derivative is infinite.
    return torch.special.entr(p.mean(dim=0).clamp_min(torch.finfo(p.dtype).tiny)).sum()
