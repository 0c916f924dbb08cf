"""Symmetric InfoNCE between two modalities, as in CLIP (arXiv 2103.00020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def info_nce(a: Tensor, b: Tensor, temperature: float | Tensor) -> Tensor:
    """Return ½ [CE(Â B̂ᵀ / τ, I) + CE(B̂ Âᵀ / τ, I)] of rows [n, D], which are normalized here; 0 without rows.

    Row i of `a` is the partner of row i of `b`. Negatives come from the other modality only, unlike in
    :func:`~raycluster.methods.losses.nt_xent.nt_xent`. The loss is a statistic of the whole batch: gather the rows of all workers first.
    """
    if not len(a):
        return (a.sum() + b.sum()) * 0.0
    scores = normalize(a, dim=1) @ normalize(b, dim=1).T / temperature
    partner = torch.arange(len(a), device=a.device)
    return (cross_entropy(scores, partner) + cross_entropy(scores.T, partner)) / 2
