"""SoftMatch's weights of pseudo-labels (ICLR 2023, arXiv 2301.10921), which SEIC's second stage uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALLEST_VARIANCE = 1e-6


class SoftMatch(nn.Module):
    """Running mean μ and variance σ² of the confidence of pseudo-labels in the global batches, and the weights that follow."""

    mean: Tensor
    variance: Tensor
    started: Tensor

    def __init__(self, momentum: float) -> None:
        """`momentum`: share of mean and variance that a step keeps. The first batch sets both."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, confidence: Tensor) -> None:
        """Update mean and variance with the confidences [B] of the global batch."""
        c = confidence.double()
        keep = self.momentum * self.started.double()
        self.mean.copy_(keep * self.mean + (1 - keep) * c.mean())
        self.variance.copy_((keep * self.variance + (1 - keep) * c.var(correction=0)).clamp_min(SMALLEST_VARIANCE))
        self.started.fill_(True)

    def weights(self, confidence: Tensor) -> Tensor:
        """Return weights [b] float64 of pseudo-labels with these confidences c: 1 for c ≥ μ, exp(−(c − μ)² / 2σ²) below."""
        return torch.exp(-(confidence.double() - self.mean).clamp_max(0).square() / (2 * self.variance))
