"""Which embeddings are unlike anything the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

FALSE_RATE = 0.01
"""Share of pictures like those of the training that are flagged nevertheless."""
STORED = 2048
"""Training rows that the model keeps to compare with."""
CHUNK = 4096


@dataclass(frozen=True)
class Novelty:
    """What is stored to tell known from unknown."""

    rows: Tensor
    """[m, d] float16 unit rows of the training."""
    limit: float
    """Rows whose nearest stored row has a smaller cosine are outliers."""

    def flags(self, embeddings: Tensor) -> Tensor:
        """[n, d] embeddings as the encoder gives them → bool [n]."""
        known = self.rows.to(embeddings.device).float()
        return torch.cat([_nearest(chunk, known) < self.limit for chunk in embeddings.float().split(CHUNK)])


def fit_novelty(embeddings: Tensor) -> Novelty:
    """Store some of the training rows [N, d], and find the limit from others."""
    rows = normalize(embeddings.float(), dim=1)
    step = max(2, -(-len(rows) // STORED))
    known, others = rows[::step].half(), rows[torch.arange(len(rows)) % step != 0]
    limit = float(torch.quantile(_nearest(others[:65_536], known.float()), FALSE_RATE))
    return Novelty(known, limit)


def _nearest(rows: Tensor, known: Tensor) -> Tensor:
    return (normalize(rows, dim=1) @ known.T).max(dim=1).values
