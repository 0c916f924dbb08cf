"""SoftMatch's weights of pseudo-labels (ICLR 2023, arXiv 2301.10921), as SEIC's second stage uses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALLEST_VARIANCE = 1e-6


class SoftMatch(nn.Module):
    """Running mean μ and variance σ² of the confidence of pseudo-labels; statistics of the global batch."""

    mean: Tensor
    variance: Tensor
    started: Tensor

    def __init__(self, momentum: float) -> None:
        """`momentum`: what a step keeps of both; the first batch sets them."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, confidence: Tensor) -> None:
        """Take in the confidences [B] of the global batch."""
        c = confidence.double()
        keep = self.momentum * self.started.double()
        self.mean.copy_(keep * self.mean + (1 - keep) * c.mean())
        self.variance.copy_((keep * self.variance + (1 - keep) * c.var(correction=0)).clamp_min(SMALLEST_VARIANCE))
        self.started.fill_(True)

    def weights(self, confidence: Tensor) -> Tensor:
        """Weights [b] float64 of pseudo-labels of these confidences: 1 from μ on, exp(−(c − μ)² / 2σ²) below."""
        return torch.exp(-(confidence.double() - self.mean).clamp_max(0).square() / (2 * self.variance))
