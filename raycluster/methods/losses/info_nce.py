"""Symmetric InfoNCE between two modalities, as CLIP has it (arXiv 2103.00020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def info_nce(a: Tensor, b: Tensor, temperature: float | Tensor) -> Tensor:
    """½ [CE(Â B̂ᵀ / τ, I) + CE(B̂ Âᵀ / τ, I)] of rows [n, D], normalized here; row i of one is the partner of row i of the other.

    Negatives come from the other modality only, unlike :func:`~raycluster.methods.losses.nt_xent.nt_xent`. A statistic of the
    whole batch: gather the rows of all workers first. No rows: 0.
    """
    if not len(a):
        return (a.sum() + b.sum()) * 0.0
    scores = normalize(a, dim=1) @ normalize(b, dim=1).T / temperature
    partner = torch.arange(len(a), device=a.device)
    return (cross_entropy(scores, partner) + cross_entropy(scores.T, partner)) / 2
