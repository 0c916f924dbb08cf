"""Distribution alignment of pseudo-labels (ReMixMatch, ICLR 2020, arXiv 1911.09785).

The target is ours: the sizes that the clusters had before training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS_A_CLUSTER = 250
"""Rows for each cluster over which the running mean averages. Over fewer rows, chance would move it."""


class DistributionAlignment(nn.Module):
    """Scale probabilities by target / running mean, so that clusters neither grow nor vanish while the model learns its own labels."""

    target: Tensor
    running: Tensor

    def __init__(self, target: Tensor) -> None:
        """`target`: [C] mean probability of each cluster before training."""
        super().__init__()
        self.register_buffer("target", target.float())
        self.register_buffer("running", target.float().clone())

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> None:
        """Move the running mean towards the mean of the probabilities [B, C] of the global batch."""
        share = min(1.0, len(probabilities) / (ROWS_A_CLUSTER * len(self.target)))
        self.running.lerp_(probabilities.mean(dim=0), share)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Return the aligned probabilities: [b, C] → [b, C], rows summing to 1."""
        aligned = probabilities * (self.target / self.running.clamp_min(1e-12))
        return aligned / aligned.sum(dim=1, keepdim=True)
