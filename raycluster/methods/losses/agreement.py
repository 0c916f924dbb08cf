"""Agreement of two assignments of the same images."""

from __future__ import annotations

import torch
from torch import Tensor


def disagreement(p: Tensor, q: Tensor) -> Tensor:
    """−mean log⟨p_i, q_i⟩ of assignments [B, C], rows summing to 1: 0 when both put each image wholly into one cluster, the same.

    SIC's neighbor consistency (arXiv 2208.09849) and TAC's consistency of image and text (arXiv 2310.11989).
    """
    # Single precision reaches an exact 0 for confident opposites, whose logarithm would be infinite.
    return -(p * q).sum(dim=1).clamp_min(torch.finfo(p.dtype).tiny).log().mean()
