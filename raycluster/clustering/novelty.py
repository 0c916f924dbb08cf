"""Which embeddings are unlike anything the model was trained on.

An outlier is an embedding that is further from its second nearest training row than all but one in a hundred training rows are from
theirs: the deep nearest neighbors of Sun et al. 2022 (arXiv 2204.06507), which need neither labels nor a classifier and suit every
method alike. The nearest row does not count, or a collection that holds each picture twice would make every new one an outlier.
No other rule that was tried was better throughout (`tests/benchmarks/outliers.py`); most need a split of the training rows besides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

NEIGHBOR = 2
"""Which of the nearest training rows is looked at."""
FALSE_RATE = 0.01
"""Share of pictures like those of the training that are outliers nevertheless."""
STORED = 4096
"""Most training rows that are kept: 4 MB at 512 dimensions."""
CALIBRATED = 16_384
"""Most training rows that the limit is found from."""
ROUNDING = 1e-4
"""Cosines this near to the limit are no outliers: where training rows are copies of each other, only rounding sets them apart."""
CHUNK = 4096


@dataclass(frozen=True)
class Novelty:
    """What is kept of the training rows to tell known from unknown."""

    rows: Tensor
    """[m, d] float32, unit training rows rounded to float16."""
    limit: float
    """An embedding is an outlier if its cosine to the second nearest of these rows is smaller."""
    expected: float
    """Share of outliers to be expected among pictures like those of the training: 1 %, or of few training rows the share of one."""

    def flags(self, embeddings: Tensor) -> Tensor:
        """[n, d] embeddings as the encoder gives them → bool [n]: unlike anything the model was trained on."""
        chunks = embeddings.float().split(CHUNK)
        return torch.cat([_second(normalize(chunk, dim=1) @ self.rows.T) < self.limit for chunk in chunks])


def fit_novelty(embeddings: Tensor) -> Novelty:
    """Which of N ≥ 2 training rows [N, d], any kind of float, are kept, and the limit.

    The limit comes from training rows too, each compared with the others only: beside itself a row would look more familiar than a
    new picture can.
    """
    stored = spread(len(embeddings), STORED)
    rows = normalize(embeddings[stored].float(), dim=1).half().float()
    found = []
    for at in spread(len(embeddings), CALIBRATED).split(CHUNK):
        cosines = normalize(embeddings[at].float(), dim=1) @ rows.T
        found.append(_second(cosines.masked_fill_(at.unsqueeze(1) == stored, -torch.inf)))
    near = torch.cat(found).sort().values
    # Of n + 1 rows that are alike, the new one is among the r strangest with probability r / (n + 1), as in conformal prediction.
    rank = max(1, int((len(near) + 1) * FALSE_RATE))
    return Novelty(rows, float(near[rank - 1]) - ROUNDING, rank / (len(near) + 1))


def spread(n: int, most: int) -> Tensor:
    """At most so many of the positions 0 … n−1, evenly spread, ascending: of a sorted manifest every folder has its share."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def _second(cosines: Tensor) -> Tensor:
    """Each row's second largest of [n, m], or its only one; −∞ stands for what does not count."""
    best = cosines.topk(min(NEIGHBOR, cosines.shape[1]), dim=1).values
    return torch.where(best[:, -1].isinf(), best[:, 0], best[:, -1])
