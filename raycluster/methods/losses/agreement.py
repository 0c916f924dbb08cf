"""Agreement of two assignments of the same images."""

from __future__ import annotations

import torch
from torch import Tensor


def disagreement(p: Tensor, q: Tensor) -> Tensor:
    """Return −mean log⟨p_i, q_i⟩ of two assignments [B, C] with rows that sum to 1.

    It is 0 when both assignments put each image wholly into the same single cluster. SIC uses it as neighbor consistency
    (arXiv 2208.09849), TAC as consistency of image and text (arXiv 2310.11989).
    """
    # For two confident, different assignments the product can be exactly 0 in single precision; its logarithm would be infinite.
    return -(p * q).sum(dim=1).clamp_min(torch.finfo(p.dtype).tiny).log().mean()
