"""Which embeddings are unlike anything the model was trained on.

An embedding is an outlier if it is further from its second nearest training row than all but one in a hundred training rows are from
theirs. This is the deep nearest neighbor rule of Sun et al. 2022 (arXiv 2204.06507). It needs neither labels nor a classifier and suits
every method. The nearest row does not count: otherwise, if a collection held each picture twice, every new picture would be an outlier.
No other rule that was tried was better throughout (`tests/benchmarks/outliers.py`). Most of them also need a split of the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

NEIGHBOR = 2
"""Rank of the training row that counts: 2 is the second nearest."""
FALSE_RATE = 0.01
"""Share of outliers among pictures that are like the training pictures."""
STORED = 4096
"""Largest number of training rows that are kept. They take 4 MB at 512 dimensions."""
CALIBRATED = 16_384
"""Largest number of training rows that the limit is computed from."""
ROUNDING = 1e-4
"""Cosines this close to the limit are no outliers: where training rows are copies of each other, they differ only by rounding."""
CHUNK = 4096


@dataclass(frozen=True)
class Novelty:
    """What is kept of the training rows to detect outliers."""

    rows: Tensor
    """[m, d] float32, unit training rows rounded to float16."""
    limit: float
    """An embedding is an outlier if its cosine to the second nearest of these rows is smaller than this."""
    expected: float
    """Expected share of outliers among pictures like the training pictures: about 1 %, or the share of one row if rows are few."""

    def flags(self, embeddings: Tensor) -> Tensor:
        """Return bool [n] for embeddings [n, d], as the encoder gives them: whether each is unlike anything the model was trained on."""
        chunks = embeddings.float().split(CHUNK)
        return torch.cat([_second(normalize(chunk, dim=1) @ self.rows.T) < self.limit for chunk in chunks])


def fit_novelty(embeddings: Tensor) -> Novelty:
    """Choose the rows to keep from N ≥ 2 training rows [N, d] of any float type, and compute the limit.

    The limit comes from training rows too. Each is compared with the others only: compared with itself, a row would look more familiar
    than a new picture can.
    """
    stored = spread(len(embeddings), STORED)
    rows = normalize(embeddings[stored].float(), dim=1).half().float()
    found = []
    for at in spread(len(embeddings), CALIBRATED).split(CHUNK):
        cosines = normalize(embeddings[at].float(), dim=1) @ rows.T
        found.append(_second(cosines.masked_fill_(at.unsqueeze(1) == stored, -torch.inf)))
    near = torch.cat(found).sort().values
    # A new row that is like the n training rows is among the r strangest of all n + 1 with probability r / (n + 1), as in conformal
    # prediction.
    rank = max(1, int((len(near) + 1) * FALSE_RATE))
    return Novelty(rows, float(near[rank - 1]) - ROUNDING, rank / (len(near) + 1))


def spread(n: int, most: int) -> Tensor:
    """Return at most `most` of the positions 0 … n−1, evenly spread, ascending: each folder of a sorted manifest has its share."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def _second(cosines: Tensor) -> Tensor:
    """Return the second largest value in each row of [n, m], or the only one. A value of −∞ does not count."""
    best = cosines.topk(min(NEIGHBOR, cosines.shape[1]), dim=1).values
    return torch.where(best[:, -1].isinf(), best[:, 0], best[:, -1])
